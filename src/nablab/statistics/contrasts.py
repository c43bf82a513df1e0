"""Contrasts: an effect, its limits, and its test against a shift.

* `interval_of_mean`: of one sample, without a test.
* `contrast_means`: difference of two means, independent groups.
* `contrast_pairs`: mean of paired differences, or of one sample about a constant.
* `contrast_bound`: mean of one sample about a constant, where the values may be skewed.
* `contrast_ranks`: Cliff's delta, independent groups; infinities and ties are welcome.
* `contrast_signs`: Cliff's delta of pairs (wins minus losses).

Kendall's tau has a file of its own, ``agreement.py``, and so have outcomes that are 0
or 1, ``shares.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc, betaincinv, ndtri, stdtrit

from nablab.statistics.resampling import (
    ROUNDING,
    Array,
    Contrast,
    Design,
    bootstrap,
    interval_of_means,
    sign_flips,
    signs_of_pairs,
    splits_of,
    tails,
)
from nablab.statistics.shares import limits_of_mean
from nablab.statistics.small_samples import score_interval_of_ranks, variance_of_share


def interval_of_mean(
    values: Sequence[float] | npt.NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
) -> tuple[float, float]:
    """Estimate a mean's confidence interval: BCa bootstrap, or Student's t.

    Student's t is for fewer than five values.

    Of values that are all 0 or 1, it is Clopper and Pearson's interval of their share.
    It holds the mean.

    Args:
        values: One-dimensional; NaN is left out.
        confidence: Two-sided, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Of the resampling; the same seed gives the same interval.

    Returns:
        The limits, in the units of ``values``. Two NaN where there is no interval: for
        fewer than two values, for infinite ones, and for values that are all the same,
        which do not show how much others would differ.

    >>> interval_of_mean([3.0, 3.0, 3.0])
    (nan, nan)
    >>> [round(limit, 3) for limit in interval_of_mean([0, 0, 0, 1, 0])]
    [0.005, 0.716]
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    x = x[~np.isnan(x)]
    if len(x) < 2 or not np.isfinite(x).all() or (x == x[0]).all():
        return math.nan, math.nan
    design = Design(confidence=confidence, resamples=resamples, seed=seed)
    if ((x == 0) | (x == 1)).all():
        return limits_of_mean(x, 0.0, 1.0, design)
    return interval_of_means([x], np.ones(1), float(np.mean(x)), design)


def contrast_means(x: Array, y: Array, shift: float, design: Design) -> Contrast:
    r"""Test the mean of ``x`` minus the mean of ``y``, of independent groups.

    Each group has at least two finite values.

    The test permutes the studentized statistic :math:`(\bar x - \bar y - \text{shift})
    / \sqrt{s_x^2/m + s_y^2/n}`: exact where the groups are exchangeable after the
    shift, and valid for unequal variances as the groups grow. Source: Janssen 1997;
    Chung and Romano 2013.
    """
    effect = float(np.mean(x) - np.mean(y))
    low, high = interval_of_means([x, y], np.array([1.0, -1.0]), effect, design)
    error = math.sqrt(np.var(x, ddof=1) / len(x) + np.var(y, ddof=1) / len(y))
    pooled = np.concatenate([x - shift, y])
    pooled = pooled - pooled.mean()
    splits, exact = splits_of(len(x), len(y), design.resamples, design.seed)
    observed = np.concatenate([np.ones(len(x)), np.zeros(len(y))])[None]
    above, below = tails(_welch(observed, pooled)[0], _welch(splits, pooled), exact)
    return Contrast(
        effect=effect,
        low=low,
        high=high,
        p_above=above,
        p_below=below,
        standard_error=error,
    )


def contrast_pairs(differences: Array, shift: float, design: Design) -> Contrast:
    """Test the mean of paired differences, or of a sample about a constant.

    There are at least two finite values.

    The test flips the signs of ``differences - shift``, which is exact where they are
    symmetric about the shift. (Studentizing would change nothing: the sum of squares is
    the same for all flips.) Source: Fisher 1935, "The Design of Experiments", section
    21.
    """
    effect = float(np.mean(differences))
    low, high = interval_of_means([differences], np.ones(1), effect, design)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    centered = differences - shift
    flips, exact = sign_flips(len(differences), design.resamples, design.seed)
    scale = float(np.abs(centered).sum())
    above, below = tails(float(np.sum(centered)), flips @ centered, exact, scale)
    return Contrast(
        effect=effect,
        low=low,
        high=high,
        p_above=above,
        p_below=below,
        standard_error=error,
    )


def contrast_bound(
    x: Array, bound: float, shift: float, design: Design, *, logarithms: bool = False
) -> Contrast:
    """Test the mean of a sample about a constant.

    It is `contrast_pairs`, made careful about skewed values.

    No second group shows here what is chance, and values that have a mean at the bound
    may well all lie on one side of it: most are small, and the few large ones that
    carry the mean are easily missed by five seeds. So the limits stand off by at least
    `skew_factor` times Student's. For positive values, moreover, the upper limit is at
    least that of a lognormal mean (Krishnamoorthy and Mathew 2003, generalized
    confidence interval); not if they are ``logarithms`` already.
    """
    plain = contrast_pairs(x - bound, shift, design)
    if np.ptp(x) == 0:
        return plain
    student = float(stdtrit(len(x) - 1, (1 + design.confidence) / 2))
    reach = skew_factor(len(x)) * student * plain.standard_error
    low = plain.effect - reach
    if not logarithms and bound + shift > 0 and (x >= 0).all():
        # Values that are never negative have a limit that needs no more than that
        # (Gaffke 2005).
        low = max(low, limits_of_mean(x, 0.0, math.inf, design)[0] - bound)
    plain = replace(
        plain, low=min(plain.low, low), high=max(plain.high, plain.effect + reach)
    )
    if logarithms or not (x > 0).all() or bound + shift <= 0:
        return plain
    logs = np.log(x)
    error, spread = float(np.std(logs, ddof=1)), len(x) - 1
    generator = np.random.default_rng([design.seed, 4, len(x)])
    z, scale = (
        generator.normal(size=design.resamples),
        generator.chisquare(spread, size=design.resamples),
    )
    variance = error**2 * spread / scale
    pivots = float(logs.mean()) - z * np.sqrt(variance / len(x)) + variance / 2
    high = (
        math.exp(min(700.0, float(np.quantile(pivots, (1 + design.confidence) / 2))))
        - bound
    )
    below = (int((pivots >= math.log(bound + shift)).sum()) + 1) / (
        design.resamples + 1
    )
    return replace(plain, high=max(plain.high, high), p_below=max(plain.p_below, below))


def skew_factor(n: float) -> float:
    """Return how many times wider Student's 95 % interval must be for skewed values.

    Found by simulation: the factor at which a lognormal mean (sigma = 1) escapes above
    the upper limit in 5 % of samples is 2.38, 2.27, 1.92, 1.60 and 1.47 for 3, 5, 10,
    20 and 30 values; exponential values need less.
    """
    return 1 + 2.9 / math.sqrt(n)


def interval_of_ratio(
    x: Array, y: Array, paired: bool, design: Design
) -> tuple[float, float]:
    """Estimate the interval of mean(x) / mean(y) - 1.

    The values are positive, at least two in each group.
    """
    estimate = math.log(np.mean(x) / np.mean(y))

    def statistic(weights: Sequence[Array]) -> Array:
        return np.asarray(np.log((weights[0] @ x) / (weights[-1] @ y)))

    # The logarithm's derivatives at the means turn the ratio into a sum of means:
    # enough for the width.
    linear = [x / x.mean() - y / y.mean()] if paired else [x / x.mean(), -y / y.mean()]
    low, high = bootstrap(statistic, linear, estimate, design)
    return math.expm1(low), math.expm1(high)


def _welch(splits: Array, pooled: Array) -> Array:
    """Compute Welch's t of every split.

    Rows of ``splits`` mark the first group with ones, ``pooled`` is centered.
    """
    squares = pooled**2
    m = splits[0].sum()
    n = len(pooled) - m
    sum_x, square_x = splits @ pooled, splits @ squares
    sum_y, square_y = pooled.sum() - sum_x, squares.sum() - square_x
    variance = (square_x - sum_x**2 / m) / (m * (m - 1)) + (square_y - sum_y**2 / n) / (
        n * (n - 1)
    )
    floor = ROUNDING * squares.sum() / len(pooled)
    difference = sum_x / m - sum_y / n
    if floor == 0:
        return np.zeros(len(splits))
    return np.asarray(difference / np.sqrt(np.maximum(variance, floor)))


# --- ranks --------------------------------------------------------------------


def contrast_ranks(x: Array, y: Array, shift: float, design: Design) -> Contrast:
    r"""Test Cliff's delta, P(x > y) - P(x < y), of independent groups.

    Each group has at least two values.

    The values may be infinite. The interval is Newcombe's score interval (method 5):
    unlike a bootstrap it keeps its width where the groups are completely separated. The
    test permutes the studentized delta of Brunner and Munzel, so unequal spreads do no
    harm. Source: Newcombe 2006, Statistics in Medicine 25; Neubert and Brunner 2007;
    for ``shift`` other than 0 Pauly, Asendorf and Konietschke 2016.
    """
    pooled = np.concatenate([x, y])
    dominance = signs_of_pairs(pooled)
    effect = float(dominance[: len(x), len(x) :].mean())
    low, high = newcombe_interval(effect, len(x), len(y), design.confidence)
    observed = np.concatenate([np.ones(len(x)), np.zeros(len(y))])[None]
    splits, exact = splits_of(len(x), len(y), design.resamples, design.seed)
    statistic = _brunner_munzel(observed, dominance, shift)[0]
    above, below = tails(
        float(statistic), _brunner_munzel(splits, dominance, 0.0), exact
    )
    # The data shifted are none of the arrangements, so nothing else keeps p from being
    # 0.
    above, below = max(above, 1 / len(splits)), max(below, 1 / len(splits))
    error = _planned_error(
        effect, shift, lambda theta: variance_of_share(theta, len(x), len(y))
    )
    return Contrast(
        effect=effect,
        low=low,
        high=high,
        p_above=above,
        p_below=below,
        standard_error=error,
    )


def contrast_signs(signs: Array, shift: float, design: Design) -> Contrast:
    """Test wins minus losses of pairs, as a share.

    ``signs`` holds 1 for a win, -1 for a loss and 0 for a tie.

    Clopper and Pearson's interval and the exact sign test; a tie is half a win and half
    a loss, rounded against the hypothesis that is tested.
    """
    n = len(signs)
    wins = float((signs > 0).sum() + (signs == 0).sum() / 2)
    tail = (1 - design.confidence) / 2
    low = float(betaincinv(wins, n - wins + 1, tail)) if wins > 0 else 0.0
    high = float(betaincinv(wins + 1, n - wins, 1 - tail)) if wins < n else 1.0
    chance = (1 + shift) / 2
    error = _planned_error(
        2 * wins / n - 1, shift, lambda theta: theta * (1 - theta) / n
    )
    return Contrast(
        effect=2 * wins / n - 1,
        low=2 * low - 1,
        high=2 * high - 1,
        p_above=_binomial_tail(math.floor(wins), n, chance),
        p_below=_binomial_tail(math.floor(n - wins), n, 1 - chance),
        standard_error=error,
    )


def newcombe_interval(
    delta: float, m: int, n: int, confidence: float
) -> tuple[float, float]:
    """Compute the score interval of Cliff's delta from groups of ``m`` and ``n``.

    It never has zero width.

    >>> low, high = newcombe_interval(1.0, 5, 5, 0.95)
    >>> round(low, 2), high
    (0.29, 1.0)
    """
    return score_interval_of_ranks(delta, m, n, float(ndtri((1 + confidence) / 2)))


def _planned_error(
    effect: float, shift: float, variance: Callable[[float], float]
) -> float:
    """Compute the standard error for planning.

    A share's variance at the threshold differs from that at the effect.

    A test of 2.5 % takes 1.96 standard errors from the threshold, 80 % power another
    0.84 from the effect.
    """
    at_shift, at_effect = (
        2 * math.sqrt(variance((1 + delta) / 2)) for delta in (shift, effect)
    )
    return 0.7 * at_shift + 0.3 * at_effect


def _binomial_tail(wins: int, n: int, chance: float) -> float:
    """Compute P(at least ``wins`` of ``n``)."""
    return 1.0 if wins <= 0 else float(bdtrc(wins - 1, n, chance))


def _brunner_munzel(splits: Array, dominance: Array, shift: float) -> Array:
    """Compute (delta - shift) over its standard error, for every split."""
    others = 1 - splits
    m, n = splits[0].sum(), others[0].sum()
    rows = splits * (others @ dominance.T) / n
    columns = others * (splits @ dominance.T) / m
    delta = rows.sum(axis=1) / m
    spread = ((rows**2).sum(axis=1) - m * delta**2) / (m * (m - 1))
    spread = spread + ((columns**2).sum(axis=1) - n * delta**2) / (n * (n - 1))
    return np.asarray((delta - shift) / np.sqrt(np.maximum(spread, ROUNDING)))
