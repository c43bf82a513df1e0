"""How many seeds it takes: the fewest that could decide at all, and how many would probably do."""

from __future__ import annotations

import math

from scipy.special import betaincinv, ndtri

from nablab.experiment import Claim
from nablab.verdicts.agreement import score_interval, spread_without_effect
from nablab.verdicts.contrasts import newcombe_interval, skew_factor
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.resampling import ALPHA

POWER = 0.8
MOST_SEEDS = 1_000
"""Beyond it the advice is to think again, not to buy seeds."""


def seeds_needed(
    claim: Claim, evidence: Evidence, level: float, confidence: float, resamples: int
) -> tuple[int | None, str]:
    """How many seeds decide with 80 % power if effect and spread stay as they are, and that in words.

    The usual formula for a normal mean, with the correction for Student's quantiles of Guenther 1981.

    Args:
        claim: What is claimed.
        evidence: What was found; the claim is undecided.
        level: p has to be below it: 0.05 divided by the number of claims.
        confidence: Of the interval, two-sided.
        resamples: Number of random arrangements; no smaller p than one over it can be had.
    """
    if evidence.failure:
        return None, ""
    against = evidence.effect is not None and leans_against(claim, evidence)
    needed = _fewest(claim, evidence, level, confidence, against)
    if level <= 1 / (resamples + 1) and not (claim.paired and claim.scale == "ranks"):
        return None, f"So many claims need more than {resamples} resamples."
    if needed is None and evidence.floor(MOST_SEEDS) >= level:
        return (
            None,
            "More seeds cannot decide it: with so few conditions p stays too large whatever they give.",
        )
    if claim.kind == "correlation" and evidence.conditions > 1 and evidence.effect is not None:
        return None, "More conditions would tell, rather than more seeds: theirs are few."
    if evidence.share and evidence.measured in (0.0, 1.0):
        advice = f"It takes at least {needed} seeds, all with this outcome."
        return needed, f"{_out_of_reach(evidence, level)}{advice}" if needed else ""
    if evidence.effect is None:
        return needed, f"It takes at least {needed} seeds." if needed else ""
    gap = abs(evidence.effect - evidence.threshold)
    z = float(-ndtri(min(level, (1 - confidence) / 2)))
    reach = (z + float(ndtri(POWER))) * evidence.standard_error
    if claim.kind == "bound" and claim.scale != "ranks" and not evidence.share:
        reach = _reach_of_bound(z, gap, evidence)
    if gap <= 0 or evidence.seeds * (reach / gap) ** 2 > MOST_SEEDS or needed is None:
        return None, "The effect is so near to this line that more seeds would hardly decide."
    groups = 1 if claim.paired or claim.kind == "bound" else 2
    usual = evidence.seeds * (reach / gap) ** 2 + z**2 / (2 * groups)
    if claim.scale == "ranks" and groups == 1 and evidence.unit != "Kendall's tau":
        # The sign test's p-value moves in steps: Fleiss 1981's correction, for a share of gap / 2.
        usual *= (1 + math.sqrt(1 + 8 / (usual * gap))) ** 2 / 4
    needed = max(math.ceil(usual), needed, evidence.seeds + max(1, evidence.seeds // 4))
    advice = f"About {needed} seeds would decide, if effect and spread stay as they are."
    return needed, f"{_out_of_reach(evidence, level)}{advice}"


def _reach_of_bound(z: float, gap: float, evidence: Evidence) -> float:
    """How far from the line the effect has to be; the stand-off for skewed values shrinks with more seeds."""
    seeds = float(evidence.seeds)
    for _ in range(20):
        reach = (z * skew_factor(seeds) + float(ndtri(POWER))) * evidence.standard_error
        seeds = max(2.0, evidence.seeds * (reach / gap) ** 2) if gap > 0 else seeds
    return reach


def _out_of_reach(evidence: Evidence, level: float) -> str:
    """That the clearest data of so many seeds would not have decided either; empty if they would."""
    floor, family = evidence.floor(evidence.seeds), round(ALPHA / level)
    if floor < level:
        return ""
    least = f"{evidence.seeds} seeds cannot bring p below {floor:.2g}"
    many = f", {family * floor:.2g} after correction for {family} claims" if family > 1 else ""
    return f"{least}{many}, whatever they give. "


def leans_against(claim: Claim, evidence: Evidence) -> bool:
    """Whether the effect lies on the refuting side of its threshold."""
    if evidence.effect is None:
        return False
    if claim.kind == "equality":
        return evidence.effect > evidence.threshold
    return claim.sign * (evidence.effect - evidence.threshold) < 0


def _fewest(claim: Claim, evidence: Evidence, level: float, confidence: float, against: bool) -> int | None:
    """The smallest number of seeds at which the clearest possible data would decide."""
    threshold = -claim.smallest_effect if against else claim.smallest_effect
    # The exact limits of a share are the same test as its p-value, at their own level.
    level = min(level, (1 - confidence) / 2) if evidence.share else level
    return next(
        (
            n
            for n in range(2, MOST_SEEDS)
            if evidence.floor(n) < level and _clearest_limit(claim, evidence, n, confidence) > threshold
        ),
        None,
    )


def _clearest_limit(claim: Claim, evidence: Evidence, n: int, confidence: float) -> float:
    """The inner limit of the interval of data in complete agreement; means have no such limit."""
    z = float(ndtri((1 + confidence) / 2))
    if evidence.unit == "Kendall's tau":
        trials = n * evidence.trials_per_seed
        # Exchanged conditions are the units of a paired correlation, however many seeds there are.
        if claim.kind == "correlation" and claim.paired:
            trials = evidence.trials_per_seed
        if trials < 3:
            return -1.0
        return score_interval(1.0, 1.0, z**2 * spread_without_effect(trials))[0]
    if claim.scale != "ranks":
        return math.inf
    if claim.paired or claim.kind == "bound":
        return 2 * float(betaincinv(n, 1, (1 - confidence) / 2)) - 1
    return newcombe_interval(1.0, n, n, confidence)[0]
