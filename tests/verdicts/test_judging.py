"""The decision rule, its invariances, and what it makes of data that cannot be judged."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nablab.contract import Claim, Condition, Published, Record, Records
from nablab.errors import UsageError
from nablab.verdicts import Verdict, judge
from tests.verdicts.simulation import records_of

INF, NAN = math.inf, math.nan
LOW, MIDDLE, HIGH = (
    [1.0, 1.2, 0.9, 1.1, 1.05],
    [1.9, 2.3, 2.1, 2.2, 1.8],
    [4.0, 4.4, 3.8, 4.1, 4.2],
)
MIXED = [0.9, 4.1, 2.0, 1.3, 3.5]


def less(**options: Any) -> Claim:
    return Claim.less("error", "a", "b", by="model", **options)


def one(claim: Claim, a: list[float], b: list[float], **options: Any) -> Verdict:
    (verdict,) = judge([claim], Records(records_of({"a": a, "b": b})), **options)
    return verdict


# --- the rule -----------------------------------------------------------------


@pytest.mark.parametrize("scale", ["linear", "log10", "ranks"])
@pytest.mark.parametrize("d", [0.0, 0.1])
def test_three_outcomes_of_a_difference(scale: str, d: float) -> None:
    claim = less(scale=scale, smallest_effect=d)
    assert one(claim, LOW, HIGH).outcome == "supported"
    assert one(claim, HIGH, LOW).outcome == "refuted"
    assert one(claim, MIXED, MIDDLE).outcome == "inconclusive"


def test_an_effect_short_of_the_smallest_is_refuted_although_it_has_the_claimed_sign() -> (
    None
):
    verdict = one(less(smallest_effect=2.0), LOW, MIDDLE)
    assert verdict.effect is not None
    assert -2.0 < verdict.effect < 0
    assert verdict.outcome == "refuted"
    assert one(less(smallest_effect=0.5), LOW, MIDDLE).outcome == "supported"
    assert one(less(smallest_effect=1.0), LOW, MIDDLE).outcome == "inconclusive"


def test_the_effect_is_first_minus_second() -> None:
    verdict = one(less(), LOW, HIGH)
    assert verdict.effect == pytest.approx(1.05 - 4.1)
    assert verdict.interval is not None
    assert verdict.interval[0] < verdict.effect < verdict.interval[1] < 0
    assert verdict.p_value == verdict.p_adjusted == 1 / 252
    ratio = one(less(scale="log10"), LOW, [100 * value for value in LOW])
    assert ratio.effect == pytest.approx(-2)


def test_p_alone_or_the_interval_alone_decides_nothing() -> None:
    """Three seeds: the interval is clear, but p cannot be below 1/20. Five ranks: the
    other way round.
    """
    three = one(less(), LOW[:3], HIGH[:3])
    assert three.interval is not None
    assert three.interval[1] < 0
    assert three.p_value == 1 / 20
    assert three.outcome == "inconclusive"
    ranks = one(less(scale="ranks", paired=True), LOW, HIGH)
    assert ranks.p_value == 1 / 32
    assert ranks.interval is not None
    assert ranks.interval[1] > 0
    assert ranks.outcome == "inconclusive"
    assert one(less(scale="ranks", paired=True), LOW[:1], HIGH[:1]).seeds_needed == 6


@pytest.mark.parametrize(("seeds", "decided"), [(3, False), (4, True)])
def test_four_seeds_are_the_fewest_that_decide(seeds: int, decided: bool) -> None:
    assert (one(less(), LOW[:seeds], HIGH[:seeds]).outcome == "supported") is decided
    assert one(less(), LOW[:1], HIGH[:1]).seeds_needed == 4


def test_bounds() -> None:
    def outcome(claim: Claim) -> str:
        return judge([claim], Records(records_of({"a": [*LOW, 1.0]})))[0].outcome

    for scale in ("linear", "log10", "ranks"):
        assert outcome(Claim.at_most("error", 2.0, scale=scale)) == "supported"
        assert outcome(Claim.at_most("error", 0.5, scale=scale)) == "refuted"
        assert outcome(Claim.at_least("error", 0.5, scale=scale)) == "supported"
        assert outcome(Claim.at_least("error", 2.0, scale=scale)) == "refuted"
        assert outcome(Claim.at_least("error", 1.02, scale=scale)) == "inconclusive"
    assert outcome(Claim.at_most("error", 2.0, smallest_effect=0.5)) == "supported"
    assert outcome(Claim.at_most("error", 2.0, smallest_effect=1.5)) == "refuted"


def trend_records(slope: float, seeds: int = 5, noise: float = 0.3) -> Records:
    generator = np.random.default_rng(0)
    return Records(
        Record(
            Condition(width=width),
            seed,
            {"error": slope * step + noise * generator.normal()},
        )
        for step, width in enumerate((1, 2, 4))
        for seed in range(seeds)
    )


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("d", [0.0, 0.1])
def test_trends(paired: bool, d: float) -> None:
    rises = Claim.rises("error", by="width", paired=paired, smallest_effect=d)
    falls = Claim.falls("error", by="width", paired=paired, smallest_effect=d)
    for records, up, down in (
        (trend_records(1), "supported", "refuted"),
        (trend_records(-1), "refuted", "supported"),
    ):
        assert [v.outcome for v in judge([rises], records)] == [up]
        assert [v.outcome for v in judge([falls], records)] == [down]
    assert judge([rises], trend_records(0.05))[0].outcome == "inconclusive"


def test_correlations() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=12)
    noise = 0.2 * generator.normal(size=12)
    for sign in (-1, 1):
        records = Records(
            Record(
                Condition(model="a"), s, {"error": x[s], "norm": sign * x[s] + noise[s]}
            )
            for s in range(12)
        )
        outcomes = [
            v.outcome
            for claimed in (-1, 1)
            for v in judge([Claim.correlates("error", "norm", sign=claimed)], records)
        ]
        assert outcomes == (
            ["supported", "refuted"] if sign < 0 else ["refuted", "supported"]
        )


@pytest.mark.parametrize("scale", ["linear", "log10"])
@pytest.mark.parametrize("paired", [False, True])
def test_equality(scale: str, paired: bool) -> None:
    claim = Claim.equal("error", by="model", margin=0.5, scale=scale, paired=paired)
    near = [1.1, 1.15, 1.0, 1.05, 0.95]
    assert one(claim, LOW, near).outcome == "supported"
    assert one(claim, near, LOW).outcome == "supported"
    ten = [10 * value for value in near]
    assert one(claim, LOW * 2, ten * 2).outcome == "refuted"
    assert one(claim, ten * 2, LOW * 2).outcome == "refuted"
    assert one(replace(claim, margin=0.02), LOW, near).outcome == "inconclusive"


def test_exact_quantities_need_no_test_but_two_seeds() -> None:
    claim = Claim.equal("error", by="model", margin=0.02, exact=True)
    equal, unequal = (
        one(claim, [100.0] * 2, [101.0] * 2),
        one(claim, [100.0] * 2, [103.0] * 2),
    )
    assert (equal.outcome, unequal.outcome) == ("supported", "refuted")
    assert equal.effect == pytest.approx(0.01)
    assert equal.p_value is None
    assert "Exact" in equal.reason
    assert one(claim, [0.0] * 2, [1.0] * 2).outcome == "refuted"
    assert "infinite" in one(claim, [0.0] * 2, [1.0] * 2).reason
    assert one(claim, [0.0] * 2, [0.0] * 2).outcome == "supported"
    single = one(claim, [100.0], [101.0])
    assert single.outcome == "inconclusive"
    assert "1 seed cannot" in single.reason
    varying = one(claim, LOW, LOW[::-1])
    assert "calls the values exact, but they differ" in varying.reason


# --- families -----------------------------------------------------------------


def test_holm_over_the_claims_of_a_call() -> None:
    """Four seeds give p = 1/70: three claims carry it (0.043), four do not (0.057)."""
    for members, outcome in ((1, "supported"), (3, "supported"), (4, "inconclusive")):
        records = [
            r
            for k in range(members)
            for r in records_of({"a": LOW[:4], "b": HIGH[:4]}, target=str(k))
        ]
        verdicts = judge([less(within="target")], Records(records))
        assert [v.outcome for v in verdicts] == [outcome] * members
        assert verdicts[0].p_value == pytest.approx(1 / 70)
        assert verdicts[0].p_adjusted == pytest.approx(members / 70)
        assert [v.scope for v in verdicts] == [
            {"target": str(k)} for k in range(members)
        ]


def test_refutations_have_a_family_of_their_own() -> None:
    records = Records(
        [
            *records_of({"a": LOW[:4], "b": HIGH[:4]}, target="x"),
            *records_of({"a": HIGH[:4], "b": LOW[:4]}, target="y"),
        ]
    )
    first, second = judge([less(within="target")], records)
    assert (first.outcome, second.outcome) == ("supported", "refuted")
    assert first.p_adjusted == second.p_adjusted == pytest.approx(2 / 70)


def test_claims_without_a_test_do_not_count_in_the_family() -> None:
    records = [
        Record(
            Condition(model=model),
            seed,
            {"error": value, "parameters": 100.0, "failed": NAN},
        )
        for model, values in (("a", LOW[:4]), ("b", HIGH[:4]))
        for seed, value in enumerate(values)
    ]
    others = [Claim.equal("parameters", by="model", margin=0.01)] * 3
    others += [
        Claim.less("failed", "a", "b", by="model"),
        Claim.less("error", "a", "c", by="model"),
    ]
    verdicts = judge([less(), *others], Records(records))
    assert len(verdicts) == 5
    assert verdicts[0].p_adjusted == pytest.approx(1 / 70)
    assert "correction" not in verdicts[0].reason


# --- invariances --------------------------------------------------------------

values = st.lists(st.floats(0.01, 100.0), min_size=4, max_size=6).filter(
    lambda side: len(set(side)) > 1
)


@settings(max_examples=40, deadline=None)
@given(values, values, st.sampled_from(["linear", "log10", "ranks"]))
def test_swapping_the_levels_and_the_sign_changes_nothing(
    a: list[float], b: list[float], scale: str
) -> None:
    records = Records(records_of({"a": a, "b": b}))
    (forward,) = judge([less(scale=scale)], records)
    (backward,) = judge(
        [Claim.greater("error", "b", "a", by="model", scale=scale)], records
    )
    assert forward.effect == pytest.approx(-(backward.effect or 0.0), abs=1e-12)
    assert forward.p_value == pytest.approx(backward.p_value)
    if scale == "ranks":
        assert forward.outcome == backward.outcome
        low, high = backward.interval or (NAN, NAN)
        assert forward.interval == pytest.approx((-high, -low))


@settings(max_examples=40, deadline=None)
@given(
    values,
    values,
    st.sampled_from([0.001, 8.0, 1e6]),
    st.sampled_from(["linear", "log10", "ranks"]),
)
def test_units_do_not_matter(
    a: list[float], b: list[float], unit: float, scale: str
) -> None:
    d = 0.3
    plain = one(less(scale=scale, smallest_effect=d), a, b)
    scaled_d = d * unit if scale == "linear" else d
    scaled = one(
        less(scale=scale, smallest_effect=scaled_d),
        [unit * v for v in a],
        [unit * v for v in b],
    )
    assert scaled.p_value == pytest.approx(plain.p_value)
    factor = unit if scale == "linear" else 1.0
    assert scaled.interval == pytest.approx(
        [factor * v for v in plain.interval or ()], rel=1e-6, abs=1e-9
    )
    limit = -d
    if min(abs(v - limit) for v in plain.interval or ()) > 1e-9:
        assert scaled.outcome == plain.outcome


EVERY_KIND = (
    less(),
    less(scale="log10", smallest_effect=0.1),
    less(scale="ranks", paired=True),
    Claim.at_most("error", 2.0),
    Claim.rises("error", by="width"),
    Claim.rises("error", by="width", paired=True),
    Claim.correlates("error", "norm"),
    Claim.correlates("error", "norm", paired=True),
    Claim.equal("error", by="model", margin=0.3),
)


def mixed_records() -> list[Record]:
    generator = np.random.default_rng(5)
    return [
        Record(
            Condition(model=m, width=w),
            s,
            dict(zip(("error", "norm"), generator.gamma(2, size=2), strict=True)),
        )
        for m, w, s in itertools.product("ab", (1, 2), range(5))
    ]


def test_the_order_of_the_records_does_not_matter_and_the_seed_fixes_the_answer() -> (
    None
):
    records = mixed_records()
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    first = judge(EVERY_KIND, Records(records))
    assert len(first) == len(EVERY_KIND)
    for verdict, other in zip(first, judge(EVERY_KIND, Records(shuffled)), strict=True):
        same = replace(other, groups=verdict.groups)
        assert same == verdict
    assert judge(EVERY_KIND, Records(records)) == first
    assert judge(EVERY_KIND, Records(records), seed=1) != first


def test_trials_of_one_seed_are_no_independent_evidence() -> None:
    """Five targets of three seeds are three values a side, and three seeds decide
    nothing.
    """
    records = [
        r for k in range(5) for r in records_of({"a": LOW[:3], "b": HIGH[:3]}, target=k)
    ]
    (verdict,) = judge([less()], Records(records))
    assert verdict.seeds == 3
    assert verdict.outcome == "inconclusive"
    (alone,) = judge([less()], Records(records_of({"a": LOW[:3], "b": HIGH[:3]})))
    assert verdict.effect == pytest.approx(alone.effect)


def test_pairs_are_matched_by_seed() -> None:
    generator = np.random.default_rng(2)
    shared = 10 * generator.normal(size=8)
    a = dict(enumerate(shared + 0.1 * generator.normal(size=8)))
    records = [Record(Condition(model="a"), s, {"error": v}) for s, v in a.items()]
    records += [
        Record(Condition(model="b"), s, {"error": a[s] + 1.0 + 0.01 * s})
        for s in reversed(range(8))
    ]
    records += [Record(Condition(model="b"), 99, {"error": -1e6})]
    (paired,) = judge([less(paired=True)], Records(records))
    assert paired.outcome == "supported"
    assert paired.effect == pytest.approx(-1.035)
    assert paired.p_value == 1 / 2**8
    assert paired.seeds == 8
    assert judge([less()], Records(records))[0].outcome == "inconclusive"


def test_where_within_and_absent_levels() -> None:
    records = Records(
        [
            *records_of({"a": LOW, "b": HIGH}, target="x"),
            *records_of({"a": HIGH, "b": LOW}, target="y"),
            *records_of({"a": HIGH}, target="z"),
        ]
    )
    by_target = judge([less(within="target")], records)
    assert [(v.scope["target"], v.outcome) for v in by_target] == [
        ("x", "supported"),
        ("y", "refuted"),
    ]
    (only,) = judge([less(where={"target": "y"})], records)
    assert (only.scope, only.outcome) == ({}, "refuted")
    assert (
        judge(
            [less(where={"target": "z"}), Claim.less("error", "a", "q", by="model")],
            records,
        )
        == []
    )
    assert judge(EVERY_KIND, Records([])) == []
    assert (
        judge([Claim.rises("error", by="model", where={"model": "a"})], records) == []
    )


# --- data that cannot be judged -----------------------------------------------

BAD = {
    "all NaN": [NAN] * 5,
    "some NaN": [1.0, NAN, 2.0, 1.5, NAN],
    "one not NaN": [NAN, NAN, 1.0, NAN, NAN],
    "some inf": [1.0, INF, 2.0, 1.5, 1.2],
    "all inf": [INF] * 5,
    "both infinities": [INF, -INF, 1.0, 2.0, NAN],
    "zeros": [0.0, 0.0, 1.0, 2.0, 3.0],
    "all zero": [0.0] * 5,
    "negative": [-1.0, -2.0, -3.0, 1.0, 2.0],
    "constant": [2.0] * 5,
    "huge": [1e308, 1.1e308, 1e308, 1.2e308, 1e308],
    "tiny": [1e-308, 2e-308, 1e-308, 5e-324, 1e-308],
    "one": [1.0],
    "two": [1.0, 2.0],
}


@pytest.mark.parametrize("scale", ["linear", "log10", "ranks"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("one_side", "other_side"),
    list(itertools.product(BAD, ["constant", "negative", "all inf"])),
)
def test_no_data_raise_or_warn_and_every_verdict_says_why(
    one_side: str, other_side: str, scale: str, paired: bool
) -> None:
    records = []
    for width, name in ((1, one_side), (2, other_side)):
        for seed, value in enumerate(BAD[name]):
            records.append(
                Record(Condition(width=width), seed, {"error": value, "norm": -value})
            )
    options: dict[str, Any] = {"scale": scale, "paired": paired}
    claims = [
        Claim.less("error", 1, 2, by="width", smallest_effect=0.1, **options),
        Claim.at_most("error", 1.0, where={"width": 1}, **options),
        Claim.rises("error", by="width", **options),
        Claim.correlates("error", "norm", **options),
    ]
    if scale != "ranks":
        claims.append(Claim.equal("error", by="width", margin=0.1, **options))
    for verdict in judge(claims, Records(records), resamples=199):
        assert verdict.reason.endswith((".", ")."))
        assert "nan" not in verdict.reason
        assert (
            Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))).outcome
            == verdict.outcome
        )
        if verdict.outcome != "inconclusive":
            assert verdict.effect is not None or "infinite" in verdict.reason


@pytest.mark.parametrize(
    ("data", "scale", "said"),
    [
        ("all NaN", "linear", "Every trial with model = a ended in NaN."),
        ("all NaN", "ranks", "Every trial with model = a ended in NaN."),
        (
            "some NaN",
            "linear",
            "2 of 5 trials with model = a ended in NaN and are left out.",
        ),
        (
            "some NaN",
            "ranks",
            "2 of 10 trials ended in NaN; each counts against the conclusion.",
        ),
        (
            "some inf",
            "linear",
            "infinite and have no mean; the scale 'ranks' can compare them.",
        ),
        ("zeros", "log10", "2 zeros count as 1, the smallest positive value."),
        (
            "negative",
            "log10",
            "Some values of error are negative and have no logarithm.",
        ),
        (
            "huge",
            "linear",
            "too large or too small for the scale 'linear'; use 'log10'.",
        ),
        ("one", "linear", "1 seed cannot show how much the result varies"),
    ],
)
def test_what_was_left_out_is_said(data: str, scale: str, said: str) -> None:
    assert said in one(less(scale=scale), BAD[data], HIGH).reason


def test_nan_cannot_make_a_ranking_better() -> None:
    """A network that failed is no evidence for the claim, nor against it."""
    good = one(less(scale="ranks"), LOW * 2, HIGH * 2)
    holes = [*LOW, NAN, NAN, NAN, *LOW[:2]]
    worse = one(less(scale="ranks"), holes, HIGH * 2)
    assert good.outcome == "supported"
    assert (worse.p_value or 0) > (good.p_value or 0)
    back = one(less(scale="ranks"), HIGH * 2, [*LOW, NAN, NAN, NAN, *LOW[:2]])
    assert (back.p_value or 0) > (
        one(less(scale="ranks"), HIGH * 2, LOW * 2).p_value or 0
    )


def test_claims_that_make_no_sense() -> None:
    records = Records(records_of({"a": LOW, "b": HIGH}))
    for claim, said in (
        (Claim.rises("error", by="model"), "numeric levels"),
        (Claim.at_most("error", -1.0, scale="log10"), "bound must be above 0"),
        (
            Claim.equal("error", by="model", margin=0.1, scale="ranks"),
            "'linear' or 'log10'",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            judge([claim], records)


# --- verdicts as data ---------------------------------------------------------


def test_verdicts_survive_json() -> None:
    published = Published(-1.5, "somebody")
    claims = (*EVERY_KIND, less(published=published, within="width"))
    for verdict in judge(claims, Records(mixed_records())):
        assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_published_values_stand_beside_the_measured_ones() -> None:
    effect = one(
        less(scale="log10", published=Published(-0.5, "them")),
        LOW,
        [100 * value for value in LOW],
    )
    assert effect.measured_for_published == pytest.approx(-2)
    assert effect.distance == pytest.approx(-1.5)
    metric = one(less(published=Published(1.0, "them", of="metric")), LOW, HIGH)
    assert metric.measured_for_published == pytest.approx(1.05)
    assert metric.distance == pytest.approx(0.05)
    median = one(
        less(scale="ranks", published=Published(1.0, "them", of="metric")),
        [1.0, 5, 3, 2, INF],
        HIGH,
    )
    assert median.measured_for_published == 3
    missing = one(less(published=Published(1.0, "them", of="metric")), [NAN] * 5, HIGH)
    assert (missing.measured_for_published, missing.distance) == (None, None)


def test_groups_are_summarized_by_level() -> None:
    verdict = one(less(scale="ranks"), [1.0, NAN, 4.0, 2.0, INF], HIGH)
    assert verdict.groups["a"] == {"mean": INF, "median": 3.0, "n": 4, "nan": 1}
    assert verdict.groups["b"]["mean"] == pytest.approx(4.1)


# --- advice -------------------------------------------------------------------


def test_the_fewest_seeds_take_the_family_into_account() -> None:
    """1 / C(2n, n) has to be below 0.05 / 6: five seeds give 1/252, four 1/70."""
    records = Records(
        r for k in range(6) for r in records_of({"a": [1.0], "b": [2.0]}, target=k)
    )
    assert {v.seeds_needed for v in judge([less(within="target")], records)} == {5}
    assert {
        v.seeds_needed for v in judge([less(within="target", paired=True)], records)
    } == {7}


def test_ranks_need_as_many_seeds_as_their_interval() -> None:
    ranks = one(less(scale="ranks", smallest_effect=0.6), LOW[:1], HIGH[:1])
    needed = ranks.seeds_needed or 0
    for seeds, outcome in ((needed - 1, "inconclusive"), (needed, "supported")):
        a, b = list(np.arange(seeds, dtype=float)), list(np.arange(seeds) + 100.0)
        assert one(less(scale="ranks", smallest_effect=0.6), a, b).outcome == outcome


def test_no_number_of_seeds_is_promised_where_the_effect_is_on_the_line() -> None:
    verdict = one(less(), [1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5.001])
    assert verdict.seeds_needed is None
    assert "more seeds would hardly decide" in verdict.reason
    assert one(less(), LOW, HIGH).seeds_needed is None


def test_too_few_resamples_for_the_family_are_named() -> None:
    records = Records(
        r for k in range(6) for r in records_of({"a": MIXED, "b": MIDDLE}, target=k)
    )
    (verdict, *_) = judge([less(within="target")], records, resamples=99)
    assert verdict.seeds_needed is None
    assert "more than 99 resamples" in verdict.reason
