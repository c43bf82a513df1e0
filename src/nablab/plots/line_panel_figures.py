"""Several quantities along one line, a panel each.

A series has the same color in all panels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level, Records
from nablab.plots import frame
from nablab.plots.style import INK, styles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes

    Floats = npt.NDArray[np.float64]
    Runs = Mapping[int, tuple[Floats, Floats]]


@dataclass(frozen=True)
class LinePanel:
    """One panel of `line_panels`.

    Attributes:
        title: What is drawn in it.
        y_label: The quantity, with its unit.
        series: By label, then by seed: positions and values, float64 (A,) each; all
            seeds of a series have the same positions.
        log: Logarithmic values.
        limits: Between which values can lie, as shares do between 0 and 1; bands end
            there.
    """

    title: str
    y_label: str
    series: Mapping[Level, Runs]
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)


def line_panels(
    panels: Sequence[LinePanel],
    *,
    columns: int = 2,
    skip: int = 0,
    ends: tuple[float, ...] = (0.0, 1.0),
    x_label: str = "alpha (0: first network, 1: second)",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw each quantity in a panel, each series in a color.

    Every seed is a thin line, the mean a thick one, and its 95 % interval a band.

    On a logarithmic axis the mean is geometric. Seeds with values that cannot be drawn
    are left out of it, and the caption says how many values these are.

    Args:
        panels: The panels, row by row.
        columns: Panels in a row.
        skip: Colors that belong to other series of the report.
        ends: Positions that get a vertical line.
        x_label: Label of the horizontal axis.
        title: Title.
        caption: What to see; how to read the figure is added.
    """
    from matplotlib.ticker import MultipleLocator

    table = frame.Table("panel", "series", "seed", "position", "value")
    notes = frame.Notes()
    labels = dict.fromkeys(label for panel in panels for label in panel.series)
    looks = dict(
        zip(
            labels, list(styles(range(skip + len(labels))).values())[skip:], strict=True
        )
    )
    with frame.drawing():
        figure, grid = frame.canvas(
            max(1, -(-len(panels) // columns)),
            columns,
            height=2.8,
            width=frame.WIDE if columns > 1 else None,
        )
        axes = [ax for row in grid for ax in row]
        for spare in axes[len(panels) :]:
            spare.remove()
        for ax, panel in zip(axes, panels, strict=False):
            for label, runs in panel.series.items():
                _draw(ax, panel, label, runs, looks[label].color, looks[label].line)
                for seed, (x, y) in runs.items():
                    where = {"panel": panel.title, "series": label}
                    table.extend(len(x), seed=seed, position=x, value=y, where=where)
                whole = _drawable(panel, runs)
                notes.count(
                    str(label), len(runs), len(whole), f"{panel.title}: not drawable"
                )
                _count_undrawn(panel, runs, notes)
            for end in ends:
                ax.axvline(end, color=INK, lw=0.5, alpha=0.5, zorder=0)
            ax.set(xlabel=x_label, ylabel=panel.y_label)
            frame.name_panel(ax, panel.title)
            frame.ticks(ax, "x", log=False)
            if len(ends) > 1:  # so that a tick stands at every end
                ax.xaxis.set_major_locator(MultipleLocator(_tick(ax, ends)))
            frame.ticks(ax, "y", log=panel.log)
        frame.legend(figure, looks)
    how = (
        "Thin lines: single seeds. Thick lines: their mean, geometric on a logarithmic "
        "axis; the band is its "
    )
    alt = f"{title}. Lines against {x_label} for {frame.listed(looks)}. Panels: "
    alt += f"{', '.join(panel.title for panel in panels)}."
    return Figure(
        title,
        notes.caption(caption, how + "95 % interval."),
        figure,
        table.columns,
        alt,
    )


def _tick(ax: Axes, ends: tuple[float, ...]) -> float:
    """Choose a distance of ticks that puts one on every end, with about five in all."""
    low, high = ax.get_xlim()
    step = ends[1] - ends[0]
    return step / (
        1 if high - low > 2.5 * step else 2 if high - low > 1.3 * step else 4
    )


def lines_of(
    records: Records,
    x: str,
    y: str,
    *,
    by: str = "ends",
    within: tuple[float, float] = (-math.inf, math.inf),
) -> dict[Level, dict[int, tuple[Floats, Floats]]]:
    """Collect the series of a `LinePanel` from the records that have the arrays.

    Args:
        records: The runs.
        x: Name of the array of positions.
        y: Name of the array of values.
        by: The factor whose levels are the labels.
        within: Only positions from here to there.
    """
    found: dict[Level, dict[int, tuple[Floats, Floats]]] = {}
    for record in records:
        if y in record.arrays:
            position, value = record.arrays[x], record.arrays[y]
            kept = (position >= within[0]) & (position <= within[1])
            found.setdefault(record.condition[by], {})[record.seed] = (
                position[kept],
                value[kept],
            )
    return found


def _drawable(panel: LinePanel, runs: Runs) -> list[tuple[Floats, Floats]]:
    """Select the seeds whose values all have a place on the axis."""
    import numpy as np

    return [
        run
        for run in runs.values()
        if np.isfinite(run[1]).all() and (not panel.log or run[1].min() > 0)
    ]


def _count_undrawn(panel: LinePanel, runs: Runs, notes: frame.Notes) -> None:
    import numpy as np

    for _, values in runs.values():
        finite = np.isfinite(values)
        below = int(np.sum(values[finite] <= 0)) if panel.log else 0
        notes.undrawn(panel.title, below=below, not_finite=int(np.sum(~finite)))


def _draw(
    ax: Axes, panel: LinePanel, label: Level, runs: Runs, color: str, line: str
) -> None:
    import numpy as np
    from scipy.special import stdtrit

    for x, y in runs.values():
        ax.plot(x, y, color=color, ls=line, lw=0.6, alpha=0.35)
    whole = _drawable(panel, runs)
    if not whole:
        return
    stacked = np.stack([y for _, y in whole]).astype(np.float64)
    scaled = np.log(stacked) if panel.log else stacked
    back: Any = np.exp if panel.log else np.asarray
    mean = scaled.mean(axis=0)
    ax.plot(whole[0][0], back(mean), color=color, ls=line, lw=2, label=str(label))
    if len(whole) > 1:
        half = (
            stdtrit(len(whole) - 1, 0.975)
            * scaled.std(axis=0, ddof=1)
            / math.sqrt(len(whole))
        )
        low, high = (
            np.clip(back(mean + side * half), *panel.limits) for side in (-1, 1)
        )
        ax.fill_between(whole[0][0], low, high, color=color, alpha=0.18, lw=0)
