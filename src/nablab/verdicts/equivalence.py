"""Evidence that all levels are equal within a margin.

The difference is relative. Values that do not vary from seed to seed, such as numbers
of parameters, are compared as they are where the claim calls them exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from nablab.contract import Claim, Records
from nablab.errors import UsageError
from nablab.statistics.contrasts import (
    contrast_means,
    contrast_pairs,
    interval_of_ratio,
)
from nablab.statistics.resampling import Array, Contrast, Design, agreeing
from nablab.verdicts.evidence import Evidence, summarize_sides
from nablab.verdicts.spread import constant, constant_ratio, no_replicates, no_spread
from nablab.verdicts.values import Group, array, of_level, prepare, relative


def examine_equality(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """Test whether all levels are equal within the claim's margin.

    Returns:
        The evidence, or None where the factor has fewer than two levels.

    Raises:
        UsageError: The scale is ``"ranks"``, which has no relative differences.
    """
    if claim.scale == "ranks":
        raise UsageError(
            "Equality within a margin is relative: it needs the scale "
            "'linear' or 'log10'."
        )
    levels = records.levels(claim.by)
    if len(levels) < 2:
        return None
    sides = {str(level): of_level(records, claim, level) for level in levels}
    blank = replace(
        summarize_sides(claim, sides, "relative difference"), threshold=claim.margin
    )
    constants = [constant(side, claim.metric) for side in sides.values()]
    if claim.exact and not any(math.isnan(value) for value in constants):
        gap = max(relative(a, b) for a, b in combinations(constants, 2))
        equal = gap <= claim.margin * (1 + 1e-12)
        shown = gap if math.isfinite(gap) else None
        interval = None if shown is None else (shown, shown)
        return replace(
            blank,
            exact=True,
            effect=shown,
            interval=interval,
            supports=equal,
            refutes=not equal,
        )
    groups, caveats, failure = prepare(sides, claim)
    raw = [value for group in groups for value in group.values()]
    if not failure and claim.scale == "linear" and not (min(raw) > 0 or max(raw) < 0):
        failure = (
            "A relative difference needs values that are all above or all below 0."
        )
    if failure:
        return replace(blank, failure=failure)
    if claim.exact:
        caveats = (
            *caveats,
            "The claim calls the values exact, but they differ from seed to seed.",
        )
    blank = replace(blank, seeds=min(map(len, groups)), caveats=caveats)
    if blank.seeds < 2:
        return blank
    failure = no_replicates(sides, claim) or no_spread(groups, list(sides), claim)
    if failure:
        return replace(blank, failure=failure)
    return _all_pairs_equal(blank, claim, groups, design)


def _all_pairs_equal(
    blank: Evidence, claim: Claim, groups: Sequence[Group], design: Design
) -> Evidence:
    """Run two one-sided tests for each pair of levels.

    All have to pass (Schuirmann 1987, Berger 1982).
    """
    within, beyond, pairs = [], [], []
    for a, b in combinations(groups, 2):
        shared = [seed for seed in a if seed in b]
        a, b = ({s: g[s] for s in shared} if claim.paired else g for g in (a, b))
        x, y = sorted(
            (array(a), array(b)),
            key=lambda v: abs(v.mean()),
            reverse=claim.scale == "linear",
        )
        x, y = (x, y) if x.mean() >= y.mean() or claim.scale == "linear" else (y, x)
        x, y = (abs(x), abs(y)) if claim.scale == "linear" else (x, y)
        if min(len(x), len(y)) < 2:
            return replace(blank, seeds=min(len(x), len(y)))
        for one, other in ((x, y), (y, x)):
            test = _excess(one, other, claim, design)
            within.append(test.p_below)
            beyond.append(test.p_above)
        pairs.append(_gap_of_pair(x, y, claim, design))
    if any(math.isnan(low) for _, low, _ in pairs):
        return replace(blank, failure=constant_ratio(claim))
    effect, low, high = max(pairs)
    least = 1 / (1 + claim.margin) - 1
    p_above, p_below = min(1.0, len(beyond) * min(beyond)), max(within)
    error = (high - low) / 3.92
    contrast = Contrast(
        effect=effect,
        low=low,
        high=high,
        p_above=p_above,
        p_below=p_below,
        standard_error=error,
    )
    contrast = agreeing(contrast, claim.margin, blank.floor(blank.seeds))
    inside = all(lower > least and upper < claim.margin for _, lower, upper in pairs)
    return replace(
        blank,
        effect=effect,
        interval=(contrast.low, contrast.high),
        standard_error=error,
        supports=inside and contrast.high < claim.margin,
        refutes=contrast.low > claim.margin,
        p_supported=p_below,
        p_refuted=p_above,
    )


def _excess(x: Array, y: Array, claim: Claim, design: Design) -> Contrast:
    """Test whether ``x`` is more than the margin above ``y``, or less."""
    if claim.scale == "log10":
        y = y + math.log10(1 + claim.margin)
    else:
        y = y * (1 + claim.margin)
    return (
        contrast_pairs(x - y, 0.0, design)
        if claim.paired
        else contrast_means(x, y, 0.0, design)
    )


def _gap_of_pair(
    x: Array, y: Array, claim: Claim, design: Design
) -> tuple[float, float, float]:
    """Estimate how much larger ``x`` is than ``y``, relatively, with its interval."""
    if claim.scale == "linear":
        return (
            float(x.mean() / y.mean() - 1),
            *interval_of_ratio(x, y, claim.paired, design),
        )
    result = (
        contrast_pairs(x - y, 0.0, design)
        if claim.paired
        else contrast_means(x, y, 0.0, design)
    )
    effect, low, high = (
        10 ** min(value, 300) - 1 for value in (result.effect, result.low, result.high)
    )
    return effect, low, high
