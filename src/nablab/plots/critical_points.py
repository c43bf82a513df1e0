"""Searches for critical points.

The figures show what each search ended at, and the spectra of those that got there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nablab.contract import Condition, Figure, Record, Records
from nablab.plots.frame import (
    Notes,
    canvas,
    drawing,
    name_panel,
    panel_axes,
    ticks,
)

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#767676"
CRITICAL, FLAT, OTHER = (
    "critical points",
    "gradient-flat, not critical",
    "used up or stalled",
)
LOOKS: Mapping[str, Mapping[str, Any]] = {
    CRITICAL: {"marker": "o", "color": BLUE, "ms": 5, "mew": 0, "alpha": 0.7},
    FLAT: {"marker": "o", "color": ORANGE, "ms": 5, "mfc": "none"},
    OTHER: {"marker": "x", "color": GRAY, "ms": 4},
}


def _kind(record: Record) -> str:
    flat = record.notes["reason"].startswith("gradient-flat")
    return CRITICAL if record.scalars["reached"] else FLAT if flat else OTHER


def _names(records: Records, condition: Condition) -> list[str]:
    """List the levels that tell the condition from the others."""
    varied = [name for name in condition if len(records.levels(name)) > 1]
    levels = {name: condition[name] for name in varied}
    return [
        f"{n.replace('_', ' ')} {v:g}" if isinstance(v, float) else str(v)
        for n, v in levels.items()
    ]


def outcomes(
    records: Records,
    x: str,
    y: str,
    labels: tuple[str, str],
    title: str,
    caption: str,
    line: float = 0.0,
) -> Figure:
    """Draw two metrics of every trial, by what its search ended at.

    There is a panel for each condition.
    """
    table: dict[str, list[Any]] = {
        name: [] for name in ("condition", "seed", "ended at", x, y)
    }
    notes = Notes()
    with drawing():
        figure, axes = panel_axes(max(1, len(records.conditions)), height=3.4)
        for ax, condition in zip(axes, records.conditions, strict=False):
            for kind, look in LOOKS.items():
                here = [
                    r
                    for r in records.where(**condition)
                    if x in r.scalars and _kind(r) == kind
                ]
                for record in here:
                    row = (
                        str(condition),
                        record.seed,
                        kind,
                        record.scalars[x],
                        record.scalars[y],
                    )
                    for column, value in zip(table.values(), row, strict=True):
                        column.append(value)
                _count_undrawn([r.scalars[x] for r in here], labels[0], True, notes)
                _count_undrawn(
                    [r.scalars[y] for r in here], labels[1], bool(line), notes
                )
                ax.plot(
                    [r.scalars[x] for r in here],
                    [r.scalars[y] for r in here],
                    ls="none",
                    **look,
                    label=f"{len(here)} {kind}",
                )
            if line:
                ax.axhline(line, color=GRAY, lw=0.8, ls="--")
            ticks(ax, "x", log=True)
            ticks(ax, "y", log=bool(line))
            ax.set(xlabel=labels[0], ylabel=labels[1])
            name_panel(ax, *_names(records, condition))
            ax.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return Figure(
        title,
        notes.caption(caption),
        figure,
        table,
        f"{title}: one mark per network, by what it reached.",
    )


def _count_undrawn(
    values: Sequence[float], label: str, log: bool, notes: Notes
) -> None:
    finite = [value for value in values if math.isfinite(value)]
    below = sum(value <= 0 for value in finite) if log else 0
    notes.undrawn(label, below=below, not_finite=len(values) - len(finite))


def spectra(records: Records) -> Figure:
    """Draw all eigenvalues at three critical points of each condition.

    These are the points of lowest, middle and highest loss.
    """
    table: dict[str, list[Any]] = {
        name: [] for name in ("condition", "seed", "rank", "eigenvalue")
    }
    with drawing():
        figure, grid = canvas(
            max(1, len(records.conditions)), 3, height=2.6, sharey="row"
        )
        for row, condition in zip(grid, records.conditions, strict=False):
            usable = [r for r in records.where(**condition) if _kind(r) == CRITICAL]
            usable.sort(key=lambda record: record.scalars["loss"])
            chosen = [usable[0], usable[len(usable) // 2], usable[-1]] if usable else []
            for ax, record in zip(row, chosen, strict=False):
                floor = record.scalars["floor"]
                ordered = sorted(
                    (float(v) for v in record.arrays["eigenvalues"]),
                    key=abs,
                    reverse=True,
                )
                ranked = list(enumerate(ordered, start=1))
                unseen = floor / 1e6  # exact zeros have no place on a log axis
                for color, marker, sign, part in (
                    (BLUE, "o", "positive", [(i, v) for i, v in ranked if v > floor]),
                    (
                        ORANGE,
                        "v",
                        "negative",
                        [(i, -v) for i, v in ranked if v < -floor],
                    ),
                    (
                        GRAY,
                        "x",
                        "zero",
                        [
                            (i, max(abs(v), unseen))
                            for i, v in ranked
                            if abs(v) <= floor
                        ],
                    ),
                ):
                    ax.plot(
                        [i for i, _ in part],
                        [v for _, v in part],
                        marker,
                        color=color,
                        ms=2.5,
                        mew=0.6,
                        label=f"{len(part)} {sign}",
                    )
                ax.axhline(floor, color=GRAY, lw=0.8, ls="--")
                ticks(ax, "y", log=True)
                name_panel(
                    ax,
                    *_names(records, condition),
                    f"loss {record.scalars['loss']:.3g}",
                )
                ax.set(xlabel="rank")
                ax.legend(fontsize=8, markerscale=2)
                for rank, value in ranked:
                    for column, entry in zip(
                        table.values(),
                        (str(condition), record.seed, rank, value),
                        strict=True,
                    ):
                        column.append(entry)
            row[0].set_ylabel("size of the eigenvalue")
    title = "Spectra at the critical points of lowest, middle and highest loss"
    caption = "Sorted by size. What lies below the dashed line, the floor, has no sign."
    return Figure(
        title,
        caption,
        figure,
        table,
        f"{title}: every eigenvalue by size, colored by sign.",
    )
