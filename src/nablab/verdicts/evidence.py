"""What the records say about one claim: an effect, its interval and two p-values.

The unit is the seed. Where a level holds several trials of one seed (a claim over
several targets, say), their mean (their median for ranks) stands for the seed: trials
of one seed are not independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nablab.contract import Claim, Record, Scale
from nablab.statistics.resampling import Contrast, agreeing
from nablab.verdicts.floors import floor_of
from nablab.verdicts.values import summary

UNITS: Mapping[Scale, str] = {
    "linear": "",
    "log10": "log10 ratio",
    "ranks": "Cliff's delta",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that decides one claim in one scope.

    Attributes:
        unit: Of the effect; empty for the metric's own.
        seeds: Of the smallest group.
        floor: The smallest p-value that a number of seeds can reach.
        threshold: What the effect is held against.
        effect: Point estimate, or None.
        interval: Its interval, or None.
        standard_error: Of the effect.
        supports: Whether the whole interval lies on the claimed side of the threshold.
        refutes: Whether it lies on the other side.
        p_supported: p-value against "the effect is not beyond the threshold".
        p_refuted: p-value against "the effect is beyond the threshold".
        groups: By level: mean, median, n, and how many ended in NaN.
        measured: Mean of the claim's metric (median for ranks; of ``first`` for a
            difference), if finite.
        caveats: Sentences about what was left out or changed.
        failure: Why there is no answer, or empty.
        exact: The values do not vary at all, and the answer needs no test.
        trials_per_seed: How many trials of a seed stand in a trend or correlation.
        conditions: How many conditions a correlation runs over.
        share: The outcomes are 0 or 1, so the effect is about the share of ones.
    """

    unit: str
    seeds: int
    floor: Callable[[int], float]
    threshold: float = 0.0
    effect: float | None = None
    interval: tuple[float, float] | None = None
    standard_error: float = 0.0
    supports: bool = False
    refutes: bool = False
    p_supported: float = math.nan
    p_refuted: float = math.nan
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: float | None = None
    caveats: tuple[str, ...] = ()
    failure: str = ""
    exact: bool = False
    trials_per_seed: float = 1
    conditions: int = 1
    share: bool = False


def summarize_sides(
    claim: Claim,
    sides: Mapping[str, Sequence[Record]],
    unit: str,
    floor: Callable[[int], float] | None = None,
) -> Evidence:
    """Summarize who is compared, and in what unit, before any test.

    Args:
        claim: The claim to weigh.
        sides: The trials of each level, by its name.
        unit: Of the effect; empty for the metric's own.
        floor: The smallest p-value that a number of seeds can reach; by default that of
            the claim's usual test.
    """
    groups = {name: summary(side, claim.metric) for name, side in sides.items()}
    first = (
        next(iter(groups.values()))
        if claim.kind == "difference"
        else summary(
            [record for side in sides.values() for record in side], claim.metric
        )
    )
    measured = first["median" if claim.scale == "ranks" else "mean"]
    return Evidence(
        unit=unit,
        seeds=min(len({record.seed for record in side}) for side in sides.values()),
        floor=floor or floor_of(claim, []),
        groups=groups,
        measured=measured if math.isfinite(measured) else None,
    )


def decide(blank: Evidence, claim: Claim, contrast: Contrast) -> Evidence:
    """Turn a contrast into evidence for the claimed side."""
    threshold = claim.sign * claim.smallest_effect
    contrast = agreeing(contrast, threshold, blank.floor(blank.seeds))
    above, below = contrast.low > threshold, contrast.high < threshold
    p_above, p_below = contrast.p_above, contrast.p_below
    rising = claim.sign > 0
    return replace(
        blank,
        threshold=threshold,
        effect=contrast.effect,
        interval=(contrast.low, contrast.high),
        standard_error=contrast.standard_error,
        supports=above if rising else below,
        refutes=below if rising else above,
        p_supported=p_above if rising else p_below,
        p_refuted=p_below if rising else p_above,
    )
