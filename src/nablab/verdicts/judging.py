"""From claims and records to verdicts.

The decision rule, Holm's correction, and how many seeds it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nablab.contract import Claim, Level, Published, Records
from nablab.statistics.resampling import Design, holm
from nablab.statistics.small_samples import ALPHA
from nablab.verdicts.axis import Axis, axis_of
from nablab.verdicts.effects import effect_text
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.examining import examine
from nablab.verdicts.planning import Advice, advise, leans_against
from nablab.verdicts.wording import method, reason, sentence

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one claim in one scope.

    Attributes:
        claim: The claim in words.
        scope: The level of the claim's ``within`` factor, or nothing.
        outcome: ``supported``, ``refuted`` or ``inconclusive``.
        effect: Point estimate in ``unit``, or None.
        interval: Its confidence interval, or None.
        unit: Of the effect; empty for the metric's own.
        effect_text: Effect and interval in words.
        p_value: One-sided, for the side that the outcome is about.
        p_adjusted: After Holm's correction over all claims of the run.
        seeds: Number of seeds, of the smallest group.
        seeds_needed: About how many seeds it would take to decide; None if decided or
            if more would not help.
        reason: Why this outcome, in words.
        smallest_effect: The claim's smallest effect of interest.
        published: What somebody else reported, or None.
        measured_for_published: What was measured here of the same quantity.
        distance: Measured minus published.
        groups: By level: mean, median, number of values, number of NaN.
        method: Which test, interval and correction were used; empty in files of older
            versions.
        axis: Where the effect can be drawn; None where there is none, and in files of
            older versions.
        answer: What follows for the experiment's question; empty for claims that its
            answer leaves out.
        advice: What it would take to decide, as part of a sentence; empty where it is
            decided.
    """

    claim: str
    scope: Mapping[str, Level]
    outcome: Outcome
    effect: float | None
    interval: tuple[float, float] | None
    unit: str
    effect_text: str
    p_value: float | None
    p_adjusted: float | None
    seeds: int
    seeds_needed: int | None
    reason: str
    smallest_effect: float
    published: Published | None = None
    measured_for_published: float | None = None
    distance: float | None = None
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    method: str = ""
    axis: Axis | None = None
    answer: str = ""
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types; NaN and infinity as floats."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` wrote, also after a detour through JSON."""
        published, interval, axis = (
            content["published"],
            content["interval"],
            content.get("axis"),
        )
        return cls(
            **{
                **content,
                "published": Published(**published) if published else None,
                "interval": (float(interval[0]), float(interval[1]))
                if interval
                else None,
                "axis": Axis.from_dict(axis) if axis else None,
            }
        )


@dataclass(frozen=True)
class _Case:
    """A claim in a scope with its evidence."""

    claim: Claim
    scope: Mapping[str, Level]
    evidence: Evidence


def judge(
    claims: Sequence[Claim],
    records: Records,
    *,
    confidence: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
) -> list[Verdict]:
    """Answer every claim that the records speak of.

    A claim is supported when the whole interval of its effect lies beyond the smallest
    effect of interest on the claimed side and the test of the same threshold,
    Holm-corrected over all claims, gives less than 0.05. It is refuted when both hold
    for the other side. Otherwise it is inconclusive.

    Args:
        claims: What is claimed. A claim whose levels do not occur gives no verdict.
        records: One record per trial.
        confidence: Of the intervals, two-sided.
        resamples: Bootstrap resamples and random permutations (exact where they can be
            enumerated).
        seed: Of the resampling; the same input gives the same verdicts.

    Returns:
        One verdict per claim and scope, in order.

    Raises:
        UsageError: A claim makes no sense, such as a trend along names.
    """
    design = Design(confidence=confidence, resamples=resamples, seed=seed)
    cases = [case for claim in claims for case in _cases(claim, records, design)]
    supported = holm([_p(case.evidence, case.evidence.p_supported) for case in cases])
    refuted = holm([_p(case.evidence, case.evidence.p_refuted) for case in cases])
    family = sum(
        not case.evidence.exact and not case.evidence.failure for case in cases
    )
    return [
        _verdict(case, p_for, p_against, max(1, family), design)
        for case, p_for, p_against in zip(cases, supported, refuted, strict=True)
    ]


def _cases(claim: Claim, records: Records, design: Design) -> list[_Case]:
    chosen = records.where(**claim.where)
    levels = chosen.levels(claim.within) if claim.within else []
    scopes: list[dict[str, Level]] = (
        [{claim.within: level} for level in levels] if claim.within else [{}]
    )
    found = [(scope, examine(claim, chosen.where(**scope), design)) for scope in scopes]
    return [
        _Case(claim, scope, evidence)
        for scope, evidence in found
        if evidence is not None
    ]


def _p(evidence: Evidence, p: float) -> float:
    """Return the p-value, or NaN for an examination that is not part of the family.

    A failed or exact examination is not a test.
    """
    return math.nan if evidence.exact or evidence.failure else p


def _verdict(
    case: _Case, p_for: float, p_against: float, family: int, design: Design
) -> Verdict:
    claim, evidence = case.claim, case.evidence
    outcome = _outcome(evidence, p_for, p_against)
    against = outcome == "refuted" or (
        outcome == "inconclusive" and leans_against(claim, evidence)
    )
    p_value = evidence.p_refuted if against else evidence.p_supported
    p_adjusted = p_against if against else p_for
    advice = Advice()
    if outcome == "inconclusive":
        level = ALPHA / family
        advice = advise(claim, evidence, level, design.confidence, design.resamples)
    why = reason(
        claim, evidence, outcome, (p_value, p_adjusted), family, design.confidence
    )
    measured, distance = _published(claim, evidence)
    return Verdict(
        claim=sentence(claim, case.scope),
        scope=dict(case.scope),
        outcome=outcome,
        effect=evidence.effect,
        interval=evidence.interval,
        unit=evidence.unit,
        effect_text=effect_text(claim, evidence),
        p_value=None if math.isnan(p_value) else p_value,
        p_adjusted=None if math.isnan(p_adjusted) else p_adjusted,
        seeds=evidence.seeds,
        seeds_needed=advice.seeds,
        reason=" ".join(part for part in (why, advice.text, *evidence.caveats) if part),
        smallest_effect=claim.smallest_effect,
        published=claim.published,
        measured_for_published=measured,
        distance=distance,
        groups=evidence.groups,
        method=method(claim, evidence, family, design.confidence),
        axis=axis_of(claim, evidence),
        answer=_answer(claim, outcome),
        advice=advice.short,
    )


def _answer(claim: Claim, outcome: Outcome) -> str:
    """Say what the outcome means for the question, in the claim's own words."""
    if claim.answer is None:
        return ""
    open_ = claim.answer.open
    return {"supported": claim.answer.supported, "refuted": claim.answer.refuted}.get(
        outcome, open_
    )


def _outcome(evidence: Evidence, p_for: float, p_against: float) -> Outcome:
    if evidence.failure:
        return "inconclusive"
    if evidence.supports and (evidence.exact or p_for < ALPHA):
        return "supported"
    if evidence.refutes and (evidence.exact or p_against < ALPHA):
        return "refuted"
    return "inconclusive"


def _published(claim: Claim, evidence: Evidence) -> tuple[float | None, float | None]:
    if claim.published is None:
        return None, None
    measured = evidence.effect if claim.published.of == "effect" else evidence.measured
    return measured, None if measured is None else measured - claim.published.value
