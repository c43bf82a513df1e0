"""Outcomes that are 0 or 1, and their means over a seed's trials.

Limits that five zeros cannot fool.

Five networks of which none diverged do not show that none ever does: with a true rate
of 0.1 that happens in 59 % of all experiments. The limits here hold for any values
between two known ends.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv

from nablab.statistics.resampling import Array, Contrast, Design


def limits_of_mean(
    values: Array, low: float, high: float, design: Design
) -> tuple[float, float]:
    """Compute the interval of a mean of values that lie between ``low`` and ``high``.

    It never has zero width.

    Where every value stands at one of the ends these are Clopper and Pearson's limits
    of a share (1934), elsewhere those of Gaffke (2005, "Three test statistics for a
    nonparametric one-sided hypothesis on the mean of a nonnegative variable"), which
    agree with them at the ends. The upper end may be infinite.

    >>> low, high = limits_of_mean(np.zeros(5), 0.0, 1.0, Design())
    >>> low, round(high, 4)
    (0.0, 0.5218)
    """
    tail = (1 - design.confidence) / 2
    if _at_ends(values, low, high):
        n, ones = len(values), int((values == high).sum())
        lower = float(betaincinv(ones, n - ones + 1, tail)) if ones else 0.0
        upper = float(betaincinv(ones + 1, n - ones, 1 - tail)) if ones < n else 1.0
        return low + (high - low) * lower, low + (high - low) * upper
    mean = float(values.mean())
    lower = float(np.quantile(_means(values, low, design), tail))
    upper = (
        float(np.quantile(_means(values, high, design), 1 - tail))
        if math.isfinite(high)
        else high
    )
    return min(lower, mean), max(upper, mean)


def contrast_share(
    values: Array, bound: float, shift: float, design: Design
) -> Contrast:
    """Test the mean of outcomes between 0 and 1 about a bound.

    The interval is that of `limits_of_mean`, with the test to match.
    """
    effect, line = float(values.mean()) - bound, bound + shift
    low, high = limits_of_mean(values, 0.0, 1.0, design)
    if _at_ends(values, 0.0, 1.0):
        n, ones = len(values), round(float(values.sum()))
        chance = min(1.0, max(0.0, line))
        above = float(bdtrc(ones - 1, n, chance)) if ones else 1.0
        below = float(bdtr(ones, n, chance)) if ones < n else 1.0
    else:
        count = design.resamples + 1
        above = (int((_means(values, 0.0, design) <= line).sum()) + 1) / count
        below = (int((_means(values, 1.0, design) >= line).sum()) + 1) / count
    # A bound at an end of the scale would give 0, and no test is that sure.
    least = 1 / (design.resamples + 1)
    return Contrast(
        effect=effect,
        low=low - bound,
        high=high - bound,
        p_above=max(above, least),
        p_below=max(below, least),
        standard_error=(high - low) / 3.92,
    )


def interval_of_two(x: Array, y: Array, design: Design) -> tuple[float, float]:
    """Compute the interval of the difference of two means of outcomes in [0, 1].

    The groups are independent.

    Each group's own limits, squared and added (Newcombe 1998, method 10; Zou and Donner
    2008).
    """
    effect = float(x.mean() - y.mean())
    (low_x, high_x), (low_y, high_y) = (
        limits_of_mean(values, 0.0, 1.0, design) for values in (x, y)
    )
    down = math.hypot(float(x.mean()) - low_x, high_y - float(y.mean()))
    up = math.hypot(high_x - float(x.mean()), float(y.mean()) - low_y)
    return max(-1.0, effect - down), min(1.0, effect + up)


def _at_ends(values: Array, low: float, high: float) -> bool:
    return bool(((values == low) | (values == high)).all())


def _means(values: Array, end: float, design: Design) -> Array:
    """Draw random means of the values and one more value at an end.

    Their weights are uniform on the simplex.
    """
    return np.asarray(
        _simplex(len(values) + 1, design.resamples, design.seed)
        @ np.append(values, end)
    )


@lru_cache(maxsize=64)
def _simplex(n: int, resamples: int, seed: int) -> Array:
    drawn = np.random.default_rng([seed, 6, n]).exponential(size=(resamples, n))
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))
