"""A quantity along lines and on planes through weight space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level, Record, Records
from nablab.plots import frame
from nablab.plots.style import INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 16
MARK = "#d55e00"


def lines(
    records: Records,
    x: str,
    y: str,
    *,
    color_by: str = "model",
    panel_by: str = "target",
    more: Mapping[str, str] | None = None,
    ends: tuple[float, ...] = (0.0, 1.0),
    x_label: str = "alpha",
    y_label: str = "loss",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw one array against another on a logarithmic axis.

    Every seed is a thin line, their geometric mean a thick one.

    Args:
        records: The runs; all seeds have the same ``x``.
        x: Name of the array of positions.
        y: Name of the array of positive values.
        color_by: The factor whose levels have colors.
        panel_by: The factor whose levels have panels.
        more: Further columns of the table: name of the column, then of the array.
        ends: Positions that get a vertical line.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        title: Title.
        caption: What to see; how to read the figure is added.
    """
    import numpy as np

    looks, panels = (
        frame.styles_of(records, color_by),
        frame.panels_of(records, panel_by),
    )
    table = frame.Table(panel_by, color_by, "seed", "position", "value", *(more or {}))
    notes = frame.Notes()
    with frame.drawing():
        figure, axes = frame.panel_axes(len(panels))
        for ax, (panel, part) in zip(axes, panels, strict=True):
            for level, look in looks.items():
                runs = [
                    record
                    for record in frame.at(part, color_by, level)
                    if y in record.arrays
                ]
                drawable = [
                    run for run in runs if _count_undrawn(run, y, y_label, notes) == 0
                ]
                for run in runs:
                    ax.plot(
                        run.arrays[x],
                        run.arrays[y],
                        color=look.color,
                        ls=look.line,
                        lw=0.6,
                        alpha=0.4,
                    )
                    others = {
                        name: run.arrays[array] for name, array in (more or {}).items()
                    }
                    values = {
                        "seed": run.seed,
                        "position": run.arrays[x],
                        "value": run.arrays[y],
                        **others,
                    }
                    table.extend(
                        len(run.arrays[x]),
                        where={panel_by: panel, color_by: level},
                        **values,
                    )
                notes.count(
                    frame.listed([panel, level]),
                    len(runs),
                    len(drawable),
                    "not finite or not drawable",
                )
                if drawable:
                    mean = np.exp(
                        np.mean([np.log(run.arrays[y]) for run in drawable], axis=0)
                    )
                    positions = drawable[0].arrays[x]
                    ax.plot(positions, mean, color=look.color, ls=look.line, lw=2)
            for end in ends:
                ax.axvline(end, color=INK, lw=0.5, alpha=0.5, zorder=0)
            frame.name_panel(ax, panel)
            frame.ticks(ax, "x", log=False)
            frame.ticks(ax, "y", log=True)
            ax.set_xlabel(x_label)
        for ax in axes[:: frame.columns_of(len(panels))]:
            ax.set_ylabel(y_label)
        frame.legend(figure, looks)
    how = "Thin lines: single seeds. Thick lines: their geometric mean."
    alt = (
        f"{title}. {y_label} against {x_label}, colored by {color_by}: "
        f"{frame.listed(looks)}."
    )
    return Figure(
        title,
        notes.caption(caption, how),
        figure,
        table.columns,
        alt + frame.in_panels(panels),
    )


def _count_undrawn(record: Record, name: str, label: str, notes: frame.Notes) -> int:
    """Note and return how many values of an array a logarithm has no place for."""
    import numpy as np

    values = np.asarray(record.arrays[name], float)
    finite = np.isfinite(values)
    below, not_finite = int(np.sum(values[finite] <= 0)), int(np.sum(~finite))
    notes.undrawn(label, below=below, not_finite=not_finite)
    return below + not_finite


def surfaces(
    records: Records,
    name: str,
    *,
    column_by: str = "model",
    row_by: str = "target",
    labels: tuple[str, str] = ("direction 1", "direction 2"),
    marks: str = "cross",
    equal: bool = False,
    value_label: str = "training loss",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw contours of a positive quantity on a plane, with logarithmic levels.

    The values are those of the first seed that has a plane.

    The records hold the arrays ``<name>_alphas`` (A,), ``<name>_betas`` (B,),
    ``<name>_values`` (B, A) and, unless ``marks="cross"``, ``<name>_marks`` (T, 2); for
    a path also ``<name>_errors`` (T,), its distance from the plane.

    Args:
        records: The runs.
        name: Prefix of the arrays.
        column_by: The factor whose levels stand side by side.
        row_by: The factor whose levels stand below each other.
        labels: Labels of the two axes.
        marks: ``"cross"`` at the origin, ``"path"`` to it, or ``"letters"`` A, B, C at
            points.
        equal: One unit is as long on both axes.
        value_label: Label of the color bars.
        title: Title.
        caption: What to see; how to read the figure is added.
    """
    columns, rows = (
        frame.styles_of(records, column_by),
        frame.panels_of(records, row_by),
    )
    table = frame.Table(row_by, column_by, "seed", "alpha", "beta", "value")
    notes = frame.Notes()
    with frame.drawing():
        figure, grid = frame.canvas(
            len(rows), len(columns), height=2.9, width=frame.WIDE
        )
        for axes, (row, part) in zip(grid, rows, strict=True):
            for ax, column in zip(axes, columns, strict=True):
                runs = [
                    r
                    for r in frame.at(part, column_by, column)
                    if f"{name}_values" in r.arrays
                ]
                frame.name_panel(ax, row, column)
                ax.set(xlabel=labels[0], ylabel=labels[1] if ax is axes[0] else "")
                if not runs:
                    notes.count(frame.listed([row, column]), 0, 0, "")
                    continue
                undrawn = _count_undrawn(runs[0], f"{name}_values", value_label, notes)
                if undrawn == runs[0].arrays[f"{name}_values"].size:
                    continue
                bar = figure.colorbar(_contours(ax, runs[0], name), ax=ax)
                bar.set_label(value_label if ax is axes[-1] else "")
                _logarithmic(bar)
                _mark(ax, runs[0], name, marks)
                if equal:
                    ax.set_aspect("equal")
                _tabulate(table, runs[0], name, {row_by: row, column_by: column})
    how = (
        "The first seed of each. Colors are logarithmic and differ from panel to panel."
    )
    alt = f"{title}. Contours of the {value_label} for {frame.listed(columns)}."
    return Figure(
        title,
        notes.caption(caption, how),
        figure,
        table.columns,
        alt + frame.in_panels(rows, "Rows"),
    )


def _contours(ax: Axes, record: Record, name: str) -> Any:
    import numpy as np

    values = np.asarray(record.arrays[f"{name}_values"], float)
    shown = np.ma.log10(
        np.ma.masked_where(~np.isfinite(values) | (values <= 0), values)
    )
    low, high = float(shown.min()), float(shown.max())
    levels = np.linspace(low, high if high > low else low + 1, LEVELS)
    axes = record.arrays[f"{name}_alphas"], record.arrays[f"{name}_betas"]
    found = ax.contourf(*axes, shown, levels, cmap="viridis")
    ax.contour(*axes, shown, levels, colors=PAPER, linewidths=0.25, linestyles="solid")
    # Circles that reach beyond the plane must not widen the frame.
    ax.set(xlim=axes[0][[0, -1]], ylim=axes[1][[0, -1]])
    frame.ticks(ax, "x", log=False)
    frame.ticks(ax, "y", log=False)
    return found


def _logarithmic(bar: Any) -> None:
    low, high = (10**end for end in bar.ax.get_ylim())
    ticks = round_numbers(low, high)
    bar.set_ticks(
        [math.log10(tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks]
    )
    bar.ax.minorticks_off()


def round_numbers(low: float, high: float) -> list[float]:
    """Choose round numbers on a logarithmic scale, at most about ten.

    They lie from low to high.

    >>> round_numbers(0.3, 40), round_numbers(1e-3, 2e3)
    ([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
    """
    decades = math.log10(high / low)
    mantissas = (1, 2, 5) if decades < 3 else (1,)
    powers = range(
        math.floor(math.log10(low)),
        math.ceil(math.log10(high)) + 1,
        max(1, round(decades / 8)),
    )
    ticks = [float(f"{mantissa}e{power}") for power in powers for mantissa in mantissas]
    return [tick for tick in ticks if low <= tick <= high]


def _mark(ax: Axes, record: Record, name: str, marks: str) -> None:
    from matplotlib.patches import Circle

    if marks == "cross":
        ax.plot(0, 0, "x", color=MARK, ms=8, mew=2.2)
        return
    points = record.arrays[f"{name}_marks"]
    if marks == "letters":
        for letter, (x, y) in zip("ABCDEFGH", points, strict=False):
            ax.plot(x, y, "o", color=MARK, ms=6, mec=PAPER)
            ax.annotate(
                letter,
                (x, y),
                (5, 5),
                textcoords="offset points",
                color=PAPER,
                weight="bold",
            )
        return
    for x, y, radius in zip(*points.T, record.arrays[f"{name}_errors"], strict=True):
        ax.add_patch(Circle((x, y), radius, fill=False, ec=MARK, lw=0.4, alpha=0.5))
    ax.plot(*points.T, ".-", color=MARK, lw=1.1, ms=3.5)
    ax.plot(*points[0], "o", color=MARK, mfc=PAPER, ms=6, mew=1.3)
    ax.plot(*points[-1], "x", color=MARK, ms=8, mew=2.2)


def _tabulate(
    table: frame.Table, record: Record, name: str, where: dict[str, Level]
) -> None:
    import numpy as np

    values = np.asarray(record.arrays[f"{name}_values"], float)
    alphas, betas = np.meshgrid(
        record.arrays[f"{name}_alphas"], record.arrays[f"{name}_betas"]
    )
    columns = {"alpha": alphas.ravel(), "beta": betas.ravel(), "value": values.ravel()}
    table.extend(values.size, where=where, seed=record.seed, **columns)
