"""What the number of values alone says.

Ways to deal them, and limits of complete agreement.

Only Python's own ``math`` is used: ``nablab show`` says what seeds can decide without
loading NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

ALPHA = 0.05
"""A claim is decided where the adjusted one-sided p-value lies below it."""


def ways(sizes: Sequence[int], seeds: int) -> float:
    """Count the ways in which levels of factors and seeds can change places."""
    logarithm = sum(math.lgamma(size + 1) for size in (*sizes, seeds))
    return math.exp(min(700.0, logarithm))


def score_interval(tau: float, largest: float, c: float) -> tuple[float, float]:
    """Solve for the limits that lie one error of their own from tau.

    The distance of a limit from tau is at most the error that the limit itself would
    have.

    The variance of tau falls to 0 where the agreement is complete, so the limits solve
    (tau - t)^2 = c (largest^2 - t^2), as Wilson's do for a share. They hold the
    estimate and never leave the range.

    >>> low, high = score_interval(1.0, 1.0, 0.25)
    >>> round(low, 6), high
    (0.6, 1.0)
    """
    half = math.sqrt(max(0.0, c * (largest**2 * (1 + c) - tau**2)))
    low, high = (tau - half) / (1 + c), (tau + half) / (1 + c)
    return max(-largest, min(low, tau)), min(largest, max(high, tau))


def spread_without_effect(trials: float) -> float:
    """Return the variance of tau of this many independent trials (Kendall 1938)."""
    return 2 * (2 * trials + 5) / (9 * trials * (trials - 1))


def score_interval_of_ranks(
    delta: float, m: int, n: int, z: float
) -> tuple[float, float]:
    """Compute the score interval of Cliff's delta (Newcombe 2006, method 5).

    The groups hold ``m`` and ``n`` values.
    """
    theta = (1 + delta) / 2

    def excess(candidate: float) -> float:
        """Return the squared distance from the estimate less what is allowed."""
        return (theta - candidate) ** 2 - z**2 * variance_of_share(candidate, m, n)

    low = 0.0 if theta == 0 else _bisect(excess, 0.0, theta)
    high = 1.0 if theta == 1 else _bisect(excess, 1.0, theta)
    return 2 * low - 1, 2 * high - 1


def variance_of_share(theta: float, m: int, n: int) -> float:
    """Compute the variance of the estimated P(x > y) (Newcombe's method 5).

    The groups hold ``m`` and ``n`` values.
    """
    overlap = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return theta * (1 - theta) / (m * n) * (1 + ((m + n) / 2 - 1) * overlap)


def _bisect(excess: Callable[[float], float], outside: float, inside: float) -> float:
    """Find the border between ``outside`` and ``inside``.

    The excess is above 0 outside, and not above 0 inside.
    """
    for _ in range(60):
        middle = (outside + inside) / 2
        if excess(middle) > 0:
            outside = middle
        else:
            inside = middle
    return (outside + inside) / 2
