"""What intervals and tests share.

The bootstrap, arrangements of the data, and Holm's adjustment.

All resamples are drawn once per design (sample sizes, number, seed) and kept as a
matrix of counts, so that the bootstrap of a mean is one matrix product and the same
call always gives the same result. Only ``scipy.special`` is used: importing
``scipy.stats`` takes half a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from nablab.statistics.small_samples import ALPHA

Array = npt.NDArray[np.float64]

FEWEST_FOR_BOOTSTRAP = 5
"""Below it the interval is Student's: resampled means never leave [min, max], which
covers the mean of a symmetric distribution with probability 1 - 2**(1 - n) only, 75 %
for three values."""

ROUNDING = 1e-12
"""Statistics closer than this (relative) are tied, and a variance below this share of
the whole is zero.
"""


@dataclass(frozen=True, kw_only=True)
class Design:
    """How intervals and tests are made.

    Attributes:
        confidence: Of the interval, two-sided.
        resamples: Bootstrap resamples, and random arrangements where they are too many
            to enumerate.
        seed: Of the resampling.
    """

    confidence: float = 0.95
    resamples: int = 9_999
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An effect, its interval, and two one-sided tests against a shift.

    Attributes:
        effect: The point estimate.
        low: Lower limit of the interval; NaN where the values do not vary.
        high: Upper limit.
        p_above: p-value of "the effect is at most the shift": small if the effect lies
            above it.
        p_below: p-value of "the effect is at least the shift": small if the effect lies
            below it.
        standard_error: Of the effect; 0 for constant data.
    """

    effect: float
    low: float
    high: float
    p_above: float
    p_below: float
    standard_error: float


def agreeing(contrast: Contrast, threshold: float, floor: float) -> Contrast:
    """Stretch an interval to hold its estimate and not to contradict its test.

    A bootstrap interval of few values can miss its own estimate, and can leave out a
    threshold that the test does not reject. It is stretched to either; an interval can
    only become more honest by that. Where so few seeds cannot reach 0.05 whatever they
    give, the smallest p-value that they can reach counts.

    Args:
        contrast: Effect, interval and test.
        threshold: What the effect is tested against.
        floor: The smallest p-value that this number of seeds can reach.
    """
    low, high = min(contrast.low, contrast.effect), max(contrast.high, contrast.effect)
    level = max(ALPHA, floor * (1 + 1e-9))
    if contrast.p_above > level:
        low = min(low, threshold)
    if contrast.p_below > level:
        high = max(high, threshold)
    return replace(contrast, low=low, high=high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down rule.

    NaN marks a hypothesis without a test and stays out of the family.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, float("nan")])]
    [0.03, 0.06, 0.06, nan]
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)),
        key=lambda i: p_values[i],
    )
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def interval_of_means(
    samples: Sequence[Array], signs: Array, estimate: float, design: Design
) -> tuple[float, float]:
    """Estimate the interval of the signed sum of the samples' means."""
    signed = [sign * sample for sign, sample in zip(signs, samples, strict=True)]

    def statistic(weights: Sequence[Array]) -> Array:
        return np.asarray(
            sum(w @ sample for w, sample in zip(weights, signed, strict=True))
        )

    return bootstrap(statistic, signed, estimate, design)


def bootstrap(
    statistic: Callable[[Sequence[Array]], Array],
    samples: Sequence[Array],
    estimate: float,
    design: Design,
) -> tuple[float, float]:
    """Compute a BCa interval, widened for small samples as Hesterberg 2015 advises.

    Below five values it is Student's t.

    A bootstrap interval is too narrow for few values: its spread lacks the factor
    sqrt(n / (n - 1)), and it uses normal quantiles where Student's belong. Both are
    made up for in the confidence level.

    Args:
        statistic: Turns weights (one matrix per sample, rows sum to 1) into estimates.
        samples: The values, so scaled and signed that the statistic is about the sum of
            their means.
        estimate: The statistic of the data.
        design: Confidence, number of resamples and seed.

    Returns:
        The limits, which hold the estimate; two NaN for constant samples, which do not
        show how much others would differ.
    """
    variances = [float(np.var(sample)) / len(sample) for sample in samples]
    if sum(variances) <= ROUNDING**2 * max(
        float(np.mean(sample**2)) for sample in samples
    ):
        return math.nan, math.nan
    unbiased = [
        v * len(sample) / (len(sample) - 1)
        for v, sample in zip(variances, samples, strict=True)
    ]
    # squares of tiny variances would be 0
    shares = [v / sum(unbiased) for v in unbiased]
    freedom = 1 / sum(
        s**2 / (len(sample) - 1) for s, sample in zip(shares, samples, strict=True)
    )
    student = float(stdtrit(freedom, (1 + design.confidence) / 2))
    if min(len(sample) for sample in samples) < FEWEST_FOR_BOOTSTRAP:
        half = student * math.sqrt(sum(unbiased))
        return estimate - half, estimate + half
    z = student * math.sqrt(sum(unbiased) / sum(variances))
    weights = [
        bootstrap_counts(len(sample), design.resamples, design.seed, stream)
        / len(sample)
        for stream, sample in enumerate(samples)
    ]
    influences = [(sample - sample.mean()) / (len(sample) - 1) for sample in samples]
    low, high = bca(statistic(weights), estimate, influences, z)
    return min(low, estimate), max(high, estimate)


def bca(
    replicates: Array, estimate: float, influences: Sequence[Array], z: float
) -> tuple[float, float]:
    """Compute the bias-corrected and accelerated percentile interval.

    Source: Efron 1987, "Better bootstrap confidence intervals"; for several samples
    Davison and Hinkley 1997, section 5.3.2.

    Args:
        replicates: The statistic of every resample.
        estimate: The statistic of the data.
        influences: By sample, how far leaving a value out pulls the statistic down
            (jackknife).
        z: Normal quantile of the confidence level, 1.96 for 95 %.
    """
    count = len(replicates)
    # Ties are common for few values, and rounding must not decide them.
    tolerance = 1e-9 * float(np.ptp(replicates))
    lower, not_higher = (
        replicates < estimate - tolerance,
        replicates <= estimate + tolerance,
    )
    below = (lower.sum() + not_higher.sum()) / (2 * count)
    bias = float(ndtri(np.clip(below, 1 / (count + 1), count / (count + 1))))
    # Each sample's influences are scaled by (n - 1) / n, as jackknife pseudo-values
    # are.
    scaled = [u * (len(u) - 1) / len(u) for u in influences]
    cubes, squares = (
        sum(float((u**3).sum()) for u in scaled),
        sum(float((u**2).sum()) for u in scaled),
    )
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    levels = []
    for quantile in (bias - z, bias + z):
        slope = 1 - acceleration * quantile
        levels.append(
            float(ndtr(bias + quantile / slope)) if slope > 0 else float(quantile > 0)
        )
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def signs_of_pairs(values: Array) -> Array:
    """Compute the matrix of sign(values[i] - values[j]), also for infinities."""
    return (values[:, None] > values).astype(np.float64) - (values[:, None] < values)


@lru_cache(maxsize=64)
def bootstrap_counts(n: int, resamples: int, seed: int, stream: int) -> Array:
    """Count how often each of ``n`` values stands in each bootstrap resample.

    Shape (resamples, n).
    """
    generator = np.random.default_rng([seed, 0, stream, n])
    drawn = (
        generator.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    )
    counts = np.bincount(drawn.ravel(), minlength=n * resamples)
    return counts.reshape(resamples, n).astype(np.float64)


@lru_cache(maxsize=32)
def splits_of(m: int, n: int, resamples: int, seed: int) -> tuple[Array, bool]:
    """Return ways to choose the first ``m`` of ``m + n``.

    All if at most ``resamples``, else random ones.
    """
    if math.comb(m + n, m) <= resamples:
        chosen = np.array(list(combinations(range(m + n), m)))
        exact = True
    else:
        generator = np.random.default_rng([seed, 1, m, n])
        chosen = np.argsort(generator.random((resamples, m + n)), axis=1)[:, :m]
        exact = False
    splits = np.zeros((len(chosen), m + n))
    np.put_along_axis(splits, chosen, 1.0, axis=1)
    return splits, exact


@lru_cache(maxsize=32)
def sign_flips(n: int, resamples: int, seed: int) -> tuple[Array, bool]:
    """Return assignments of signs: all if at most ``resamples``, else random ones."""
    if 2**n <= resamples:
        return np.array(list(product((1.0, -1.0), repeat=n))), True
    generator = np.random.default_rng([seed, 1, n])
    return generator.choice((1.0, -1.0), size=(resamples, n)), False


def tails(
    observed: float, null: Array, exact: bool, scale: float | None = None
) -> tuple[float, float]:
    """Compute the p-values of both tails.

    A random sample counts the data itself (Phipson and Smyth 2010).

    Args:
        observed: The statistic of the data.
        null: The statistic of every arrangement.
        exact: Whether these are all arrangements.
        scale: Size of the statistic's terms, for telling ties; studentized statistics
            are of size 1.
    """
    tolerance = 100 * ROUNDING * (max(1.0, abs(observed)) if scale is None else scale)
    above, below = (
        int((null >= observed - tolerance).sum()),
        int((null <= observed + tolerance).sum()),
    )
    extra = 0 if exact else 1
    total = len(null) + extra
    return (above + extra) / total, (below + extra) / total
