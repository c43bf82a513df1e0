"""Every sentence that a reader can meet."""

from __future__ import annotations

from typing import Any

import pytest

from nablab.contract import Claim, Condition, Record, Records
from nablab.errors import UsageError
from nablab.text.naming import words
from nablab.verdicts import judge
from nablab.verdicts.effects import number
from nablab.verdicts.wording import sentence
from tests.verdicts.simulation import records_of
from tests.verdicts.test_judging import (
    HIGH,
    LOW,
    MIDDLE,
    MIXED,
    less,
    one,
    trend_records,
)

SAME = [2.0, 2.1, 1.9, 2.05, 1.95]


@pytest.mark.parametrize(
    ("options", "a", "b", "effect", "reason"),
    [
        (
            {},
            LOW,
            HIGH,
            "error 3.05 lower for a than for b (",
            "The whole 95 % interval lies on the claimed side, p = 0.004.",
        ),
        (
            {},
            HIGH,
            LOW,
            "error 3.05 higher for a than for b (",
            "The whole 95 % interval lies on the opposite side, p = 0.004.",
        ),
        (
            {},
            MIXED,
            MIDDLE,
            "error 0.300 higher for a than for b (",
            "The 95 % interval includes 'no difference', and p = 0.3",
        ),
        (
            {"smallest_effect": 0.5},
            LOW,
            HIGH,
            "error 3.05 lower for a than for b (",
            "lies beyond the smallest effect of interest, 0.500 lower, p = 0.004.",
        ),
        (
            {"smallest_effect": 2.0},
            LOW,
            MIDDLE,
            "error 1.01 lower for a than for b (",
            "lies short of the smallest effect of interest, 2.00 lower, p = 0.004.",
        ),
        (
            {"smallest_effect": 1.0},
            LOW,
            MIDDLE,
            "error 1.01 lower for a than for b (",
            "The 95 % interval includes the smallest effect of interest, 1.00 lower, and "
            "p = ",
        ),
        (
            {"scale": "log10"},
            LOW,
            HIGH,
            "error 3.9 times lower for a than for b (",
            "lies on the claimed side",
        ),
        (
            {"scale": "log10", "smallest_effect": 0.176},
            MIXED,
            MIDDLE,
            "times lower for a than for b (",
            "includes the smallest effect of interest, 1.5 times lower, and p = ",
        ),
        (
            {"scale": "ranks", "smallest_effect": 0.3},
            MIXED,
            MIDDLE,
            "error lower for a than for b in 52 % of pairs (",
            "includes the smallest effect of interest, lower in 65 % of pairs, and p = ",
        ),
        (
            {"scale": "ranks", "smallest_effect": 0.3, "paired": True},
            MIXED,
            MIDDLE,
            "% of seeds (",
            "includes the smallest effect of interest, lower in 65 % of seeds, and p = ",
        ),
        (
            {},
            [2.0] * 5,
            [2.0] * 5,
            "no difference in error for a and for b",
            "All 5 seeds gave the same error, so how much it varies from seed to seed is "
            "not known.",
        ),
        (
            {},
            [0.2502] * 5,
            HIGH,
            "error 3.85 lower for a than for b",
            "All 5 seeds with model = a gave the same error, 0.2502: they look like "
            "copies",
        ),
        (
            {},
            LOW[:3],
            HIGH[:3],
            "lower for a than for b (",
            "The whole 95 % interval lies on the claimed side, but p = 0.05 is not below "
            "0.05. 3 seeds cannot",
        ),
        (
            {},
            LOW[:1],
            HIGH[:1],
            "",
            "1 seed cannot show how much the result varies from seed to seed. It takes at "
            "least 4 seeds.",
        ),
    ],
)
def test_differences(
    options: dict[str, Any], a: list[float], b: list[float], effect: str, reason: str
) -> None:
    verdict = one(less(**options), a, b)
    assert effect in verdict.effect_text
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("claim", "effect", "reason"),
    [
        (
            Claim.at_most("error", 3.0),
            "mean error 1.05 (",
            "lies below the bound of 3.00, p = 0.03",
        ),
        (
            Claim.at_least("error", 3.0),
            "; claimed: at least 3.00",
            "lies below the bound of 3.00, p = 0.03",
        ),
        (
            Claim.at_most("error", 1.06),
            "mean error 1.05 (",
            "includes the bound of 1.06",
        ),
        (
            Claim.at_most("error", 3.0, smallest_effect=1.0),
            "mean error 1.05 (",
            "lies below 2.00, which is the bound of 3.00 less the smallest effect of "
            "interest (1.00), p = 0.03",
        ),
        (
            Claim.at_most("error", 10.0, scale="log10", smallest_effect=1.0),
            "geometric mean error 1.05 (",
            "includes 1.00, which is the bound of 10.0 divided by the smallest effect of "
            "interest (10.0)",
        ),
        (
            Claim.at_most("error", 1.06, scale="ranks"),
            "below 1.06 in 60 % of seeds (",
            "includes the point where as many seeds lie below 1.06 as above",
        ),
    ],
)
def test_bounds(claim: Claim, effect: str, reason: str) -> None:
    (verdict,) = judge([claim], Records(records_of({"a": LOW})))
    assert effect in verdict.effect_text
    assert reason in verdict.reason


def test_trends_and_equality() -> None:
    (trend,) = judge(
        [Claim.rises("error", by="width", smallest_effect=0.3)], trend_records(0.15)
    )
    assert trend.effect_text.startswith(
        "no clear tendency of error with width (Kendall's tau 0."
    )
    assert (
        "includes the smallest effect of interest, tau 0.300, and p = "
    ) in trend.reason
    (trend,) = judge([Claim.rises("error", by="width")], trend_records(0.05))
    assert "The 95 % interval includes zero, and p = " in trend.reason
    (trend,) = judge([Claim.rises("error", by="width")], trend_records(1.0))
    assert trend.effect_text.startswith("error rising with width (Kendall's tau 0.")
    equal = one(Claim.equal("error", by="model", margin=0.5), SAME, [*SAME[1:], 2.2])
    assert equal.effect_text.startswith(
        "largest difference in error from one model to another "
    )
    assert "lies within the margin of 50 %, p = 0.004." in equal.reason
    beyond = one(Claim.equal("error", by="model", margin=0.05), LOW, HIGH)
    assert "lies beyond the margin of 5 %, p = 0.0079." in beyond.reason


def test_corrections_are_counted() -> None:
    records = Records(
        r for k in "xy" for r in records_of({"a": LOW, "b": HIGH}, target=k)
    )
    verdict = judge([less(within="target")], records)[0]
    assert verdict.reason.endswith("p = 0.0079 after correction for 2 claims.")


def test_generated_sentences() -> None:
    claims = (
        (less(), "Error is lower for a than for b"),
        (
            Claim.greater("held_out_mse", "a", "b", by="model"),
            "Held-out MSE is higher for a than for b",
        ),
        (
            Claim.less("error", 0.9, 0.0, by="momentum"),
            "Error is lower at momentum 0.9 than at momentum 0",
        ),
        (Claim.rises("error", by="hidden_units"), "Error rises with hidden units"),
        (Claim.falls("error", by="width"), "Error falls with width"),
        (Claim.correlates("error", "norm"), "Error and norm rise together"),
        (
            Claim.correlates("error", "norm", sign=-1),
            "Error and norm oppose each other",
        ),
        (Claim.at_most("error", 0.5), "Error is at most 0.500"),
        (Claim.at_least("error", 1234), "Error is at least 1,230"),
        (
            Claim.equal("error", by="model", margin=0.01),
            "Error is the same within 1 % for every model",
        ),
    )
    for claim, text in claims:
        assert sentence(claim, {}) == text
        assert sentence(claim, {"target": "sinc"}) == f"{text} (target sinc)"


def test_sentences_of_the_claims_own() -> None:
    fields = less(sentence="{first} beats {second} in {metric} on {level} ({scope})")
    assert sentence(fields, {"target": "sinc"}) == (
        "a beats b in error on sinc (target sinc)"
    )
    assert (
        sentence(less(sentence="Depth helps"), {"target": "sinc"})
        == "Depth helps (target sinc)"
    )
    assert sentence(less(sentence="Depth helps"), {}) == "Depth helps"


@pytest.mark.parametrize(
    "text",
    ["{frist} wins", "{} wins", "{first wins", "{first.name} wins", "{first[x]}"],
)
def test_sentences_with_bad_fields_name_the_good_ones(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"cannot be filled in.*\{first\}, \{second\}, \{metric\}"
    ):
        judge([less(sentence=text)], Records(records_of({"a": LOW, "b": HIGH})))


def test_numbers_and_words() -> None:
    assert [number(v) for v in (0.0, 0.99999, -12.345, 5e-7, float("inf"))] == [
        "0",
        "1.00",
        "-12.3",
        "5.00e-07",
        "inf",
    ]
    assert words("test_mse") == "test MSE"


def test_ratios_near_one_keep_their_digits() -> None:
    slightly = one(less(scale="log10"), [1.0] * 5, [1.04] * 5)
    assert slightly.effect_text.startswith("error 1.04 times lower for a than for b")
    large = one(less(scale="log10"), [1.0] * 5, [1.2e4] * 5)
    assert large.effect_text.startswith("error 12,000 times lower for a than for b")


def test_levels_that_are_numbers_come_with_their_factor() -> None:
    claim = Claim.less("error", 8.0, 0.5, by="ratio")
    records = Records(
        Record(Condition(ratio=ratio), seed, {"error": value})
        for ratio, values in ((8.0, LOW), (0.5, HIGH))
        for seed, value in enumerate(values)
    )
    (verdict,) = judge([claim], records)
    assert verdict.effect_text.startswith(
        "error 3.05 lower at ratio 8 than at ratio 0.5 ("
    )


def test_a_claim_may_name_its_quantity() -> None:
    named = one(less(quantity="test error of the network"), LOW, HIGH)
    assert named.effect_text.startswith(
        "test error of the network 3.05 lower for a than for b"
    )
    assert named.claim == "Test error of the network is lower for a than for b"


def test_a_mean_never_looks_like_the_bound_that_it_passes() -> None:
    claim = Claim.at_least("error", 0.999, quantity="accuracy")
    (verdict,) = judge(
        [claim], Records(records_of({"a": [0.9994, 0.9996, 0.9995, 0.9993, 0.9997]}))
    )
    assert verdict.effect_text.startswith("mean accuracy 0.99950 (0.99905 to ")
    assert verdict.effect_text.endswith("; claimed: at least 0.999")
