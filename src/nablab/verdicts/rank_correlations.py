"""Evidence for a trend along a factor, and for a correlation of two metrics.

Both are Kendall's tau. Trials of one condition are not independent evidence for a
correlation: whole seeds and whole conditions are its units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nablab.contract import Claim, Record, Records
from nablab.errors import UsageError
from nablab.statistics.agreement import (
    Cells,
    Groups,
    contrast_correlation,
    contrast_trend,
)
from nablab.statistics.resampling import Array, Design
from nablab.verdicts.evidence import Evidence, decide, summarize_sides
from nablab.verdicts.floors import crossed, floor_of_exchanges, floor_of_trend
from nablab.verdicts.spread import no_replicates, same_for_all_seeds
from nablab.verdicts.values import no_order, of_level, prepare


def examine_trend(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """Correlate the metric with the levels of the claim's factor, by rank.

    Returns:
        The evidence, or None where the factor has fewer than two levels.

    Raises:
        UsageError: A level is a name and not a number.
    """
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
    blank = summarize_sides(
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
    return decide(
        blank, claim, contrast_trend(x, y, seeds, shift, design, paired=claim.paired)
    )


def examine_correlation(
    claim: Claim, records: Records, design: Design
) -> Evidence | None:
    """Correlate two metrics of the same trials, by rank.

    Returns:
        The evidence, or None where there is no trial.
    """
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
        summarize_sides(claim, {"all": both}, "Kendall's tau"),
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
    return decide(
        blank,
        claim,
        contrast_correlation(x, y, cells, shift, design, paired=claim.paired),
    )


def _cells(records: Sequence[Record]) -> Cells:
    """Place the trials in a table of conditions by seeds.

    It knows the levels of each factor where the conditions are all combinations of
    them.
    """
    conditions, sizes = crossed([r.condition for r in records])
    rows = {condition: row for row, condition in enumerate(conditions)}
    seeds = _numbered(np.array([r.seed for r in records], dtype=np.float64))
    return Cells(np.array([rows[r.condition] for r in records]), seeds, sizes)


def _seeds_without_say(records: Sequence[Record], claim: Claim) -> tuple[str, ...]:
    """Say so where neither metric differs from seed to seed: the seeds are copies."""
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


def _column(rows: Sequence[tuple[float, ...]], index: int) -> Array:
    return np.array([row[index] for row in rows], dtype=np.float64)


def _numbered(labels: Array) -> Groups:
    """Give equal labels equal numbers, from 0."""
    return np.unique(labels, return_inverse=True)[1]
