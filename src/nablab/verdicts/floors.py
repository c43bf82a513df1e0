"""What so many seeds can show at best: the smallest p-value, and the narrowest limits.

A test that deals n values to two groups has so many ways to deal them; if only the one at hand is as
clear as it is, p is one over that number, and no data can bring it lower. So the number of seeds alone
says whether a claim can be decided, before anything is trained. Only Python's own ``math`` is used:
``nablab show`` answers without loading NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nablab.experiment import Claim, Condition

ALPHA = 0.05
"""A claim is decided where the adjusted one-sided p-value lies below it."""

Floor = Callable[[int], float]
"""From a number of seeds to the smallest p-value that they can give."""


def floor_of(claim: Claim, conditions: Sequence[Condition]) -> Floor:
    """The smallest p-value of a claim, over these conditions, as a function of the number of seeds.

    Outcomes that are 0 or 1 may have another one, which depends on the bound.

    >>> bound, difference = Claim.at_most("error", 1.0), Claim.less("error", "a", "b", by="model")
    >>> floor_of(bound, [])(5), round(floor_of(difference, [])(5), 4)
    (0.03125, 0.004)
    """
    if claim.kind == "trend":
        return floor_of_trend(len({c[claim.by] for c in conditions if claim.by in c}), claim.paired)
    if claim.kind == "correlation":
        return floor_of_exchanges(crossed(conditions)[1], claim.paired)
    if claim.paired or claim.kind == "bound":
        return lambda n: 0.5**n
    return lambda n: 1 / math.comb(2 * n, n)


def floor_of_trend(levels: int, paired: bool) -> Floor:
    """One over the number of ways to deal the values to the levels; within each seed where paired."""
    if paired:
        return lambda n: math.exp(-n * math.lgamma(levels + 1))
    return lambda n: math.exp(levels * math.lgamma(n + 1) - math.lgamma(levels * n + 1))


def floor_of_exchanges(sizes: Sequence[int], paired: bool) -> Floor:
    """One over the number of ways in which levels, and seeds unless paired, can change places.

    Args:
        sizes: Number of levels of each factor.
        paired: Whether only the levels change places.
    """
    if paired:
        return lambda _: 1 / ways(sizes, 1)
    return lambda n: 1 / ways(sizes, n)


def ways(sizes: Sequence[int], seeds: int) -> float:
    """In how many ways the levels of these factors and so many seeds can change places."""
    logarithm = sum(math.lgamma(size + 1) for size in (*sizes, seeds))
    return math.exp(min(700.0, logarithm))


def crossed(conditions: Sequence[Condition]) -> tuple[list[Condition], tuple[int, ...]]:
    """Conditions in the order of a table of their factors, and the number of levels of each factor.

    A factor that follows from another (the course that a network belongs to) has no levels of its own.
    Where the conditions are not all combinations of the levels, they themselves are the only factor.
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
    """The inner limit of the interval of data in complete agreement; means have no such limit.

    Args:
        claim: What is claimed.
        seeds: So many seeds.
        trials: So many trials stand in a trend or a correlation.
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


def score_interval(tau: float, largest: float, c: float) -> tuple[float, float]:
    """Limits whose distance from tau is at most the error that they themselves would have.

    The variance of tau falls to 0 where the agreement is complete, so the limits solve (tau - t)^2 = c
    (largest^2 - t^2), as Wilson's do for a share. They hold the estimate and never leave the range.

    >>> low, high = score_interval(1.0, 1.0, 0.25)
    >>> round(low, 6), high
    (0.6, 1.0)
    """
    half = math.sqrt(max(0.0, c * (largest**2 * (1 + c) - tau**2)))
    low, high = (tau - half) / (1 + c), (tau + half) / (1 + c)
    return max(-largest, min(low, tau)), min(largest, max(high, tau))


def spread_without_effect(trials: float) -> float:
    """Variance of tau of so many independent trials (Kendall 1938)."""
    return 2 * (2 * trials + 5) / (9 * trials * (trials - 1))


def score_interval_of_ranks(delta: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of Cliff's delta from groups of ``m`` and ``n`` (Newcombe 2006, method 5)."""
    theta = (1 + delta) / 2

    def excess(candidate: float) -> float:
        """Squared distance from the estimate less what the interval allows."""
        return (theta - candidate) ** 2 - z**2 * variance_of_share(candidate, m, n)

    low = 0.0 if theta == 0 else _bisect(excess, 0.0, theta)
    high = 1.0 if theta == 1 else _bisect(excess, 1.0, theta)
    return 2 * low - 1, 2 * high - 1


def variance_of_share(theta: float, m: int, n: int) -> float:
    """Of the estimated P(x > y), for groups of ``m`` and ``n`` (Newcombe's method 5)."""
    overlap = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return theta * (1 - theta) / (m * n) * (1 + ((m + n) / 2 - 1) * overlap)


def _bisect(excess: Callable[[float], float], outside: float, inside: float) -> float:
    """The border between ``outside`` (excess above 0) and ``inside`` (not above 0)."""
    for _ in range(60):
        middle = (outside + inside) / 2
        if excess(middle) > 0:
            outside = middle
        else:
            inside = middle
    return (outside + inside) / 2


def _follows(factor: Sequence[object], other: Sequence[object]) -> bool:
    """Whether the level of ``other`` tells that of ``factor``."""
    return len(set(zip(other, factor, strict=True))) == len(set(other))
