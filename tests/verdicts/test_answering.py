"""The answer to the question: every word from the claims, nothing left out, nothing
invented.
"""

from __future__ import annotations

from typing import Any

import pytest

from nablab.contract import Answer, Claim, Records
from nablab.verdicts import Outcome, Verdict, answer, judge
from nablab.verdicts.answering import bare_claim, shared_scope
from tests.report.conftest import fake_verdict
from tests.verdicts.simulation import records_of
from tests.verdicts.test_judging import HIGH, LOW, MIDDLE, MIXED, less

DEPTH = Answer(
    supported="depth helps", refuted="depth does not help", open="whether depth helps"
)


def said(outcome: Outcome, phrase: str, **changes: Any) -> Verdict:
    return fake_verdict(outcome, answer=phrase, **{"scope": {}, **changes})


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (LOW, HIGH, "Depth helps."),
        (HIGH, LOW, "Depth does not help."),
        (MIXED, MIDDLE, "These seeds do not tell whether depth helps ("),
    ],
)
def test_each_outcome_has_its_own_phrase(
    a: list[float], b: list[float], text: str
) -> None:
    verdicts = judge([less(answer=DEPTH)], Records(records_of({"a": a, "b": b})))
    assert answer(verdicts).startswith(text)


def test_what_stays_open_names_the_seeds_that_would_decide() -> None:
    (verdict,) = judge(
        [less(answer=DEPTH)], Records(records_of({"a": LOW[:3], "b": HIGH[:3]}))
    )
    assert verdict.seeds_needed
    assert answer([verdict]) == (
        f"These seeds do not tell whether depth helps (about {verdict.seeds_needed} "
        "seeds would tell)."
    )


def test_decided_comes_first_then_what_is_open() -> None:
    verdicts = [
        said("inconclusive", "whether it is fast", advice="too few conditions"),
        said("supported", "it is large"),
        said("refuted", "it is not red"),
    ]
    assert answer(verdicts) == (
        "It is large; and it is not red. It stays open whether it is fast (too few "
        "conditions)."
    )


def test_one_phrase_for_several_levels_names_them() -> None:
    targets = ("sinc", "sign_sin", "sawtooth")
    records = Records(
        record
        for target, (a, b) in zip(
            targets, ((LOW, HIGH), (LOW, HIGH), (HIGH, LOW)), strict=True
        )
        for record in records_of({"a": a, "b": b}, target=target)
    )
    verdicts = judge([less(within="target", answer=DEPTH)], records)
    assert answer(verdicts) == (
        "Depth helps (target sinc and sign_sin); and depth does not help (target "
        "sawtooth)."
    )


def test_what_holds_for_every_level_says_so() -> None:
    targets = ("sinc", "sign_sin", "sawtooth")
    verdicts = [
        said("supported", "depth helps", scope={"target": target}) for target in targets
    ]
    assert answer(verdicts) == "Depth helps (every target)."


def test_levels_that_stay_open_for_different_reasons_name_them() -> None:
    open_ = "whether depth helps"
    verdicts = [
        said(
            "inconclusive",
            open_,
            scope={"target": "sinc"},
            seeds_needed=12,
            advice="about 12 seeds",
        ),
        said(
            "inconclusive",
            open_,
            scope={"target": "x"},
            seeds_needed=30,
            advice="about 30 seeds",
        ),
        said(
            "inconclusive",
            open_,
            scope={"target": "sign_sin"},
            advice="too few conditions",
        ),
    ]
    assert answer(verdicts) == (
        "These seeds do not tell whether depth helps "
        "(target sinc and x: about 30 seeds; target sign_sin: too few conditions)."
    )


def test_a_level_that_all_share_is_not_named() -> None:
    records = Records(records_of({"a": LOW, "b": HIGH}, target="sinc"))
    verdicts = judge([less(within="target", answer=DEPTH)], records)
    assert answer(verdicts) == "Depth helps."


def test_claims_without_a_meaning_are_named_themselves() -> None:
    verdicts = [
        fake_verdict(outcome, claim=f"Claim {number}", scope={})
        for number, outcome in enumerate(
            (
                "supported",
                "supported",
                "supported",
                "supported",
                "refuted",
                "inconclusive",
            ),
            1,
        )
    ]
    assert answer(verdicts) == (
        "Supported: Claim 1; Claim 2; and 2 more. Refuted: Claim 5. Open: Claim 6."
    )
    assert answer([]) == ""


def test_a_scope_is_shared_only_if_every_claim_has_it() -> None:
    one = fake_verdict(claim="A (target sinc)", scope={"target": "sinc"})
    other = fake_verdict(claim="B", scope={})
    assert shared_scope([one, one]) == {"target": "sinc"}
    assert shared_scope([one, other]) == shared_scope([one]) == shared_scope([]) == {}
    assert bare_claim(one, {"target": "sinc"}) == "A"
    assert bare_claim(one, {}) == "A (target sinc)"


def test_an_older_file_of_verdicts_has_no_axis_and_still_an_answer() -> None:
    (verdict,) = judge([Claim.at_most("error", 3.0)], Records(records_of({"a": LOW})))
    content = verdict.to_dict()
    assert Verdict.from_dict(content) == verdict
    for name in ("axis", "answer", "advice"):
        del content[name]
    older = Verdict.from_dict(content)
    assert older.axis is None
    assert answer([older]) == "Supported: Error is at most 3.00."
