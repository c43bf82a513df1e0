"""How many seeds it takes.

The fewest that could decide at all, and how many would probably do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from nablab.contract import Claim
from nablab.statistics.contrasts import skew_factor
from nablab.statistics.small_samples import ALPHA
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.feasibility import MOST_SEEDS
from nablab.verdicts.floors import clearest_limit

POWER = 0.8


@dataclass(frozen=True)
class Advice:
    """What it would take to decide a claim that stayed open.

    Attributes:
        seeds: About how many seeds; None where more seeds would not help.
        text: That in whole sentences; empty where nothing can be said.
        short: That as part of a sentence, after "open".
    """

    seeds: int | None = None
    text: str = ""
    short: str = ""


def advise(
    claim: Claim, evidence: Evidence, level: float, confidence: float, resamples: int
) -> Advice:
    """Estimate how many seeds decide with 80 % power, and say so in words.

    Effect and spread are taken to stay as they are. The formula is the usual one for a
    normal mean, with the correction for Student's quantiles of Guenther 1981.

    Args:
        claim: What is claimed.
        evidence: What was found; the claim is undecided.
        level: p has to be below it: 0.05 divided by the number of claims.
        confidence: Of the interval, two-sided.
        resamples: Number of random arrangements; no smaller p than one over it can be
            had.
    """
    if evidence.failure:
        return Advice(short="these seeds give no answer")
    against = evidence.effect is not None and leans_against(claim, evidence)
    fewest = _fewest(claim, evidence, level, confidence, against)
    if level <= 1 / (resamples + 1) and not (claim.paired and claim.scale == "ranks"):
        return Advice(
            text=f"This many claims need more than {resamples} resamples.",
            short="too many claims",
        )
    if fewest is None and evidence.floor(MOST_SEEDS) >= level:
        return Advice(
            text="More seeds cannot decide it: with so few conditions p stays too "
            "large whatever they give.",
            short="too few conditions",
        )
    if (
        claim.kind == "correlation"
        and evidence.conditions > 1
        and evidence.effect is not None
    ):
        return Advice(
            text="More conditions would tell, rather than more seeds: theirs are few.",
            short="too few conditions",
        )
    if evidence.share and evidence.measured in (0.0, 1.0):
        return _at_least(
            fewest, f"{_out_of_reach(evidence, level)}", ", all with this outcome"
        )
    if evidence.effect is None:
        return _at_least(fewest)
    usual = _usual(claim, evidence, level, confidence)
    if math.isinf(usual) or fewest is None:
        return Advice(
            text="The effect is so near to this line that more seeds would hardly "
            "decide.",
            short="the effect is very near the line",
        )
    needed = max(math.ceil(usual), fewest, evidence.seeds + max(1, evidence.seeds // 4))
    sentence = (
        f"About {needed} seeds would decide, if effect and spread stay as they are."
    )
    return Advice(
        needed,
        f"{_out_of_reach(evidence, level)}{sentence}",
        f"about {needed} seeds would tell",
    )


def _at_least(fewest: int | None, before: str = "", after: str = "") -> Advice:
    """Give advice from the clearest possible data alone."""
    if not fewest:
        return Advice(short="too few seeds")
    text = f"{before}It takes at least {fewest} seeds{after}."
    return Advice(fewest, text, f"at least {fewest} seeds would tell")


def _usual(claim: Claim, evidence: Evidence, level: float, confidence: float) -> float:
    """Compute the number of seeds by the usual formula.

    Infinite where the effect lies on the line.
    """
    gap = abs((evidence.effect or 0.0) - evidence.threshold)
    z = float(-ndtri(min(level, (1 - confidence) / 2)))
    reach = (z + float(ndtri(POWER))) * evidence.standard_error
    if claim.kind == "bound" and claim.scale != "ranks" and not evidence.share:
        reach = _reach_of_bound(z, gap, evidence)
    if gap <= 0 or evidence.seeds * (reach / gap) ** 2 > MOST_SEEDS:
        return math.inf
    groups = 1 if claim.paired or claim.kind == "bound" else 2
    usual = evidence.seeds * (reach / gap) ** 2 + z**2 / (2 * groups)
    if claim.scale == "ranks" and groups == 1 and evidence.unit != "Kendall's tau":
        # The sign test's p-value moves in steps: Fleiss 1981's correction, for a share
        # of gap / 2.
        usual *= (1 + math.sqrt(1 + 8 / (usual * gap))) ** 2 / 4
    return usual


def _reach_of_bound(z: float, gap: float, evidence: Evidence) -> float:
    """Compute how far from the line the effect has to be.

    The stand-off for skewed values shrinks with more seeds.
    """
    seeds = float(evidence.seeds)
    for _ in range(20):
        reach = (z * skew_factor(seeds) + float(ndtri(POWER))) * evidence.standard_error
        seeds = max(2.0, evidence.seeds * (reach / gap) ** 2) if gap > 0 else seeds
    return reach


def _out_of_reach(evidence: Evidence, level: float) -> str:
    """Say that the clearest data of this many seeds would not have decided either.

    Empty if they would.
    """
    floor, family = evidence.floor(evidence.seeds), round(ALPHA / level)
    if floor < level:
        return ""
    least = f"{evidence.seeds} seeds cannot bring p below {floor:.2g}"
    many = (
        f", {family * floor:.2g} after correction for {family} claims"
        if family > 1
        else ""
    )
    return f"{least}{many}, whatever they give. "


def leans_against(claim: Claim, evidence: Evidence) -> bool:
    """Tell whether the effect lies on the refuting side of its threshold."""
    if evidence.effect is None:
        return False
    if claim.kind == "equality":
        return evidence.effect > evidence.threshold
    return claim.sign * (evidence.effect - evidence.threshold) < 0


def _fewest(
    claim: Claim, evidence: Evidence, level: float, confidence: float, against: bool
) -> int | None:
    """Find the smallest number of seeds at which the clearest data would decide."""
    threshold = -claim.smallest_effect if against else claim.smallest_effect
    # The exact limits of a share are the same test as its p-value, at their own level.
    level = min(level, (1 - confidence) / 2) if evidence.share else level
    z = float(ndtri((1 + confidence) / 2))

    def decides(n: int) -> bool:
        limit = clearest_limit(claim, n, _trials(claim, evidence, n), z)
        return evidence.floor(n) < level and limit > threshold

    return next((n for n in range(2, MOST_SEEDS) if decides(n)), None)


def _trials(claim: Claim, evidence: Evidence, n: int) -> float:
    """Count the trials that stand in a trend or correlation of ``n`` seeds."""
    # Exchanged conditions are the units of a paired correlation, however many seeds
    # there are.
    alone = claim.kind == "correlation" and claim.paired
    return evidence.trials_per_seed if alone else n * evidence.trials_per_seed
