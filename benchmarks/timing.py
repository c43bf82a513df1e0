"""Medians of repeats, taken in turns.

A machine that drifts then drifts for all sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity: median, smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def take_turns(
    measures: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Call every measure once per round.

    The order is A B C A B C ..., so values of one round belong together.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            values[name].append(measure())
    return values
