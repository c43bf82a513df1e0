"""One piece of work and the sides that do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OURS = "nablab"


@dataclass(frozen=True)
class Side:
    """One way to do the work.

    Attributes:
        work: Does a share of the work once.
        share: The part of the whole that ``work`` does, to 1.
    """

    work: Callable[[], object]
    share: float = 1.0


@dataclass(frozen=True)
class Race:
    """The same work by several sides.

    Attributes:
        label: What is measured.
        sides: By name; ours is `OURS`.
        goals: By the name of a peer: at least, and aim, in times.
        notes: What to know about it.
    """

    label: str
    sides: Mapping[str, Callable[[], Side]]
    goals: Mapping[str, tuple[str, str]]
    notes: list[str] = field(default_factory=list)
