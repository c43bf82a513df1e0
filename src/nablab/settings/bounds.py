"""Numbers with bounds: what a field takes, and its messages and words.

Bounds stand beside the type, as those of the package ``annotated-types``: property
tests (hypothesis) and other tools read them from there, too. Upper bounds that nobody
would reach are there so that a typing mistake is met as one, before anything of that
size is made.

>>> from nablab.settings.reading import parse
>>> parse("2e3", Annotated[int, Gt(0), Le(1_000)], "epochs")
Traceback (most recent call last):
nablab.settings.bounds.OutOfBounds: epochs=2e3 is too large: it must be at most 1,000.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from nablab.errors import LONGEST, UsageError

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
    """What is read for a type with bounds, if it lies within them.

    Raises:
        OutOfBounds: It does not; the text says between which bounds it must lie.
    """
    bounds = typing.get_args(hint)[1:]
    beyond: OutOfBounds | None = None
    try:
        value = read()
    except OutOfBounds as error:
        # Beyond all fields' bounds: the message names the bound of this one, if it can.
        beyond = error
        value = -math.inf if str(given).lstrip().startswith("-") else math.inf
        if not any(isinstance(bound, Gt | Ge | Le | Lt) for bound in bounds):
            raise
    for bound in bounds:
        if isinstance(bound, Le) and value > bound.le:
            raise too_large(key, given, bound.le)
    if not all(_holds(bound, value) for bound in bounds):
        raise OutOfBounds(
            f"{key}={shortened(str(given))} is impossible: it must be "
            f"{bounds_in_words(hint, finite=True)}."
        )
    if beyond:
        raise beyond
    return value


def too_large(key: str, given: Any, limit: Any) -> OutOfBounds:
    """The error for a number above its bound, or as far below zero."""
    if str(given).lstrip().startswith("-"):
        return OutOfBounds(
            f"{key}={shortened(str(given))} is too small: it must be at least "
            f"{-limit:,}."
        )
    return OutOfBounds(
        f"{key}={shortened(str(given))} is too large: it must be at most {limit:,}."
    )


def bounds_in_words(hint: Any, *, finite: bool = False) -> str:
    """Between which bounds a number must lie; empty if it may be any.

    >>> bounds_in_words(Share), bounds_in_words(Factor), bounds_in_words(Steps)
    ('from 0 to 1', 'above 0 and at most 1', 'above 0')
    """
    bounds: tuple[Any, ...] = typing.get_args(hint)[1:]
    low = next((b.ge for b in bounds if isinstance(b, Ge)), None)
    limits: list[Any] = [b.le for b in bounds if isinstance(b, Le)]
    high = next((limit for limit in limits if limit < GUARD), None)
    if low is not None and high is not None:
        return f"from {low:,} to {high:,}"
    words = [f"{low:,} or more"] if low is not None else []
    words += [f"above {b.gt:,}" for b in bounds if isinstance(b, Gt)]
    words += [f"at most {high:,}"] if high is not None else []
    for bound in bounds:
        if isinstance(bound, Lt) and bound.lt < math.inf:
            words.append(f"below {bound.lt:,}")
        elif isinstance(bound, Lt) and finite:
            words.append("finite")
    return " and ".join(words)


def shortened(text: str) -> str:
    """A text that fits into a message."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _holds(bound: Any, value: Any) -> bool:
    """Whether a value keeps a bound; what is no bound says nothing of it."""
    if isinstance(bound, Gt):
        return bool(value > bound.gt)
    if isinstance(bound, Ge):
        return bool(value >= bound.ge)
    if isinstance(bound, Lt):
        return bool(value < bound.lt)
    return True
