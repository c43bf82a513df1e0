"""Tests and intervals against enumeration, SciPy, and published numbers."""

from __future__ import annotations

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nablab.statistics.agreement import contrast_trend
from nablab.statistics.contrasts import (
    contrast_bound,
    contrast_means,
    contrast_pairs,
    contrast_ranks,
    contrast_signs,
    interval_of_mean,
    interval_of_ratio,
    newcombe_interval,
    skew_factor,
)
from nablab.statistics.resampling import Contrast, Design, holm, sign_flips, splits_of

DESIGN = Design()
RNG = np.random.default_rng(3)
Array = np.ndarray


def welch(x: Array, y: Array) -> float:
    return float(
        (x.mean() - y.mean())
        / math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
    )


# --- permutation tests --------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 3), (4, 4), (3, 5)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_two_groups_agree_with_enumeration(
    sizes: tuple[int, int], shift: float
) -> None:
    x, y = RNG.normal(0.5, 1, sizes[0]), RNG.normal(0, 2, sizes[1])
    pooled = np.concatenate([x - shift, y])
    null = []
    for chosen in combinations(range(len(pooled)), len(x)):
        rest = [i for i in range(len(pooled)) if i not in chosen]
        null.append(welch(pooled[list(chosen)], pooled[rest]))
    observed = welch(x - shift, y)
    result = contrast_means(x, y, shift, DESIGN)
    assert result.p_above == pytest.approx(np.mean(np.array(null) >= observed - 1e-9))
    assert result.p_below == pytest.approx(np.mean(np.array(null) <= observed + 1e-9))
    assert result.effect == pytest.approx(x.mean() - y.mean())


def test_separated_groups_reach_the_smallest_p_value_by_hand() -> None:
    """Three against three: 20 ways to deal, one of which separates the groups."""
    result = contrast_means(
        np.array([1.0, 2, 3]), np.array([11.0, 12, 13]), 0.0, DESIGN
    )
    assert result.p_below == 1 / 20
    assert result.p_above == 1
    four = contrast_means(
        np.array([1.0, 2, 3, 4]), np.array([11.0, 12, 13, 14]), 0.0, DESIGN
    )
    assert four.p_below == 1 / 70


def test_two_groups_agree_with_scipy() -> None:
    x, y = RNG.normal(0.6, 1, 6), RNG.normal(0, 2, 5)

    def statistic(a: Array, b: Array, axis: int = -1) -> Array:
        error = np.sqrt(
            a.var(axis=axis, ddof=1) / a.shape[axis]
            + b.var(axis=axis, ddof=1) / b.shape[axis]
        )
        return np.asarray((a.mean(axis=axis) - b.mean(axis=axis)) / error)

    for alternative, ours in (("greater", "p_above"), ("less", "p_below")):
        truth = stats.permutation_test(
            (x, y),
            statistic,
            n_resamples=np.inf,
            alternative=alternative,
            vectorized=True,
        )
        assert getattr(contrast_means(x, y, 0.0, DESIGN), ours) == pytest.approx(
            truth.pvalue
        )


@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_pairs_agree_with_enumeration_and_scipy(shift: float) -> None:
    differences = RNG.normal(0.5, 1, 7)
    centered = differences - shift
    null = [np.dot(signs, centered) for signs in product((-1, 1), repeat=7)]
    result = contrast_pairs(differences, shift, DESIGN)
    assert result.p_above == pytest.approx(
        np.mean(np.array(null) >= centered.sum() - 1e-9)
    )
    truth = stats.permutation_test(
        (centered,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="less",
    )
    assert result.p_below == pytest.approx(truth.pvalue)


def test_pairs_by_hand() -> None:
    """Of the eight sign patterns of 1, 2, 3 only one sums to 6, and two to at least 4."""
    assert contrast_pairs(np.array([1.0, 2, 3]), 0.0, DESIGN).p_above == 1 / 8
    assert contrast_pairs(np.array([-1.0, 2, 3]), 0.0, DESIGN).p_above == 2 / 8


def test_random_arrangements_approach_the_exact_test_and_never_give_zero() -> None:
    x, y = RNG.normal(0.8, 1, 7), RNG.normal(0, 1, 7)
    exact = contrast_means(x, y, 0.0, Design(resamples=10_000))
    drawn = contrast_means(x, y, 0.0, Design(resamples=3_000))
    assert splits_of(7, 7, 10_000, 0)[1]
    assert not splits_of(7, 7, 3_000, 0)[1]
    assert drawn.p_above == pytest.approx(
        exact.p_above, abs=4 * math.sqrt(exact.p_above / 3_000)
    )
    far = contrast_means(x + 100, y, 0.0, Design(resamples=999))
    assert far.p_above == 1 / 1000


def test_arrangements_are_all_there_once() -> None:
    splits, exact = splits_of(3, 4, 9_999, 0)
    assert exact
    assert len({tuple(row) for row in splits}) == len(splits) == math.comb(7, 3)
    assert (splits.sum(axis=1) == 3).all()
    flips, exact = sign_flips(5, 9_999, 0)
    assert exact
    assert len({tuple(row) for row in flips}) == len(flips) == 32


def brunner_munzel(x: Array, y: Array) -> float:
    with np.errstate(all="ignore"):
        return -float(stats.brunnermunzel(x, y, distribution="normal").statistic)


def test_ranks_agree_with_enumeration_of_scipys_statistic() -> None:
    x, y = RNG.normal(0.7, 1, 5), RNG.normal(0, 2, 4)
    pooled = np.concatenate([x, y])
    null = []
    for chosen in combinations(range(9), 5):
        rest = [i for i in range(9) if i not in chosen]
        null.append(brunner_munzel(pooled[list(chosen)], pooled[rest]))
    observed = brunner_munzel(x, y)
    result = contrast_ranks(x, y, 0.0, DESIGN)
    assert result.p_above == pytest.approx(np.mean(np.array(null) >= observed - 1e-9))
    delta = 2 * stats.mannwhitneyu(x, y).statistic / 20 - 1
    assert result.effect == pytest.approx(delta)


def test_ranks_of_equal_sizes_agree_with_mannwhitneyu_where_the_groups_are_separated() -> (
    None
):
    x, y = np.arange(5.0), np.arange(5.0) + 10
    truth = stats.mannwhitneyu(x, y, alternative="less", method="exact").pvalue
    assert contrast_ranks(x, y, 0.0, DESIGN).p_below == pytest.approx(truth)


def test_ranks_are_never_certain_of_a_shift() -> None:
    """Shifted data are not among the arrangements, so p could be 0; two seeds once
    refuted a claim so.
    """
    result = contrast_ranks(np.array([5.0, 6.0]), np.array([1.0, 2.0]), -0.3, DESIGN)
    assert result.p_above == 1 / 6
    three = contrast_ranks(np.array([5.0, 6, 7]), np.array([1.0, 2, 3]), -0.3, DESIGN)
    assert three.p_above == 1 / 20


def test_ranks_take_infinities_and_ties() -> None:
    result = contrast_ranks(
        np.array([1.0, np.inf, np.inf]), np.array([1.0, 2.0, np.inf]), 0.0, DESIGN
    )
    # Wins 0, 0, 0; 1, 1, 0; 1, 1, 0. Losses 0, 1, 1; 0, 0, 0; 0, 0, 0.
    assert result.effect == pytest.approx((4 - 2) / 9)


def test_signs_are_the_binomial_test() -> None:
    signs = np.array([1.0] * 8 + [-1.0] * 2)
    result = contrast_signs(signs, 0.0, DESIGN)
    assert result.p_above == pytest.approx(
        stats.binomtest(8, 10, alternative="greater").pvalue
    )
    assert result.p_below == pytest.approx(
        stats.binomtest(8, 10, alternative="less").pvalue
    )
    shifted = contrast_signs(signs, 0.3, DESIGN)
    assert shifted.p_above == pytest.approx(
        stats.binomtest(8, 10, 0.65, alternative="greater").pvalue
    )
    assert shifted.p_below == pytest.approx(
        stats.binomtest(8, 10, 0.65, alternative="less").pvalue
    )


def test_a_tie_counts_against_either_conclusion() -> None:
    signs = np.array([1.0] * 8 + [0.0])
    result = contrast_signs(signs, 0.0, DESIGN)
    assert result.p_above == pytest.approx(
        stats.binomtest(8, 9, alternative="greater").pvalue
    )
    assert contrast_signs(-signs, 0.0, DESIGN).p_below == pytest.approx(result.p_above)


# --- Kendall's tau ------------------------------------------------------------


def tau_of(
    x: Array, y: Array, shift: float = 0.0, seed: int = 0, resamples: int = 9_999
) -> Contrast:
    design = Design(seed=seed, resamples=resamples)
    return contrast_trend(x, y, np.arange(len(x)), shift, design, paired=False)


def test_tau_agrees_with_scipy() -> None:
    x = np.repeat([1.0, 2, 4, 8], 3)
    y = RNG.normal(0.4 * x, 1)
    assert tau_of(x, y).effect == pytest.approx(stats.kendalltau(x, y).statistic)
    y[3] = y[4] = np.inf
    finite = np.where(np.isinf(y), 1e9, y)
    assert tau_of(x, y).effect == pytest.approx(stats.kendalltau(x, finite).statistic)


def test_the_test_of_tau_agrees_with_scipy_and_enumeration() -> None:
    x, y = np.arange(7.0), np.array([2.0, 1, 3, 5, 4, 7, 6])
    truth = stats.kendalltau(x, y, alternative="greater", method="exact").pvalue
    assert tau_of(x, y).p_above == pytest.approx(
        truth, abs=4 * math.sqrt(truth / 9_999)
    )
    x, y = np.repeat([1.0, 2.0], 3), np.array([1.0, 2, 4, 3, 5, 6])
    null = [stats.kendalltau(x, p).statistic for p in permutations(y)]
    exact = np.mean(np.array(null) >= stats.kendalltau(x, y).statistic - 1e-9)
    assert tau_of(x, y).p_above == pytest.approx(exact, abs=0.01)


def test_blocks_are_permuted_within() -> None:
    """Two seeds with three ordered widths each: one of 36 arrangements is in perfect
    order.
    """
    x = np.tile([1.0, 2, 3], 2)
    y = np.array([1.0, 2, 3, 101, 102, 103])
    seeds = np.repeat([0, 1], 3)
    result = contrast_trend(x, y, seeds, 0.0, DESIGN, paired=True)
    assert result.p_above == pytest.approx(1 / 36, abs=0.005)


def test_complete_agreement_keeps_a_wide_interval() -> None:
    few, many = (
        tau_of(np.arange(6.0), np.arange(6.0)),
        tau_of(np.arange(40.0), np.arange(40.0)),
    )
    assert few.high == many.high == 1
    assert 0.0 < few.low < 0.4
    assert 0.6 < many.low < 1


# --- intervals ----------------------------------------------------------------


def test_newcombe_against_the_formula_solved_by_scipy() -> None:
    from scipy.optimize import brentq

    m, n, delta, z = 7, 9, 0.4, stats.norm.ppf(0.975)
    theta = (1 + delta) / 2

    def excess(t: float) -> float:
        overlap = (1 - t) / (2 - t) + t / (1 + t)
        return (theta - t) ** 2 - z**2 * t * (1 - t) * (
            1 + ((m + n) / 2 - 1) * overlap
        ) / (m * n)

    truth = [
        2 * brentq(excess, 1e-9, theta) - 1,
        2 * brentq(excess, theta, 1 - 1e-9) - 1,
    ]
    assert newcombe_interval(delta, m, n, 0.95) == pytest.approx(truth)
    low, high = newcombe_interval(0.4, 7, 9, 0.95)
    assert newcombe_interval(-0.4, 9, 7, 0.95) == pytest.approx((-high, -low))


def test_clopper_pearson_against_published_values_and_scipy() -> None:
    """Ten of ten: 69.15 % to 100 %; eight of ten: 44.39 % to 97.48 % (standard tables)."""
    sure = contrast_signs(np.ones(10), 0.0, DESIGN)
    assert ((1 + sure.low) / 2, sure.high) == pytest.approx((0.6915, 1.0), abs=5e-5)
    most = contrast_signs(np.array([1.0] * 8 + [-1.0] * 2), 0.0, DESIGN)
    assert ((1 + most.low) / 2, (1 + most.high) / 2) == pytest.approx(
        (0.4439, 0.9748), abs=5e-5
    )
    truth = stats.binomtest(8, 10).proportion_ci(method="exact")
    assert ((1 + most.low) / 2, (1 + most.high) / 2) == pytest.approx(
        (truth.low, truth.high)
    )


def test_bootstrap_agrees_with_scipys_bca_for_many_values() -> None:
    """For 200 values the widening for small samples is below one percent."""
    values = RNG.gamma(2.0, size=200)
    truth = stats.bootstrap(
        (values,),
        np.mean,
        method="BCa",
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = interval_of_mean(values)
    width = truth.high - truth.low
    assert (low, high) == pytest.approx((truth.low, truth.high), abs=0.04 * width)


def test_bootstrap_of_two_samples_agrees_with_scipy() -> None:
    x, y = RNG.gamma(2.0, size=150), RNG.normal(size=120)
    truth = stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        method="BCa",
        vectorized=True,
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    result = contrast_means(x, y, 0.0, DESIGN)
    width = truth.high - truth.low
    assert (result.low, result.high) == pytest.approx(
        (truth.low, truth.high), abs=0.04 * width
    )
    low, high = interval_of_ratio(x, abs(y) + 1, False, DESIGN)
    assert low < x.mean() / (abs(y) + 1).mean() - 1 < high


def test_below_five_values_the_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    truth = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval_of_mean(values) == pytest.approx((truth.low, truth.high))
    x, y = np.array([1.0, 2, 4]), np.array([3.0, 9, 5, 7])
    truth = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    result = contrast_means(x, y, 0.0, DESIGN)
    assert (result.low, result.high) == pytest.approx((truth.low, truth.high))


@pytest.mark.parametrize(("n", "least"), [(3, 0.93), (5, 0.89), (10, 0.92)])
def test_interval_of_a_normal_mean_covers_it_about_as_often_as_it_says(
    n: int, least: float
) -> None:
    """The page says 95, 91 and 95 %; the limits leave two standard errors of 1,000
    runs.
    """
    generator = np.random.default_rng(12)
    hits = 0
    for _ in range(1_000):
        low, high = interval_of_mean(generator.normal(size=n), resamples=999)
        hits += low < 0 < high
    assert least < hits / 1_000 < 0.97


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [np.nan], [1.0, np.nan], [1.0, np.inf, 2.0], [-np.inf, np.inf]],
)
def test_no_interval_where_there_is_none(values: list[float]) -> None:
    assert all(math.isnan(limit) for limit in interval_of_mean(values))


def test_constants_have_no_interval_and_nan_is_left_out() -> None:
    assert all(math.isnan(limit) for limit in interval_of_mean([2.0] * 6))
    assert all(math.isnan(limit) for limit in interval_of_mean([0.0] * 6))
    assert interval_of_mean([1.0, 2, 4, 4.5, np.nan]) == interval_of_mean(
        [1.0, 2, 4, 4.5]
    )
    assert interval_of_mean(np.arange(9), seed=1) == interval_of_mean(
        np.arange(9), seed=1
    )
    assert interval_of_mean(np.arange(9), seed=1) != interval_of_mean(
        np.arange(9), seed=2
    )
    narrow, wide = (interval_of_mean(np.arange(9.0), confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_skewed_sample_does_not_make_its_mean_look_small() -> None:
    """Four small losses and one large: a lognormal mean may well lie far above them."""
    losses = np.exp(np.array([-1.0, -0.5, 0.0, 0.4, 1.2]))
    guarded, plain = (
        contrast_bound(losses, 2.0, 0.0, DESIGN),
        contrast_pairs(losses - 2, 0.0, DESIGN),
    )
    assert guarded.high > plain.high
    assert guarded.p_below >= plain.p_below
    assert guarded.low < plain.low
    assert guarded.p_above == plain.p_above
    # The lognormal limit is for values of one sign; the stand-off for skewed values
    # holds for all.
    signed = contrast_bound(losses - 5, 2.0, 0.0, DESIGN)
    assert signed.p_below == contrast_pairs(losses - 7, 0.0, DESIGN).p_below
    reach = skew_factor(5) * stats.t.ppf(0.975, 4) * losses.std(ddof=1) / math.sqrt(5)
    assert (signed.effect - signed.low, signed.high - signed.effect) == pytest.approx(
        (reach, reach)
    )


def test_the_limit_of_a_bound_is_a_multiple_of_students_where_the_spread_is_small() -> (
    None
):
    values = 1000 + RNG.normal(size=12)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / math.sqrt(12)
    result = contrast_bound(values, 0.5, 0.0, DESIGN)
    assert result.high - result.effect == pytest.approx(skew_factor(12) * half)


# --- Holm ---------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04
    raised to 0.06.
    """
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested_and_stops_at_one() -> None:
    assert holm([]) == []
    assert holm([0.7, math.nan, 0.6]) == pytest.approx(
        [1.0, math.nan, 1.0], nan_ok=True
    )
    assert holm([0.03]) == [0.03]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    for p, q in zip(values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(values) * p) + 1e-12 or q <= 1.0
        assert q >= p
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= -1e-12).all()
    rejected = sum(q < 0.05 for q in adjusted)
    # Step-down: reject while the i-th smallest p is below 0.05 over the number of those
    # left.
    expected = 0
    for i, p in enumerate(sorted(values)):
        if p * (len(values) - i) >= 0.05:
            break
        expected += 1
    assert rejected == expected
