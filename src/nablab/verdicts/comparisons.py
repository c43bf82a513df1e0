"""Evidence for a difference of two levels, and for a bound on all trials.

Both compare values on the claim's scale: means, means of logarithms, or ranks.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nablab.contract import Claim, Records
from nablab.errors import UsageError
from nablab.statistics.contrasts import (
    contrast_bound,
    contrast_means,
    contrast_pairs,
    contrast_ranks,
    contrast_signs,
)
from nablab.statistics.resampling import Array, Contrast, Design
from nablab.statistics.shares import contrast_share, interval_of_two, limits_of_mean
from nablab.text.naming import words
from nablab.verdicts.evidence import UNITS, Evidence, decide, summarize_sides
from nablab.verdicts.spread import (
    RANKS,
    equal_by_nature,
    no_replicates,
    no_spread,
    only_zero_or_one,
    outliers,
)
from nablab.verdicts.values import array, of_level, prepare


def examine_difference(
    claim: Claim, records: Records, design: Design
) -> Evidence | None:
    """Compare the metric of two levels.

    Returns:
        The evidence, or None where a level has no trial.
    """
    sides = [of_level(records, claim, level) for level in (claim.first, claim.second)]
    if not all(sides):
        return None
    names = [str(claim.first), str(claim.second)]
    blank = summarize_sides(
        claim, dict(zip(names, sides, strict=True)), UNITS[claim.scale]
    )
    named = dict(zip(names, sides, strict=True))
    (x, y), caveats, failure = prepare(named, claim)
    if claim.paired:
        shared = [seed for seed in x if seed in y]
        x, y = ({seed: group[seed] for seed in shared} for group in (x, y))
    if failure:
        return replace(blank, failure=failure)
    blank = replace(blank, seeds=min(len(x), len(y)), caveats=caveats)
    if blank.seeds < 2:
        return blank
    share = claim.scale == "linear" and only_zero_or_one(sides, claim.metric)
    failure = no_replicates(named, claim)
    if claim.scale != "ranks":
        compared = [{seed: x[seed] - y[seed] for seed in x}] if claim.paired else [x, y]
        if not share:
            failure = failure or no_spread(compared, [""], claim, _what(claim))
            caveats = (
                *caveats,
                *outliers(compared, [""] if claim.paired else names, claim),
            )
        effect = float(array(x).mean() - array(y).mean())
    blank = replace(blank, caveats=caveats, share=share)
    if failure:
        return replace(
            blank, failure=failure, effect=None if claim.scale == "ranks" else effect
        )
    blank = replace(blank, caveats=(*caveats, *equal_by_nature(named, claim)))
    shift = claim.sign * claim.smallest_effect
    return decide(
        blank, claim, _compare(array(x), array(y), shift, claim, design, share)
    )


def examine_bound(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """Hold the metric of all trials against the claim's bound.

    Returns:
        The evidence, or None where there is no trial.

    Raises:
        UsageError: The scale is logarithmic and the bound is not above 0.
    """
    if claim.scale == "log10" and claim.bound <= 0:
        raise UsageError(
            f"The claim on '{claim.metric}' compares logarithms, so its "
            "bound must be above 0."
        )
    if not len(records):
        return None
    side = list(records)
    blank = summarize_sides(claim, {"all": side}, UNITS[claim.scale])
    (group,), caveats, failure = prepare({"": side}, claim)
    if failure:
        return replace(blank, failure=failure)
    blank = replace(blank, seeds=len(group), caveats=caveats)
    if blank.seeds < 2:
        return blank
    x, shift = array(group), claim.sign * claim.smallest_effect
    bound = math.log10(claim.bound) if claim.scale == "log10" else claim.bound
    # A bound at an end of the scale does not bound a share: one value beyond it would
    # settle the claim, though a metric that could also be -1 may show nothing but zeros
    # and ones in five seeds.
    inside = 0 < bound < 1 and 0 < bound + shift < 1
    share = (
        claim.scale == "linear" and inside and only_zero_or_one([side], claim.metric)
    )
    failure = no_replicates({"": side}, claim)
    if claim.scale != "ranks" and not share:
        failure = failure or no_spread([group], [""], claim)
        caveats = (*caveats, *outliers([group], [""], claim))
    if failure:
        effect = None if claim.scale == "ranks" else float(x.mean()) - bound
        return replace(blank, failure=failure, effect=effect)
    alike = equal_by_nature({"": side}, claim)
    blank = replace(blank, caveats=(*caveats, *alike), share=share)
    if share:
        if alike:
            blank = replace(blank, caveats=(*blank.caveats, RANKS.strip()))
        # The clearest outcomes, all ones or all zeros, have this chance at the bound.
        chance = min(
            1.0, max(0.0, bound + shift if claim.sign > 0 else 1 - bound - shift)
        )
        blank = replace(blank, floor=lambda n: chance**n)
        return decide(blank, claim, contrast_share(x, bound, shift, design))
    if claim.scale != "ranks":
        logarithms = claim.scale == "log10"
        return decide(
            blank, claim, contrast_bound(x, bound, shift, design, logarithms=logarithms)
        )
    return decide(
        blank,
        claim,
        _compare(x, np.full(len(x), bound), shift, replace(claim, paired=True), design),
    )


def _compare(
    x: Array, y: Array, shift: float, claim: Claim, design: Design, share: bool = False
) -> Contrast:
    """Contrast two samples.

    With ranks a NaN stands at the end that hurts each conclusion most. Outcomes that
    are 0 or 1 (``share``) have limits of their own.
    """
    if claim.scale != "ranks":
        contrast = (
            contrast_pairs(x - y, shift, design)
            if claim.paired
            else contrast_means(x, y, shift, design)
        )
        if not share:
            return contrast
        low, high = (
            limits_of_mean(x - y, -1.0, 1.0, design)
            if claim.paired
            else interval_of_two(x, y, design)
        )
        return replace(contrast, low=low, high=high, standard_error=(high - low) / 3.92)
    worst, best = (
        _rank_contrast(x, y, end, shift, claim, design) for end in (-np.inf, np.inf)
    )
    return Contrast(
        effect=(worst.effect + best.effect) / 2,
        low=worst.low,
        high=best.high,
        p_above=worst.p_above,
        p_below=best.p_below,
        standard_error=max(worst.standard_error, best.standard_error),
    )


def _rank_contrast(
    x: Array, y: Array, end: float, shift: float, claim: Claim, design: Design
) -> Contrast:
    x, y = np.where(np.isnan(x), end, x), np.where(np.isnan(y), -end, y)
    if claim.paired:
        return contrast_signs((x > y).astype(np.float64) - (x < y), shift, design)
    return contrast_ranks(x, y, shift, design)


def _what(claim: Claim) -> str:
    """Name the quantity that pairs compare, for messages; empty without pairs."""
    return f"difference in {words(claim.metric)}" if claim.paired else ""
