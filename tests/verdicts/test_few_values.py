"""What a few seeds cannot show: copies, no spread, ties, outliers, trials that share
their luck.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from nablab.contract import Claim, Condition, Record, Records
from nablab.statistics.agreement import Cells, contrast_correlation
from nablab.statistics.contrasts import interval_of_mean
from nablab.statistics.resampling import ALPHA, Contrast, Design, agreeing
from nablab.statistics.shares import interval_of_two, limits_of_mean
from nablab.verdicts import Verdict, judge
from nablab.verdicts.rank_correlations import _cells
from tests.verdicts.grid import KINDS, RESAMPLES, correlation
from tests.verdicts.grid import bound as cell_of_bounds
from tests.verdicts.simulation import allowed, measure, records_of
from tests.verdicts.test_judging import HIGH, LOW, less, one

DESIGN = Design()


def judged(claim: Claim, values: dict[Any, list[float]], by: str = "model") -> Verdict:
    (verdict,) = judge([claim], Records(records_of(values, by=by)))
    return verdict


# --- an interval holds its estimate, has a width, and agrees with its test ----


def test_the_interval_of_a_trend_that_the_bootstrap_cannot_move() -> None:
    """Four levels that never overlap: every resample has the same tau, 0.296."""
    levels = {
        g: [10.0 * k + i for i in range(5)]
        for g, k in ((0.0, 0), (1.0, 1), (2.0, 2), (3.0, 0.5))
    }
    verdict = judged(Claim.rises("error", by="g"), levels, by="g")
    assert verdict.effect == pytest.approx(0.296, abs=5e-4)
    assert verdict.interval is not None
    assert verdict.interval[0] < 0 < verdict.effect < verdict.interval[1]
    assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_of_complete_agreement_starts_below_it(paired: bool) -> None:
    levels = {float(g): [10.0 * g + i for i in range(5)] for g in range(3)}
    verdict = judged(Claim.rises("error", by="g", paired=paired), levels, by="g")
    low, high = verdict.interval or (math.nan, math.nan)
    assert 0 < low < high - 0.2
    assert verdict.effect == pytest.approx(high)
    assert verdict.outcome == "supported"


NUMBERS = st.one_of(
    st.floats(-100, 100).map(lambda v: round(v, 6)),
    st.integers(-2, 2).map(float),
    st.sampled_from([0.0, 1.0]),
    st.floats(-3, 3).map(math.exp),
)
ALL_KINDS = [
    *(
        less(scale=scale, paired=paired)
        for scale in ("linear", "ranks")
        for paired in (False, True)
    ),
    less(smallest_effect=0.5),
    Claim.at_most("error", 0.25),
    Claim.at_least("error", 1.0, scale="ranks"),
    Claim.rises("error", by="width"),
    Claim.falls("error", by="width", paired=True, smallest_effect=0.1),
    Claim.correlates("error", "norm"),
    Claim.correlates("error", "norm", paired=True),
    Claim.equal("error", by="model", margin=0.3),
]


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 6), st.data())
def test_every_interval_holds_its_estimate_and_agrees_with_its_test(
    seeds: int, data: st.DataObject
) -> None:
    value = data.draw(
        st.sampled_from(
            [NUMBERS, st.sampled_from([0.0, 1.0]), st.integers(0, 2).map(float)]
        )
    )
    drawn = data.draw(st.lists(value, min_size=8 * seeds, max_size=8 * seeds))
    cells = itertools.product("ab", (1, 2), range(seeds))
    records = Records(
        Record(
            Condition(model=m, width=w),
            s,
            {"error": drawn[2 * i], "norm": drawn[2 * i + 1]},
        )
        for i, (m, w, s) in enumerate(cells)
    )
    for claim in ALL_KINDS:
        for verdict in judge([claim], records, resamples=199):
            if verdict.interval is None or verdict.effect is None:
                assert verdict.outcome == "inconclusive"
                continue
            low, high = verdict.interval
            assert low <= verdict.effect <= high
            assert low < high
            line = (
                claim.margin
                if claim.kind == "equality"
                else claim.sign * claim.smallest_effect
            )
            if claim.kind != "equality" and not low <= line <= high:
                assert verdict.p_value is not None
                # So few seeds cannot reach 0.05 in every kind of test: then the
                # clearest data count.
                assert (
                    verdict.p_value <= ALPHA or "cannot bring p below" in verdict.reason
                )


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_zeros_and_ones_are_no_shares_about_an_end_of_the_scale(bound: float) -> None:
    """Values of -1, 0 and 1 often show no -1 in five seeds; a single 1 would then
    refute 'at most 0'.
    """
    claim = Claim.at_most("error", 0.0) if bound == 0 else Claim.at_least("error", 1.0)
    values = [0.0, 0.0, 0.0, 1.0, 0.0] if bound == 0 else [1.0, 1.0, 0.0, 1.0, 1.0]
    assert judged(claim, {"a": values}).outcome == "inconclusive"
    rates = measure(cell_of_bounds("ties", 5, 1), runs=300, resamples=RESAMPLES)
    assert max(rates.refuted, rates.supported) <= allowed(runs=300)


def test_an_interval_is_stretched_to_what_its_test_does_not_reject() -> None:
    found = Contrast(
        effect=1.0, low=1.1, high=2.0, p_above=0.28, p_below=0.9, standard_error=1.0
    )
    assert (agreeing(found, 0.0, 0.01).low, agreeing(found, 0.0, 0.01).high) == (
        0.0,
        2.0,
    )
    sure = Contrast(
        effect=1.0, low=0.2, high=2.0, p_above=0.04, p_below=0.9, standard_error=1.0
    )
    assert agreeing(sure, 0.0, 0.01) == sure
    few = Contrast(
        effect=1.0, low=0.2, high=2.0, p_above=0.125, p_below=1.0, standard_error=1.0
    )
    assert agreeing(few, 0.0, 0.125).low == 0.2
    assert agreeing(few, 0.0, 0.0625).low == 0.0


# --- outcomes that are 0 or 1 -------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "values", "outcome"),
    [
        (Claim.at_most("error", 0.1), [0.0] * 5, "inconclusive"),
        (Claim.at_most("error", 0.1), [0.0] * 36, "supported"),
        (Claim.at_most("error", 0.1), [0.0] * 35, "inconclusive"),
        (Claim.at_least("error", 0.9), [1.0] * 5, "inconclusive"),
        (Claim.at_most("error", 0.1), [1.0] * 5, "refuted"),
        (Claim.at_most("error", 0.9), [0.0, 0, 0, 0, 0, 0, 0, 1.0], "supported"),
    ],
)
def test_five_zeros_show_no_rate_below_a_tenth(
    claim: Claim, values: list[float], outcome: str
) -> None:
    """0.9 ** 35 is 0.0250 and a little more, 0.9 ** 36 is 0.0225: the exact test of 2.5
    %.
    """
    verdict = judged(claim, {"a": values})
    assert verdict.outcome == outcome
    low, high = verdict.interval or (0.0, 0.0)
    truth = stats.binomtest(int(sum(values)), len(values)).proportion_ci(method="exact")
    assert (low + claim.bound, high + claim.bound) == pytest.approx(
        (truth.low, truth.high), abs=1e-12
    )


def test_what_is_said_of_outcomes_that_did_not_vary() -> None:
    reason = judged(Claim.at_most("error", 0.1), {"a": [0.0] * 5}).reason
    assert "5 seeds cannot bring p below 0.59, whatever they give." in reason
    assert "It takes at least 36 seeds, all with this outcome." in reason
    assert (
        "All 5 seeds gave 0; if they are copies of one result, they count for too much."
    ) in reason
    assert "The scale 'ranks' asks what most seeds do." in reason


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_limits_of_a_share_cover_it(n: int, share: float) -> None:
    """Summed over all outcomes, no simulation."""
    covered = 0.0
    for ones in range(n + 1):
        low, high = limits_of_mean(
            np.repeat([1.0, 0.0], [ones, n - ones]), 0.0, 1.0, DESIGN
        )
        assert low < high
        covered += stats.binom.pmf(ones, n, share) * (low <= share <= high)
    assert covered >= 0.95


def test_gaffkes_limits_meet_clopper_and_pearsons_at_the_ends() -> None:
    ends = np.array([0.0, 0.0, 1.0, 0.0, 1.0])
    near = np.array([1e-9, 0.0, 1.0, 0.0, 1.0 - 1e-9])
    assert limits_of_mean(near, 0.0, 1.0, DESIGN) == pytest.approx(
        limits_of_mean(ends, 0.0, 1.0, DESIGN), abs=0.01
    )
    assert limits_of_mean(np.full(5, 2.0), 0.0, math.inf, DESIGN)[1] == math.inf


@pytest.mark.parametrize("trials", [2, 4])
def test_means_of_a_seeds_outcomes_have_limits_that_hold(trials: int) -> None:
    """Seeds differ in their rate: 0 or 1 throughout in half of them, one in ten in the
    rest.
    """
    generator = np.random.default_rng(2)
    design, missed = Design(resamples=499), 0
    for _ in range(400):
        rate = np.where(generator.random(5) < 0.5, generator.random(5) < 0.1, 0.1)
        values = generator.binomial(trials, rate) / trials
        low, high = limits_of_mean(values, 0.0, 1.0, design)
        missed += not low <= 0.1 <= high
    assert missed / 400 <= allowed(0.05, 400)


def test_two_shares_are_compared_with_a_width() -> None:
    low, high = interval_of_two(np.ones(5), np.zeros(5), DESIGN)
    assert 0 < low < 0.5
    assert high == 1
    none = interval_of_two(np.zeros(5), np.zeros(5), DESIGN)
    assert none[0] == pytest.approx(-none[1])
    assert none[1] > 0.5
    assert one(less(), [0.0] * 5, [1.0] * 5).outcome == "supported"
    assert one(less(paired=True), [0.0] * 5, [1.0] * 5).outcome == "inconclusive"
    assert one(less(paired=True), [0.0] * 6, [1.0] * 6).outcome == "supported"


def test_figures_show_no_certainty_either() -> None:
    assert interval_of_mean([0, 0, 0, 0, 1]) == pytest.approx(
        tuple(stats.binomtest(1, 5).proportion_ci(method="exact"))
    )
    assert all(math.isnan(limit) for limit in interval_of_mean([0.7] * 5))


# --- copies -------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["linear", "log10", "ranks"])
@pytest.mark.parametrize("paired", [False, True])
def test_copies_of_one_draw_are_no_replicates(scale: str, paired: bool) -> None:
    """Ten copies against ten draws of the same: supported in 27.5 % of null runs if
    they are believed.
    """
    generator = np.random.default_rng(0)
    for _ in range(20):
        draw = list(np.exp(generator.normal(size=11)))
        verdict = one(less(scale=scale, paired=paired), [draw[0]] * 10, draw[1:])
        assert verdict.outcome == "inconclusive"
        assert "All 10 seeds with model = a gave the same error" in verdict.reason
        assert "copies of one result" in verdict.reason


@pytest.mark.parametrize(
    "claim",
    [
        Claim.at_most("error", 1.0),
        Claim.at_most("error", 1.0, scale="ranks"),
        Claim.rises("error", by="model"),
        Claim.equal("error", by="model", margin=0.5),
    ],
)
def test_copies_in_every_other_kind_of_claim(claim: Claim) -> None:
    verdict = judged(claim, {1: [0.8372916] * 8, 2: [0.8372916] * 8})
    if claim.kind == "trend":
        assert "no order to test" in verdict.reason
        verdict = judged(claim, {1: [0.8372916] * 8, 2: [0.9483721] * 8})
    assert verdict.outcome == "inconclusive"
    assert "gave the same error, 0.837292" in verdict.reason


def test_copies_with_several_trials_a_seed_are_seen() -> None:
    """Each target has its own value, but all seeds have the same ones."""
    records = Records(
        record
        for target, value in (("x", 0.1234567), ("y", 0.2345678))
        for record in records_of(
            {"a": [value] * 6, "b": [value + 1 + 0.1 * s for s in range(6)]},
            target=target,
        )
    )
    (verdict,) = judge([less()], records)
    assert verdict.outcome == "inconclusive"
    assert (
        "All 6 seeds with model = a gave the same error: they look like copies"
    ) in verdict.reason


def test_coarse_values_may_be_equal_by_nature_and_say_so() -> None:
    epochs = one(less(scale="ranks"), [3.0] * 5, [5.0, 6, 5, 7, 6])
    assert epochs.outcome == "supported"
    assert (
        "All 5 seeds with model = a gave 3; if they are copies of one result"
    ) in epochs.reason
    linear = one(less(), [3.0] * 5, [5.0] * 5)
    assert (linear.outcome, linear.interval, linear.effect) == (
        "inconclusive",
        None,
        -2.0,
    )
    assert "how much it varies from seed to seed is not known" in linear.reason
    eighths = judged(Claim.at_least("error", 0.5, scale="ranks"), {"a": [0.875] * 6})
    assert eighths.outcome == "supported"


def test_a_constant_difference_of_pairs_is_no_certainty() -> None:
    verdict = one(less(paired=True), [1.0, 2, 3, 4, 5], [2.0, 3, 4, 5, 6])
    assert verdict.outcome == "inconclusive"
    assert "All 5 seeds gave the same difference in error" in verdict.reason
    twice = one(
        Claim.equal("error", by="model", margin=0.5, paired=True),
        LOW,
        [2 * v for v in LOW],
    )
    assert "differ by the same factor in error in every seed" in twice.reason


def test_equal_values_are_exact_only_where_the_claim_says_so() -> None:
    claim = Claim.equal("error", by="model", margin=0.1)
    said = one(claim, [100.0] * 5, [101.0] * 5)
    assert said.outcome == "inconclusive"
    assert "such as a number of parameters, say exact=True in the claim" in said.reason
    rare = one(claim, [1.0] * 5, [1.0] * 5)
    assert rare.outcome == "inconclusive"


# --- correlations -------------------------------------------------------------


def table(conditions: int, seeds: int) -> Cells:
    rows, columns = np.divmod(np.arange(conditions * seeds), seeds)
    return Cells(rows, columns, (conditions,))


@pytest.mark.parametrize("paired", [False, True])
def test_whole_seeds_and_whole_conditions_change_places(paired: bool) -> None:
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(2, 3, 4))
    y = y + x
    null = []
    for rows in itertools.permutations(range(3)):
        for columns in (
            [tuple(range(4))] if paired else itertools.permutations(range(4))
        ):
            null.append(
                stats.kendalltau(x.ravel(), y[np.ix_(rows, columns)].ravel()).statistic
            )
    observed = stats.kendalltau(x.ravel(), y.ravel()).statistic
    found = contrast_correlation(
        x.ravel(), y.ravel(), table(3, 4), 0.0, DESIGN, paired=paired
    )
    assert found.effect == pytest.approx(observed)
    assert found.p_above == pytest.approx(np.mean(np.array(null) >= observed - 1e-9))
    assert len(null) == (6 if paired else 144)


def test_missing_trials_leave_a_valid_test() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    keep = np.arange(20) != 7
    cells = table(4, 5)
    short = Cells(cells.conditions[keep], cells.seeds[keep], (4,))
    found = contrast_correlation(x[keep], x[keep], short, 0.0, DESIGN, paired=False)
    assert found.effect == 1
    assert found.p_above < 0.01


def test_crossed_factors_are_exchanged_level_by_level_and_labels_are_not_factors() -> (
    None
):
    def shape(conditions: list[Condition]) -> tuple[int, ...]:
        return _cells([Record(c, s, {}) for c in conditions for s in range(3)]).factors

    crossed = [Condition(batch=b, rate=r) for b in (1, 2, 4) for r in (0.1, 0.2)]
    assert sorted(shape(crossed)) == [2, 3]
    assert shape(crossed[:-1]) == (5,)
    labeled = [Condition(network=n, course="A" if n < 3 else "B") for n in range(5)]
    assert shape(labeled) == (5,)
    assert shape([Condition(model="a")]) == (1,)


def test_a_factors_levels_stay_together() -> None:
    """Four networks by two rates: 24 times 2 exchanges, and 6 of seeds, not 8! of
    conditions.
    """
    generator = np.random.default_rng(0)
    records = Records(
        Record(
            Condition(network=n, rate=r),
            s,
            {"error": float(n) + 0.01 * s, "norm": float(n) + 0.1 * r},
        )
        for n in range(4)
        for r in range(2)
        for s in generator.permutation(3)
    )
    (verdict,) = judge([Claim.correlates("error", "norm")], records)
    # The rates' order is a matter of indifference to the error, and so are the seeds to
    # the norm.
    assert verdict.p_value == pytest.approx(2 * 6 / (24 * 2 * 6), abs=1 / 24)
    assert verdict.p_value is not None
    assert verdict.p_value >= 1 / 48


@pytest.mark.parametrize(
    ("quality", "trials", "seeds", "paired"),
    [
        ("none", 8, 8, False),
        ("networks", 8, 5, False),
        ("networks", 8, 5, True),
        ("fixed", 8, 10, False),
        ("rates", 8, 5, True),
    ],
)
def test_shared_luck_is_no_correlation(
    quality: str, trials: int, seeds: int, paired: bool
) -> None:
    """With trials as units 32 to 52 % of such runs were decided."""
    rates = measure(
        correlation("normal", seeds, trials, quality, paired=paired),
        runs=100,
        resamples=199,
    )
    assert max(rates.supported, rates.refuted) <= allowed(0.05, 100)


def test_a_correlation_that_is_there_is_found() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(30):
        x = generator.normal(size=(6, 5)) + 2 * generator.normal(size=(6, 1))
        y = x + 0.5 * generator.normal(size=(6, 5))
        records = Records(
            Record(
                Condition(network=c),
                s,
                {"error": float(x[c, s]), "norm": float(y[c, s])},
            )
            for c in range(6)
            for s in range(5)
        )
        found += [
            v.outcome
            for v in judge([Claim.correlates("error", "norm")], records, resamples=499)
        ]
    assert found.count("supported") >= 27


def test_too_few_conditions_are_named() -> None:
    generator = np.random.default_rng(0)
    records = Records(
        Record(
            Condition(network=c),
            s,
            {"error": c + generator.normal(), "norm": c + generator.normal()},
        )
        for c in range(3)
        for s in range(12)
    )
    (verdict,) = judge([Claim.correlates("error", "norm", paired=True)], records)
    assert verdict.outcome == "inconclusive"
    assert verdict.seeds_needed is None
    assert (
        "More seeds cannot decide it: with so few conditions p stays too large"
    ) in verdict.reason


# --- skewed values, outliers, and what so few seeds can decide at all ---------


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_bound_is_safe_from_skewed_values_in_both_directions(sign: int) -> None:
    generator = np.random.default_rng(8)
    wrong = 0
    for _ in range(200):
        values = 5 + sign * (np.exp(generator.normal(size=7)) - math.exp(0.5))
        make = Claim.at_most if sign > 0 else Claim.at_least
        (verdict,) = judge(
            [make("error", 5.0)],
            Records(records_of({"a": list(values)})),
            resamples=199,
        )
        wrong += verdict.outcome == "supported"
    assert wrong / 200 <= allowed(0.05, 200)


def test_outliers_are_named_with_what_holds() -> None:
    verdict = one(less(), [1.0, 1.1, 0.9, 1.05, 40.0], HIGH)
    assert verdict.outcome == "inconclusive"
    assert "1 of 5 values with model = a lies far from the rest" in verdict.reason
    assert "the scale 'ranks' compares what most seeds give" in verdict.reason
    assert "far from the rest" not in one(less(), LOW, HIGH).reason
    bound = judged(
        Claim.at_most("error", 60.0), {"a": [1.0, 1.1, 0.9, 1.05, 40.0, -40.0]}
    )
    assert "2 of 6 values lie far from the rest" in bound.reason


def test_the_method_says_what_few_seeds_miss() -> None:
    verdict = one(less(), LOW, HIGH)
    assert verdict.method.startswith(
        "Difference of means; permutation of Welch's t, one-sided; 95 % interval:"
    )
    assert (
        "5 seeds miss what befalls one seed in ten 59 % of the time"
    ) in verdict.method
    assert "miss what befalls" not in one(less(scale="ranks"), LOW, HIGH).method
    both = judge(
        [less(), less(scale="log10")], Records(records_of({"a": LOW, "b": HIGH}))
    )
    assert "Holm's correction for 2 claims." in both[1].method
    assert (
        Verdict.from_dict(
            {k: v for k, v in both[0].to_dict().items() if k != "method"}
        ).method
        == ""
    )


def test_a_claim_that_these_seeds_cannot_decide_says_so() -> None:
    """Two bounds with five seeds: p is at least 1/32, twice that after correction."""
    records = Records(records_of({"a": LOW, "b": HIGH}))
    claims = [Claim.at_most("error", 9.0, where={"model": m}) for m in "ab"]
    for verdict in judge(claims, records):
        assert verdict.outcome == "inconclusive"
        assert (
            "5 seeds cannot bring p below 0.031, 0.062 after correction for 2 claims"
        ) in verdict.reason
        assert verdict.seeds_needed is not None
        assert verdict.seeds_needed >= 6
    (alone,) = judge(claims[:1], records)
    assert alone.outcome == "supported"


@pytest.mark.parametrize(
    ("options", "shift", "seeds", "least"),
    [
        ({"paired": True}, 3.0, 5, 0.9),
        ({}, 3.0, 5, 0.9),
        ({"scale": "ranks"}, 3.0, 5, 0.9),
    ],
)
def test_a_clear_effect_is_found(
    options: dict[str, Any], shift: float, seeds: int, least: float
) -> None:
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        x, y = generator.normal(size=(2, seeds))
        y = np.zeros(seeds) if options.get("paired") else y
        records = Records(
            records_of({"a": list(x - shift), "b": list(y + 0.01 * np.arange(seeds))})
        )
        (verdict,) = judge([less(**options)], records, resamples=299)
        found += verdict.outcome == "supported"
    assert found / 60 >= least


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=3, max_size=12))
def test_an_interval_of_a_mean_holds_it(values: list[float]) -> None:
    assume(len(set(values)) > 1)
    low, high = interval_of_mean(values, resamples=199)
    mean = float(np.mean(values))
    assert math.isnan(low) or low - 1e-9 <= mean <= high + 1e-9
    assert math.isnan(low) or low < high


def test_the_grid_holds_every_kind_of_claim() -> None:
    kinds = {
        make("normal", 5, 4, **options).claims[0].kind
        for make, options in KINDS.values()
    }
    assert kinds == {"difference", "bound", "trend", "correlation", "equality"}
