"""From claims and records to verdicts: the decision rule, Holm's correction, and how many seeds it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scipy.special import ndtri

from nablab.experiment import Claim, Level, Published, Records
from nablab.verdicts.evidence import Evidence, examine
from nablab.verdicts.resampling import Design, holm
from nablab.verdicts.wording import effect_text, number, sentence

Outcome = Literal["supported", "refuted", "inconclusive"]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1_000  # beyond it the advice is to think again, not to buy seeds


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
        seeds_needed: About how many seeds it would take to decide; None if decided or if more would not help.
        reason: Why this outcome, in words.
        smallest_effect: The claim's smallest effect of interest.
        published: What somebody else reported, or None.
        measured_for_published: What was measured here of the same quantity.
        distance: Measured minus published.
        groups: By level: mean, median, number of values, number of NaN.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN and infinity as floats."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_dict`, also after a detour through JSON."""
        published, interval = content["published"], content["interval"]
        return cls(
            **{
                **content,
                "published": Published(**published) if published else None,
                "interval": (float(interval[0]), float(interval[1])) if interval else None,
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

    A claim is supported when the whole interval of its effect lies beyond the smallest effect of
    interest on the claimed side and the test of the same threshold, Holm-corrected over all claims,
    gives less than 0.05. It is refuted when both hold for the other side. Otherwise it is inconclusive.

    Args:
        claims: What is claimed. A claim whose levels do not occur gives no verdict.
        records: One record per trial.
        confidence: Of the intervals, two-sided.
        resamples: Bootstrap resamples and random permutations (exact where they can be enumerated).
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
    family = sum(not case.evidence.exact and not case.evidence.failure for case in cases)
    return [
        _verdict(case, p_for, p_against, max(1, family), confidence)
        for case, p_for, p_against in zip(cases, supported, refuted, strict=True)
    ]


def _cases(claim: Claim, records: Records, design: Design) -> list[_Case]:
    chosen = records.where(**claim.where)
    levels = chosen.levels(claim.within) if claim.within else []
    scopes: list[dict[str, Level]] = [{claim.within: level} for level in levels] if claim.within else [{}]
    found = [(scope, examine(claim, chosen.where(**scope), design)) for scope in scopes]
    return [_Case(claim, scope, evidence) for scope, evidence in found if evidence is not None]


def _p(evidence: Evidence, p: float) -> float:
    """A failed or exact examination is no member of the family of tests."""
    return math.nan if evidence.exact or evidence.failure else p


def _verdict(case: _Case, p_for: float, p_against: float, family: int, confidence: float) -> Verdict:
    claim, evidence = case.claim, case.evidence
    outcome = _outcome(evidence, p_for, p_against)
    against = outcome == "refuted" or (outcome == "inconclusive" and _leans_against(claim, evidence))
    p_value = evidence.p_refuted if against else evidence.p_supported
    p_adjusted = p_against if against else p_for
    needed, advice = (None, "") if outcome != "inconclusive" else _seeds_needed(evidence, family)
    why = _reason(claim, evidence, outcome, p_adjusted, family, confidence)
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
        seeds_needed=needed,
        reason=" ".join(part for part in (why, advice, *evidence.caveats) if part),
        smallest_effect=claim.smallest_effect,
        published=claim.published,
        measured_for_published=measured,
        distance=distance,
        groups=evidence.groups,
    )


def _outcome(evidence: Evidence, p_for: float, p_against: float) -> Outcome:
    if evidence.failure:
        return "inconclusive"
    if evidence.supports and (evidence.exact or p_for < ALPHA):
        return "supported"
    if evidence.refutes and (evidence.exact or p_against < ALPHA):
        return "refuted"
    return "inconclusive"


def _leans_against(claim: Claim, evidence: Evidence) -> bool:
    if evidence.effect is None:
        return False
    if claim.kind == "equality":
        return evidence.effect > evidence.threshold
    return claim.sign * (evidence.effect - evidence.threshold) < 0


def _reason(
    claim: Claim, evidence: Evidence, outcome: Outcome, p: float, family: int, confidence: float
) -> str:
    if evidence.failure:
        return evidence.failure
    if evidence.exact:
        return "Exact: the values do not depend on the seed, so no test is needed."
    if evidence.effect is None:
        return f"{evidence.seeds} seed{'' if evidence.seeds == 1 else 's'} cannot show a spread."
    many = f" after correction for {family} claims" if family > 1 else ""
    interval = f"{100 * confidence:g} % interval"
    if outcome == "inconclusive":
        return _why_open(claim, evidence, interval, f"p = {_p_text(p)}{many}", p)
    side = _side(claim, evidence, outcome)
    return f"The whole {interval} lies {side}, p = {_p_text(p)}{many}."


def _side(claim: Claim, evidence: Evidence, outcome: Outcome) -> str:
    """Where the interval lies, in words."""
    if claim.kind == "equality":
        return "within the margin" if outcome == "supported" else "beyond the margin"
    if claim.kind == "bound":
        return "on the claimed side of the bound" if outcome == "supported" else "on its other side"
    if outcome == "supported":
        return "beyond the smallest effect of interest" if claim.smallest_effect else "on the claimed side"
    low, high = evidence.interval or (math.nan, math.nan)
    if low > 0 or high < 0:
        opposite = (low > 0) == (claim.sign < 0)
        return "on the opposite side" if opposite else "short of the smallest effect of interest"
    return "short of the smallest effect of interest"


def _why_open(claim: Claim, evidence: Evidence, interval: str, p_text: str, p: float) -> str:
    clear = evidence.supports or evidence.refutes
    if clear:
        return f"The {interval} is clear of the threshold, but {p_text} is not below {ALPHA}."
    line = "the margin" if claim.kind == "equality" else "the bound" if claim.kind == "bound" else "zero"
    if claim.smallest_effect and claim.kind != "bound":
        line = f"the smallest effect of interest ({number(evidence.threshold)} {evidence.unit})".replace(
            " )", ")"
        )
    also = "" if math.isnan(p) or p < ALPHA else f", and {p_text}"
    return f"The {interval} reaches across {line}{also}."


def _seeds_needed(evidence: Evidence, family: int) -> tuple[int | None, str]:
    """About how many seeds decide at 80 % power if effect and spread stay as they are (normal approximation)."""
    if evidence.failure:
        return None, ""
    level = ALPHA / family
    fewest = next((n for n in range(2, MOST_SEEDS) if evidence.floor(n) < level), None)
    if evidence.effect is None:
        return fewest, f"It takes at least {fewest} seeds." if fewest else ""
    gap = abs(evidence.effect - evidence.threshold)
    reach = float(ndtri(1 - min(level, ALPHA / 2)) + ndtri(POWER)) * evidence.standard_error
    if gap <= 0 or evidence.seeds * (reach / gap) ** 2 > MOST_SEEDS:
        return None, "The effect is so near to this line that more seeds would hardly decide."
    needed = max(math.ceil(evidence.seeds * (reach / gap) ** 2), fewest or 2)
    if needed <= evidence.seeds:
        needed = evidence.seeds + max(1, evidence.seeds // 4)
    return needed, f"About {needed} seeds would decide."


def _published(claim: Claim, evidence: Evidence) -> tuple[float | None, float | None]:
    if claim.published is None:
        return None, None
    measured = evidence.effect if claim.published.of == "effect" else evidence.measured
    return measured, None if measured is None else measured - claim.published.value


def _p_text(p: float) -> str:
    return f"{p:.1g}" if p < 0.01 else f"{p:.2f}"
