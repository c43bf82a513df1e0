"""Several seeds as one number with its interval: what figures draw and tables print."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """Center and 95 % interval of one metric of one condition.

    Attributes:
        kind: ``mean``, ``geometric mean``, or ``median`` where a value is infinite.
        center: The mean or median; NaN without values.
        low: Lower end of the 95 % interval of the mean; NaN for a median, fewer than
            two values, or values that are all the same.
        high: Upper end.
        n: Number of values, infinite ones included, NaN not.
        infinite: How many of them are infinite.
        same: Whether all of at least two values are the same.
    """

    kind: str
    center: float
    low: float
    high: float
    n: int
    infinite: int = 0
    same: bool = False


def summarize(values: Iterable[float], *, geometric: bool = False) -> Summary:
    """Summarize the seeds of one condition.

    An infinite value (a threshold never reached) has no mean, so the median stands in;
    NaN is left out and lowers ``n``.

    >>> summarize([3.0, float("inf"), 2.0]).center
    3.0
    """
    known = [float(v) for v in values if not math.isnan(v)]
    infinite = sum(map(math.isinf, known))
    if not known:
        return Summary("mean", math.nan, math.nan, math.nan, 0)
    if infinite:
        return Summary(
            "median", median(known), math.nan, math.nan, len(known), infinite
        )
    geometric = geometric and min(known) > 0
    scaled = [math.log(v) for v in known] if geometric else known
    center, (low, high) = math.fsum(scaled) / len(scaled), _interval(scaled)
    if geometric:
        center, low, high = math.exp(center), math.exp(low), math.exp(high)
    same = len(known) > 1 and len(set(known)) == 1
    return Summary(
        "geometric mean" if geometric else "mean",
        center,
        low,
        high,
        len(known),
        same=same,
    )


def _interval(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return math.nan, math.nan
    from nablab.statistics.contrasts import interval_of_mean

    low, high = interval_of_mean(values)
    return float(low), float(high)
