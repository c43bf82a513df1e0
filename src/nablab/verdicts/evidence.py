"""What the records say about a claim.

From trials to an effect, its interval and two p-values.

The unit is the seed. Where a level holds several trials of one seed (a claim over
several targets, say), their mean (their median for ranks) stands for the seed: trials
of one seed are no independent evidence. Nor are trials of one condition for a
correlation: there whole seeds and whole conditions are the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from nablab.contract import Claim, Record, Records, Scale
from nablab.errors import UsageError
from nablab.statistics.agreement import (
    Cells,
    Groups,
    contrast_correlation,
    contrast_trend,
)
from nablab.statistics.contrasts import (
    contrast_bound,
    contrast_means,
    contrast_pairs,
    contrast_ranks,
    contrast_signs,
    interval_of_ratio,
)
from nablab.statistics.resampling import Array, Contrast, Design, agreeing
from nablab.statistics.shares import contrast_share, interval_of_two, limits_of_mean
from nablab.text.naming import words
from nablab.verdicts.floors import crossed, floor_of, floor_of_exchanges, floor_of_trend
from nablab.verdicts.spread import (
    RANKS,
    constant,
    constant_ratio,
    equal_by_nature,
    no_replicates,
    no_spread,
    only_zero_or_one,
    outliers,
    same_for_all_seeds,
)
from nablab.verdicts.values import (
    Group,
    array,
    no_order,
    of_level,
    prepare,
    relative,
    summary,
)

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


def examine(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """The evidence for a claim in ``records``, or None where its levels do not occur.

    Raises:
        UsageError: The claim itself makes no sense, such as a trend along names.
    """
    return _EXAMINERS[claim.kind](claim, records, design)


# --- kinds --------------------------------------------------------------------


def _difference(claim: Claim, records: Records, design: Design) -> Evidence | None:
    sides = [of_level(records, claim, level) for level in (claim.first, claim.second)]
    if not all(sides):
        return None
    names = [str(claim.first), str(claim.second)]
    blank = _blank(claim, dict(zip(names, sides, strict=True)), UNITS[claim.scale])
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
    return _decided(
        blank, claim, _compare(array(x), array(y), shift, claim, design, share)
    )


def _bound(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if claim.scale == "log10" and claim.bound <= 0:
        raise UsageError(
            f"The claim on '{claim.metric}' compares logarithms, so its "
            "bound must be above 0."
        )
    if not len(records):
        return None
    side = list(records)
    blank = _blank(claim, {"all": side}, UNITS[claim.scale])
    (group,), caveats, failure = prepare({"": side}, claim)
    if failure:
        return replace(blank, failure=failure)
    blank = replace(blank, seeds=len(group), caveats=caveats)
    if blank.seeds < 2:
        return blank
    x, shift = array(group), claim.sign * claim.smallest_effect
    bound = math.log10(claim.bound) if claim.scale == "log10" else claim.bound
    # A bound at an end of the scale is no bound of a share: one value beyond it would
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
        return _decided(blank, claim, contrast_share(x, bound, shift, design))
    if claim.scale != "ranks":
        logarithms = claim.scale == "log10"
        return _decided(
            blank, claim, contrast_bound(x, bound, shift, design, logarithms=logarithms)
        )
    return _decided(
        blank,
        claim,
        _compare(x, np.full(len(x), bound), shift, replace(claim, paired=True), design),
    )


def _trend(claim: Claim, records: Records, design: Design) -> Evidence | None:
    levels = records.levels(claim.by)
    if len(levels) < 2:
        return None
    if any(isinstance(level, str) for level in levels):
        named = ", ".join(str(level) for level in levels)
        raise UsageError(
            f"A trend needs numeric levels, but '{claim.by}' has: {named}. Compare "
            "levels instead."
        )
    sides = {
        str(level): of_level(records, claim, level)
        for level in sorted(levels, key=float)
    }
    blank = _blank(
        claim, sides, "Kendall's tau", floor=floor_of_trend(len(levels), claim.paired)
    )
    ranked, caveats, failure = prepare(sides, replace(claim, scale="ranks"))
    if failure:
        return replace(blank, failure=failure)
    rows = [
        (float(level), seed, value)
        for level, group in zip(sorted(levels, key=float), ranked, strict=True)
        for seed, value in sorted(group.items())
    ]
    x, y = _column(rows, 0), _column(rows, 2)
    blank = replace(
        blank,
        seeds=min(map(len, ranked)),
        caveats=caveats,
        failure=no_order(y, claim.metric) or no_replicates(sides, claim),
        trials_per_seed=len(levels),
    )
    if blank.failure or blank.seeds < 2:
        return blank
    seeds = _numbered(_column(rows, 1))
    shift = claim.sign * claim.smallest_effect
    return _decided(
        blank, claim, contrast_trend(x, y, seeds, shift, design, paired=claim.paired)
    )


def _correlation(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if not len(records):
        return None
    both = [
        r for r in records if claim.metric in r.scalars and claim.other in r.scalars
    ]
    both.sort(key=lambda r: (str(r.condition), r.seed))
    usable = [
        r
        for r in both
        if not (
            math.isnan(r.scalars[claim.metric]) or math.isnan(r.scalars[claim.other])
        )
    ]
    x, y = (
        np.array([r.scalars[name] for r in usable], dtype=np.float64)
        for name in (claim.metric, claim.other)
    )
    lost = len(both) - len(usable)
    failure = (
        "" if both else f"No trial recorded both '{claim.metric}' and '{claim.other}'."
    )
    failure = failure or ("" if usable else "Every trial ended in NaN.")
    blank = replace(
        _blank(claim, {"all": both}, "Kendall's tau"),
        seeds=len({r.seed for r in usable}),
        trials_per_seed=max(1.0, len(usable) / max(1, len({r.seed for r in usable}))),
        caveats=(f"{lost} of {len(both)} trials hold NaN and are left out.",)
        if lost and usable
        else (),
        failure=failure or no_order(x, claim.metric) or no_order(y, claim.other),
    )
    if blank.failure:
        return blank
    cells = _cells(usable)
    floor = floor_of_exchanges(cells.factors, claim.paired)
    blank = replace(
        blank,
        floor=floor,
        conditions=cells.shape[0],
        caveats=(*blank.caveats, *_seeds_without_say(usable, claim)),
    )
    if len(x) < 3 or (claim.paired and blank.seeds < 2):
        return blank
    shift = claim.sign * claim.smallest_effect
    return _decided(
        blank,
        claim,
        contrast_correlation(x, y, cells, shift, design, paired=claim.paired),
    )


def _cells(records: Sequence[Record]) -> Cells:
    """Conditions by seeds.

    The levels of each factor where the conditions are all combinations of them.
    """
    conditions, sizes = crossed([r.condition for r in records])
    rows = {condition: row for row, condition in enumerate(conditions)}
    seeds = _numbered(np.array([r.seed for r in records], dtype=np.float64))
    return Cells(np.array([rows[r.condition] for r in records]), seeds, sizes)


def _seeds_without_say(records: Sequence[Record], claim: Claim) -> tuple[str, ...]:
    """A sentence where neither metric differs from seed to seed, so that the seeds are
    copies.
    """
    by_condition: dict[object, list[Record]] = {}
    for record in records:
        by_condition.setdefault(record.condition, []).append(record)
    alike = all(
        same_for_all_seeds(side, metric)
        for side in by_condition.values()
        for metric in (claim.metric, claim.other)
    )
    return (
        ("All seeds of a condition gave the same values, so they count as one.",)
        if alike
        else ()
    )


def _equality(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if claim.scale == "ranks":
        raise UsageError(
            "Equality within a margin is relative: it needs the scale "
            "'linear' or 'log10'."
        )
    levels = records.levels(claim.by)
    if len(levels) < 2:
        return None
    sides = {str(level): of_level(records, claim, level) for level in levels}
    blank = replace(_blank(claim, sides, "relative difference"), threshold=claim.margin)
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
    """Two one-sided tests for each pair of levels.

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
    """Whether ``x`` is more than the margin above ``y``, or less."""
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
    """Relative difference of the larger to the smaller, with its interval."""
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


_EXAMINERS: Mapping[str, Callable[[Claim, Records, Design], Evidence | None]] = {
    "difference": _difference,
    "bound": _bound,
    "trend": _trend,
    "correlation": _correlation,
    "equality": _equality,
}


# --- decisions ----------------------------------------------------------------


def _compare(
    x: Array, y: Array, shift: float, claim: Claim, design: Design, share: bool = False
) -> Contrast:
    """The contrast of two samples.

    With ranks a NaN stands at the end that hurts each conclusion most.

    Outcomes that are 0 or 1 (``share``) have limits of their own.
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


def _decided(blank: Evidence, claim: Claim, contrast: Contrast) -> Evidence:
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


def _blank(
    claim: Claim,
    sides: Mapping[str, Sequence[Record]],
    unit: str,
    floor: Callable[[int], float] | None = None,
) -> Evidence:
    """Evidence before any test: who is compared, and in what unit."""
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


def _what(claim: Claim) -> str:
    return f"difference in {words(claim.metric)}" if claim.paired else ""


def _column(rows: Sequence[tuple[float, ...]], index: int) -> Array:
    return np.array([row[index] for row in rows], dtype=np.float64)


def _numbered(labels: Array) -> Groups:
    """Labels as numbers from 0."""
    return np.unique(labels, return_inverse=True)[1]
