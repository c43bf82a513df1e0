"""What a number of seeds can show at best: the smallest p-value, the narrowest limits.

A test that deals n values to two groups has a number of ways to do so; if only the one
at hand is as clear as it is, p is one over that number, and no data can bring it lower.
So the number of seeds alone says whether a claim can be decided, before anything is
trained. Only Python's own ``math`` is used: ``nablab show`` answers without loading
NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nablab.contract import Claim, Condition
from nablab.statistics.small_samples import (
    score_interval,
    score_interval_of_ranks,
    spread_without_effect,
    ways,
)

Floor = Callable[[int], float]
"""From a number of seeds to the smallest p-value that they can give."""


def floor_of(claim: Claim, conditions: Sequence[Condition]) -> Floor:
    """Return a claim's smallest possible p-value as a function of the number of seeds.

    It holds over these conditions.

    Outcomes that are 0 or 1 may have another one, which depends on the bound.

    >>> bound = Claim.at_most("error", 1.0)
    >>> difference = Claim.less("error", "a", "b", by="model")
    >>> floor_of(bound, [])(5), round(floor_of(difference, [])(5), 4)
    (0.03125, 0.004)
    """
    if claim.kind == "trend":
        return floor_of_trend(
            len({c[claim.by] for c in conditions if claim.by in c}), claim.paired
        )
    if claim.kind == "correlation":
        return floor_of_exchanges(crossed(conditions)[1], claim.paired)
    if claim.paired or claim.kind == "bound":
        return lambda n: 0.5**n
    return lambda n: 1 / math.comb(2 * n, n)


def floor_of_trend(levels: int, paired: bool) -> Floor:
    """Return one over the number of ways to deal the values to the levels.

    Paired, they are dealt within each seed.
    """
    if paired:
        return lambda n: math.exp(-n * math.lgamma(levels + 1))
    return lambda n: math.exp(levels * math.lgamma(n + 1) - math.lgamma(levels * n + 1))


def floor_of_exchanges(sizes: Sequence[int], paired: bool) -> Floor:
    """Return one over the number of ways in which levels and seeds can change places.

    Paired, only the levels change places.

    Args:
        sizes: Number of levels of each factor.
        paired: Whether only the levels change places.
    """
    if paired:
        return lambda _: 1 / ways(sizes, 1)
    return lambda n: 1 / ways(sizes, n)


def crossed(conditions: Sequence[Condition]) -> tuple[list[Condition], tuple[int, ...]]:
    """Order conditions as a table of their factors; count the levels of each factor.

    A factor that follows from another (the course that a network belongs to) has no
    levels of its own. Where the conditions are not all combinations of the levels, they
    themselves are the only factor.
    """
    ordered = list(dict.fromkeys(conditions))
    names = list(dict.fromkeys(factor for condition in ordered for factor in condition))
    factors = {name: [condition.get(name) for condition in ordered] for name in names}
    kept: list[str] = []
    for name in sorted(factors, key=lambda name: -len(set(factors[name]))):
        if not any(_follows(factors[name], factors[other]) for other in kept):
            kept.append(name)
    levels = [list(dict.fromkeys(factors[name])) for name in kept]
    if not levels or math.prod(map(len, levels)) != len(ordered):
        return ordered, (len(ordered),)

    def place(condition: Condition) -> tuple[int, ...]:
        pairs = zip(kept, levels, strict=True)
        return tuple(found.index(condition.get(name)) for name, found in pairs)

    return sorted(ordered, key=place), tuple(map(len, levels))


def clearest_limit(claim: Claim, seeds: int, trials: float, z: float) -> float:
    """Return the inner limit of the interval of data in complete agreement.

    Means have no such limit.

    Args:
        claim: What is claimed.
        seeds: Number of seeds.
        trials: Number of trials in a trend or a correlation.
        z: Normal quantile of the interval.
    """
    if claim.kind in ("trend", "correlation"):
        if trials < 3:
            return -1.0
        return score_interval(1.0, 1.0, z**2 * spread_without_effect(trials))[0]
    if claim.scale != "ranks":
        return math.inf
    if claim.paired or claim.kind == "bound":
        # Clopper and Pearson's lower limit of n wins in n.
        tail = math.erfc(z / math.sqrt(2)) / 2
        return float(2 * tail ** (1 / seeds) - 1)
    return score_interval_of_ranks(1.0, seeds, seeds, z)[0]


def _follows(factor: Sequence[object], other: Sequence[object]) -> bool:
    """Tell whether the level of ``other`` determines that of ``factor``."""
    return len(set(zip(other, factor, strict=True))) == len(set(other))
