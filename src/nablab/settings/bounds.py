"""Numbers with bounds: what a field takes, and its messages and words.

Upper bounds lie far above any use, so that a typing mistake is recognized before
anything of that size is made.

>>> from nablab.settings.reading import parse
>>> parse("2e3", Annotated[int, Gt(0), Le(1_000)], "epochs")
Traceback (most recent call last):
nablab.settings.bounds.OutOfBounds: epochs=2e3 is too large: it must be at most 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from nablab.errors import LONGEST_NAME, UsageError
from nablab.settings.limits import Bound, Ge, Gt, Le, Lt, bounds_of

LARGEST_INTEGER = 2**63 - 1  # NumPy and PyTorch count in 64 bits
# A bound from here on only guards against typing mistakes, and words leave it out.
GUARD = 10**6

# What several experiments count. A training of 10^9 steps takes days on any machine.
Steps = Annotated[int, Gt(0), Le(10**9)]
Epochs = Annotated[int, Gt(0), Le(10**6)]
Samples = Annotated[int, Gt(0), Le(10**9)]
Pixels = Annotated[int, Gt(0), Le(512)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Le(1)]
Factor = Annotated[float, Gt(0), Le(1)]


class OutOfBounds(UsageError):
    """A number beyond the bounds of its field.

    Another member of a union must not take it as text.
    """


def within_bounds(read: Callable[[], Any], hint: Any, key: str, given: Any) -> Any:
    """Return what is read for a type with bounds, if it lies within them.

    Raises:
        OutOfBounds: It does not; the text says between which bounds it must lie.
    """
    bounds = bounds_of(hint)
    beyond: OutOfBounds | None = None
    try:
        value = read()
    except OutOfBounds as error:
        # Beyond all fields' bounds: the message names the bound of this one, if it can.
        beyond = error
        value = -math.inf if str(given).lstrip().startswith("-") else math.inf
        if not bounds:
            raise
    for bound in bounds:
        if isinstance(bound, Le) and value > bound.limit:
            raise too_large(key, given, bound.limit)
    if not all(_holds(bound, value) for bound in bounds):
        raise OutOfBounds(
            f"{key}={shortened(str(given))} is impossible: it must be "
            f"{bounds_in_words(hint, finite=True)}."
        )
    if beyond:
        raise beyond
    return value


def too_large(key: str, given: Any, limit: Any) -> OutOfBounds:
    """Build the error for a number above its bound, or as far below zero."""
    if str(given).lstrip().startswith("-"):
        return OutOfBounds(
            f"{key}={shortened(str(given))} is too small: it must be at least "
            f"{-limit:,}."
        )
    return OutOfBounds(
        f"{key}={shortened(str(given))} is too large: it must be at most {limit:,}."
    )


def bounds_in_words(hint: Any, *, finite: bool = False) -> str:
    """Say between which bounds a number must lie; empty if it may be any.

    >>> bounds_in_words(Share), bounds_in_words(Factor), bounds_in_words(Steps)
    ('from 0 to 1', 'above 0 and at most 1', 'above 0')
    """
    bounds = bounds_of(hint)
    low = next((b.limit for b in bounds if isinstance(b, Ge)), None)
    limits = [b.limit for b in bounds if isinstance(b, Le)]
    high = next((limit for limit in limits if limit < GUARD), None)
    if low is not None and high is not None:
        return f"from {low:,} to {high:,}"
    words = [f"{low:,} or more"] if low is not None else []
    words += [f"above {b.limit:,}" for b in bounds if isinstance(b, Gt)]
    words += [f"at most {high:,}"] if high is not None else []
    for bound in bounds:
        if isinstance(bound, Lt) and bound.limit < math.inf:
            words.append(f"below {bound.limit:,}")
        elif isinstance(bound, Lt) and finite:
            words.append("finite")
    return " and ".join(words)


def shortened(text: str) -> str:
    """Cut a text so that it fits into a message."""
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _holds(bound: Bound, value: Any) -> bool:
    """Return whether a value keeps a bound that is not an upper one of `within_bounds`."""
    if isinstance(bound, Gt):
        return bool(value > bound.limit)
    if isinstance(bound, Ge):
        return bool(value >= bound.limit)
    if isinstance(bound, Lt):
        return bool(value < bound.limit)
    return True
