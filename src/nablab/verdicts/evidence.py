"""What the records say about a claim: from trials to an effect, its interval and two p-values.

The unit is the seed. Where a level holds several trials of one seed (a claim over several targets, say),
their mean (their median for ranks) stands for the seed: trials of one seed are no independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from nablab.errors import UsageError
from nablab.experiment import Claim, Record, Records, Scale
from nablab.verdicts.agreement import Groups, contrast_tau
from nablab.verdicts.contrasts import (
    contrast_bound,
    contrast_means,
    contrast_pairs,
    contrast_ranks,
    contrast_signs,
    interval_of_ratio,
)
from nablab.verdicts.resampling import Array, Contrast, Design
from nablab.verdicts.values import Group, array, constant, no_order, of_level, prepare, relative, summary

UNITS: Mapping[Scale, str] = {"linear": "", "log10": "log10 ratio", "ranks": "Cliff's delta"}


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
        measured: Mean of the claim's metric (median for ranks; of ``first`` for a difference), if finite.
        caveats: Sentences about what was left out or changed.
        failure: Why there is no answer, or empty.
        exact: The values do not vary at all, and the answer needs no test.
        trials_per_seed: How many trials of a seed stand in a trend or correlation.
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


def examine(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """The evidence for a claim in ``records``, or None where its levels do not occur.

    Raises:
        UsageError: The claim itself makes no sense, such as a trend along names.
    """
    return _EXAMINERS[claim.kind](claim, records, design)


# --- kinds ------------------------------------------------------------------------------------


def _difference(claim: Claim, records: Records, design: Design) -> Evidence | None:
    sides = [of_level(records, claim, level) for level in (claim.first, claim.second)]
    if not all(sides):
        return None
    names = [str(claim.first), str(claim.second)]
    blank = _blank(claim, dict(zip(names, sides, strict=True)), UNITS[claim.scale])
    (x, y), caveats, failure = prepare(dict(zip(names, sides, strict=True)), claim)
    if claim.paired:
        shared = [seed for seed in x if seed in y]
        x, y = ({seed: group[seed] for seed in shared} for group in (x, y))
    if failure:
        return replace(blank, failure=failure)
    blank = replace(blank, seeds=min(len(x), len(y)), caveats=caveats)
    if blank.seeds < 2:
        return blank
    shift = claim.sign * claim.smallest_effect
    return _decided(blank, claim, _compare(array(x), array(y), shift, claim, design))


def _bound(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if claim.scale == "log10" and claim.bound <= 0:
        raise UsageError(f"The claim on '{claim.metric}' compares logarithms, so its bound must be above 0.")
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
    if claim.scale == "linear":
        return _decided(blank, claim, contrast_bound(x, claim.bound, shift, design))
    bound = math.log10(claim.bound) if claim.scale == "log10" else claim.bound
    return _decided(
        blank, claim, _compare(x, np.full(len(x), bound), shift, replace(claim, paired=True), design)
    )


def _trend(claim: Claim, records: Records, design: Design) -> Evidence | None:
    levels = records.levels(claim.by)
    if len(levels) < 2:
        return None
    if any(isinstance(level, str) for level in levels):
        named = ", ".join(str(level) for level in levels)
        raise UsageError(
            f"A trend needs numeric levels, but '{claim.by}' has: {named}. Compare levels instead."
        )
    sides = {str(level): of_level(records, claim, level) for level in sorted(levels, key=float)}
    blank = _blank(claim, sides, "Kendall's tau", floor=_floor_of_trend(len(levels), claim.paired))
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
        failure=no_order(y, claim.metric),
        trials_per_seed=len(levels),
    )
    if blank.failure or blank.seeds < 2:
        return blank
    groups = _numbered(_column(rows, 1 if claim.paired else 0))
    shift = claim.sign * claim.smallest_effect
    return _decided(blank, claim, contrast_tau(x, y, shift, design, groups=groups, blocked=claim.paired))


def _correlation(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if not len(records):
        return None
    both = [r for r in records if claim.metric in r.scalars and claim.other in r.scalars]
    both.sort(key=lambda r: (str(r.condition), r.seed))
    pairs = [(r.seed, float(r.scalars[claim.metric]), float(r.scalars[claim.other])) for r in both]
    usable = [pair for pair in pairs if not any(math.isnan(value) for value in pair[1:])]
    seeds = len({pair[0] for pair in usable})
    per_seed = max(1.0, len(usable) / max(1, seeds))
    x, y = _column(usable, 1), _column(usable, 2)
    lost = len(pairs) - len(usable)
    failure = "" if pairs else f"No trial recorded both '{claim.metric}' and '{claim.other}'."
    failure = failure or ("" if usable else "Every trial ended in NaN.")
    blank = replace(
        _blank(
            claim, {"all": both}, "Kendall's tau", floor=lambda n: math.exp(-math.lgamma(n * per_seed + 1))
        ),
        seeds=seeds,
        trials_per_seed=per_seed,
        caveats=(f"{lost} of {len(pairs)} trials hold NaN and are left out.",) if lost and usable else (),
        failure=failure or no_order(x, claim.metric) or no_order(y, claim.other),
    )
    if blank.failure or len(x) < 3 or (claim.paired and seeds < 2):
        return blank
    groups = _numbered(_column(usable, 0) if claim.paired else np.zeros(len(x)))
    shift = claim.sign * claim.smallest_effect
    return _decided(blank, claim, contrast_tau(x, y, shift, design, groups=groups, blocked=claim.paired))


def _equality(claim: Claim, records: Records, design: Design) -> Evidence | None:
    if claim.scale == "ranks":
        raise UsageError("Equality within a margin is relative: it needs the scale 'linear' or 'log10'.")
    levels = records.levels(claim.by)
    if len(levels) < 2:
        return None
    sides = {str(level): of_level(records, claim, level) for level in levels}
    blank = replace(_blank(claim, sides, "relative difference"), threshold=claim.margin)
    constants = [constant(side, claim.metric) for side in sides.values()]
    if not any(math.isnan(value) for value in constants):
        gap = max(relative(a, b) for a, b in combinations(constants, 2))
        equal = gap <= claim.margin * (1 + 1e-12)
        shown = gap if math.isfinite(gap) else None
        interval = None if shown is None else (shown, shown)
        return replace(blank, exact=True, effect=shown, interval=interval, supports=equal, refutes=not equal)
    groups, caveats, failure = prepare(sides, claim)
    raw = [value for group in groups for value in group.values()]
    if not failure and claim.scale == "linear" and not (min(raw) > 0 or max(raw) < 0):
        failure = "A relative difference needs values that are all above or all below 0."
    if failure:
        return replace(blank, failure=failure)
    blank = replace(blank, seeds=min(map(len, groups)), caveats=caveats)
    if blank.seeds < 2:
        return blank
    return _all_pairs_equal(blank, claim, groups, design)


def _all_pairs_equal(blank: Evidence, claim: Claim, groups: Sequence[Group], design: Design) -> Evidence:
    """Two one-sided tests for each pair of levels; all have to pass (Schuirmann 1987, Berger 1982)."""
    within, beyond, pairs = [], [], []
    for a, b in combinations(groups, 2):
        shared = [seed for seed in a if seed in b]
        a, b = ({s: g[s] for s in shared} if claim.paired else g for g in (a, b))
        x, y = sorted((array(a), array(b)), key=lambda v: abs(v.mean()), reverse=claim.scale == "linear")
        x, y = (x, y) if x.mean() >= y.mean() or claim.scale == "linear" else (y, x)
        x, y = (abs(x), abs(y)) if claim.scale == "linear" else (x, y)
        if min(len(x), len(y)) < 2:
            return replace(blank, seeds=min(len(x), len(y)))
        for one, other in ((x, y), (y, x)):
            test = _excess(one, other, claim, design)
            within.append(test.p_below)
            beyond.append(test.p_above)
        pairs.append(_gap_of_pair(x, y, claim, design))
    effect, low, high = max(pairs)
    least = 1 / (1 + claim.margin) - 1
    return replace(
        blank,
        effect=effect,
        interval=(low, high),
        standard_error=(high - low) / 3.92,
        supports=all(lower > least and upper < claim.margin for _, lower, upper in pairs),
        refutes=low > claim.margin,
        p_supported=max(within),
        p_refuted=min(1.0, len(beyond) * min(beyond)),
    )


def _excess(x: Array, y: Array, claim: Claim, design: Design) -> Contrast:
    """Whether ``x`` is more than the margin above ``y``, or less."""
    if claim.scale == "log10":
        y = y + math.log10(1 + claim.margin)
    else:
        y = y * (1 + claim.margin)
    return contrast_pairs(x - y, 0.0, design) if claim.paired else contrast_means(x, y, 0.0, design)


def _gap_of_pair(x: Array, y: Array, claim: Claim, design: Design) -> tuple[float, float, float]:
    """Relative difference of the larger to the smaller, with its interval."""
    if claim.scale == "linear":
        return (float(x.mean() / y.mean() - 1), *interval_of_ratio(x, y, claim.paired, design))
    result = contrast_pairs(x - y, 0.0, design) if claim.paired else contrast_means(x, y, 0.0, design)
    effect, low, high = (10 ** min(value, 300) - 1 for value in (result.effect, result.low, result.high))
    return effect, low, high


_EXAMINERS: Mapping[str, Callable[[Claim, Records, Design], Evidence | None]] = {
    "difference": _difference,
    "bound": _bound,
    "trend": _trend,
    "correlation": _correlation,
    "equality": _equality,
}


# --- decisions --------------------------------------------------------------------------------


def _compare(x: Array, y: Array, shift: float, claim: Claim, design: Design) -> Contrast:
    """The contrast of two samples; with ranks a NaN stands at the end that hurts each conclusion most."""
    if claim.scale != "ranks":
        return contrast_pairs(x - y, shift, design) if claim.paired else contrast_means(x, y, shift, design)
    worst, best = (_rank_contrast(x, y, end, shift, claim, design) for end in (-np.inf, np.inf))
    return Contrast(
        effect=(worst.effect + best.effect) / 2,
        low=worst.low,
        high=best.high,
        p_above=worst.p_above,
        p_below=best.p_below,
        standard_error=max(worst.standard_error, best.standard_error),
    )


def _rank_contrast(x: Array, y: Array, end: float, shift: float, claim: Claim, design: Design) -> Contrast:
    x, y = np.where(np.isnan(x), end, x), np.where(np.isnan(y), -end, y)
    if claim.paired:
        return contrast_signs((x > y).astype(np.float64) - (x < y), shift, design)
    return contrast_ranks(x, y, shift, design)


def _decided(blank: Evidence, claim: Claim, contrast: Contrast) -> Evidence:
    """Turn a contrast into evidence for the claimed side."""
    threshold = claim.sign * claim.smallest_effect
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
    one_sample = claim.paired or claim.kind == "bound"
    default = (lambda n: 0.5**n) if one_sample else (lambda n: 1 / math.comb(2 * n, n))
    groups = {name: summary(side, claim.metric) for name, side in sides.items()}
    first = (
        next(iter(groups.values()))
        if claim.kind == "difference"
        else summary([record for side in sides.values() for record in side], claim.metric)
    )
    measured = first["median" if claim.scale == "ranks" else "mean"]
    return Evidence(
        unit=unit,
        seeds=min(len({record.seed for record in side}) for side in sides.values()),
        floor=floor or default,
        groups=groups,
        measured=measured if math.isfinite(measured) else None,
    )


def _floor_of_trend(levels: int, paired: bool) -> Callable[[int], float]:
    """One over the number of ways to deal the values to the levels."""
    if paired:
        return lambda n: math.exp(-n * math.lgamma(levels + 1))
    return lambda n: math.exp(levels * math.lgamma(n + 1) - math.lgamma(levels * n + 1))


def _column(rows: Sequence[tuple[float, ...]], index: int) -> Array:
    return np.array([row[index] for row in rows], dtype=np.float64)


def _numbered(labels: Array) -> Groups:
    """Labels as numbers from 0."""
    return np.unique(labels, return_inverse=True)[1]
