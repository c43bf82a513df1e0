"""The figures of an experiment that draws none of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nablab.contract import Figure, Records
from nablab.plots.curve_figures import curves
from nablab.plots.dot_figures import dots

MOST_FIGURES = 6  # of each kind: a report is read, and the tables hold the rest
MOST_LEVELS = 8  # of a factor that has colors or panels
LOGARITHMIC_SPAN = 30  # of the values of a curve


def default_figures(records: Records, tested: Sequence[str] = ()) -> dict[str, Figure]:
    """Draw each curve against steps, and each number as dots over the seeds.

    The factor with the most levels that colors can tell apart has colors, the next one
    panels; further factors are pooled.

    Args:
        records: The trials; they may be incomplete.
        tested: The metrics that claims are about, which come first; where there are
            any, other numbers are left to the tables.
    """
    color_by, panel_by = _two_factors(records)
    names = list(dict.fromkeys(name for record in records for name in record.curves))
    figures = {
        f"curve {name}": curves(
            records,
            name,
            color_by=color_by,
            panel_by=panel_by,
            log_y=_is_wide(records, name),
        )
        for name in names[:MOST_FIGURES]
    }
    there = records.metrics
    metrics = [name for name in dict.fromkeys(tested) if name in there] or there
    for name in metrics[:MOST_FIGURES]:
        if any(math.isfinite(value) for value in records.values(name)):
            figures[name] = dots(records, name, by=color_by, panel_by=panel_by)
    return figures


def _two_factors(records: Records) -> tuple[str, str]:
    """Return the factors for colors and panels; empty where there is none."""
    factors = dict.fromkeys(
        factor for condition in records.conditions for factor in condition
    )
    levels = {factor: len(records.levels(factor)) for factor in factors}
    varying = [factor for factor in factors if 1 < levels[factor] <= MOST_LEVELS]
    ordered = sorted(varying, key=lambda factor: -levels[factor])  # ties: as listed
    color, panel, *_ = [*ordered, "", ""]
    return color, panel


def _is_wide(records: Records, curve: str) -> bool:
    """Tell whether all values of a curve are positive and span a factor of 30."""
    least, most = math.inf, 0.0
    for record in records:
        if curve not in record.curves:
            continue
        for value in record.curves[curve].values.ravel().tolist():
            if math.isfinite(value):
                least, most = min(least, value), max(most, value)
    return least > 0 and most > LOGARITHMIC_SPAN * least
