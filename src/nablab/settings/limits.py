"""Bounds of numbers, written beside a type: ``Annotated[int, Gt(0), Le(100)]``.

They say what the classes of the same names in the package annotated-types say, and give
those to whoever iterates over them, as hypothesis does to make values. That package
makes its classes when it is imported, which takes a tenth of the start of `nablab list`;
so these stand for them. Fields may be written with either.

>>> import annotated_types
>>> list(Gt(0))
[Gt(gt=0)]
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any


class Bound:
    """A bound of a number.

    Args:
        limit: The number.
    """

    __is_annotated_types_grouped_metadata__ = True

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        import annotated_types

        yield getattr(annotated_types, type(self).__name__)(self.limit)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.limit!r})"


class Gt(Bound):
    """Greater than the limit."""


class Ge(Bound):
    """Greater than the limit, or equal to it."""


class Lt(Bound):
    """Less than the limit."""


class Le(Bound):
    """Less than the limit, or equal to it."""


def bounds_of(hint: Any) -> list[Bound]:
    """Return the bounds beside a type, those of annotated-types too.

    >>> bounds_of(typing.Annotated[int, Ge(1), "a comment"])
    [Ge(1)]
    """
    found: list[Bound] = []
    for beside in typing.get_args(hint)[1:]:
        if isinstance(beside, Bound):
            found.append(beside)
            continue
        # Gt(gt=0) has one of these attributes, Interval(ge=0, lt=1) all four.
        for kind in (Gt, Ge, Lt, Le):
            limit = getattr(beside, kind.__name__.lower(), None)
            if limit is not None:
                found.append(kind(limit))
    return found
