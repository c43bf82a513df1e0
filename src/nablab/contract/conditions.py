"""Conditions, trials, and which of them train in one batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Level = str | int | float | bool


class Condition(Mapping[str, Level]):
    """One combination of factor levels, such as ``model=deep, target=sinc``.

    A read-only mapping from factor to level, ordered as given, hashable and equal by
    content.

    >>> condition = Condition(model="deep", target="sinc")
    >>> condition["model"], str(condition)
    ('deep', 'model=deep, target=sinc')
    """

    __slots__ = ("_levels",)

    def __init__(self, **levels: Level) -> None:
        self._levels = levels

    def __getitem__(self, factor: str) -> Level:
        return self._levels[factor]

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __eq__(self, other: object) -> bool:
        # With thousands of trials, each is compared with each condition: the mapping's
        # own comparison takes seconds.
        return self._levels == (
            other._levels if isinstance(other, Condition) else other
        )

    def __hash__(self) -> int:
        return hash(frozenset(self._levels.items()))

    def __str__(self) -> str:
        return ", ".join(f"{factor}={level}" for factor, level in self._levels.items())

    def __repr__(self) -> str:
        return f"Condition({', '.join(f'{k}={v!r}' for k, v in self._levels.items())})"

    @property
    def slug(self) -> str:
        """A short name that is safe in a file name; not unique."""
        return re.sub(
            r"[^a-zA-Z0-9]+", "-", "-".join(str(v) for v in self._levels.values())
        )[:40].strip("-")

    def matches(self, where: Mapping[str, Level]) -> bool:
        """Tell whether every factor in ``where`` has the given level here."""
        return all(
            factor in self and self[factor] == level for factor, level in where.items()
        )


class Trial(NamedTuple):
    """One condition with one seed: the unit of storage and resumption.

    Attributes:
        condition: The factor levels.
        seed: Counted from 0.
    """

    condition: Condition
    seed: int


class Trials(Sequence[Trial]):
    """What one call of `Experiment.run` does: trials that may train in one batch.

    They differ by seed and by the factors in `Experiment.batch_over`, and by nothing
    else.

    Args:
        conditions: The conditions, which agree in all factors but those.
        seeds: The seeds of each condition.

    Attributes:
        condition: The levels that all trials share.
        conditions: The conditions.
        seeds: The seeds of each condition.

    >>> conditions = [Condition(network="small", beta=beta) for beta in (1.0, 4.0)]
    >>> trials = Trials(conditions, [0, 1])
    >>> str(trials.condition), trials.each("beta")
    ('network=small', (1.0, 1.0, 4.0, 4.0))
    >>> trials[2] == Trial(conditions[1], seed=0)
    True
    """

    def __init__(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> None:
        self.conditions, self.seeds = tuple(conditions), tuple(seeds)
        self.condition = shared_levels(self.conditions)
        self._trials = [
            Trial(condition, seed) for condition in conditions for seed in seeds
        ]

    def __getitem__(self, index: Any) -> Any:
        return self._trials[index]

    def __len__(self) -> int:
        return len(self._trials)

    def each(self, factor: str) -> tuple[Any, ...]:
        """Return the level of a factor in each trial, as options per trial take it."""
        return tuple(trial.condition[factor] for trial in self)


def shared_levels(conditions: Sequence[Condition]) -> Condition:
    """Return the factors in which conditions agree, with their levels."""
    first = conditions[0]
    same = {
        factor: level
        for factor, level in first.items()
        if all(factor in other and other[factor] == level for other in conditions[1:])
    }
    return Condition(**same)


def text_of(conditions: Sequence[Condition]) -> str:
    """Describe conditions that train in one batch.

    The text names the levels that they share, and all levels of the other factors.

    >>> text_of([Condition(network="small", beta=1), Condition(network="small", beta=4)])
    'network=small, beta=1/4'
    """
    return ", ".join(
        f"{factor}={levels}" for factor, levels in levels_of(conditions).items()
    )


def levels_of(conditions: Sequence[Condition]) -> dict[str, str]:
    """Return the levels of each factor as a text, with slashes between them."""
    levels: dict[str, dict[str, None]] = {}
    for condition in conditions:
        for factor, level in condition.items():
            levels.setdefault(factor, {})[str(level)] = None
    return {factor: "/".join(found) for factor, found in levels.items()}


def grouped(
    conditions: Sequence[Condition], batch_over: Sequence[str]
) -> list[tuple[Condition, ...]]:
    """Put conditions that differ by these factors alone into groups.

    The groups are in the order of their first conditions.
    """
    groups: dict[tuple[tuple[str, Level], ...], list[Condition]] = {}
    for condition in conditions:
        key = tuple(
            (factor, level)
            for factor, level in condition.items()
            if factor not in batch_over
        )
        groups.setdefault(key, []).append(condition)
    return [tuple(group) for group in groups.values()]
