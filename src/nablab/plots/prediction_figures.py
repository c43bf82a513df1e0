"""What networks of one input predict, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level, Record, Records
from nablab.plots import frame
from nablab.plots.curve_figures import thin
from nablab.plots.style import INK, Style
from nablab.text.naming import words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    Floats = npt.NDArray[np.float64]

COLUMNS = 4  # more models than this take several rows
TRAINING_POINTS = 60  # drawn per panel; more would hide the curves


def predictions(
    records: Records,
    x: str = "x",
    prediction: str = "prediction",
    truth: str = "truth",
    *,
    train_x: str = "train_x",
    train_y: str = "train_y",
    color_by: str = "model",
    panel_by: str = "target",
    x_label: str = "x",
    y_label: str = "y",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw the truth, and predictions.

    Every seed is a thin line, their mean a thick one, and one standard deviation a
    band.

    The truth has the color of the text. One row of panels per level of ``panel_by`` and
    one column per level of ``color_by``; more than four levels take several rows. The
    frame follows the truth, so that one network gone astray does not flatten the
    others.

    Args:
        records: The runs; factors other than the two named here are pooled.
        x: Name of the array of inputs, shape (N,) or (N, 1).
        prediction: Name of the array of outputs, as many as inputs.
        truth: Name of the array of true values, as many as inputs.
        train_x: Name of the array of training inputs; not drawn where it does not
            exist.
        train_y: Name of the array of training targets.
        color_by: The factor whose levels have colors and columns.
        panel_by: The factor whose levels have rows.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        title: Title; made from the names if empty.
        caption: What to see; how to read the figure is added.

    Raises:
        ValueError: A prediction does not have as many values as its inputs.
    """
    names = (x, prediction, truth, train_x, train_y)
    looks = frame.styles_of(records, color_by)
    panels = frame.panels_of(records, panel_by)
    table = frame.Table("series", panel_by, color_by, "seed", "x", "y", "deviation")
    notes = frame.Notes()
    cells = len(panels) * len(looks)
    # A mean, its band and the truth in each cell.
    points = frame.points_per_line(len(records) + 4 * cells, cells)
    with frame.drawing():
        figure, grids = _grids(len(panels), list(looks), x_label, y_label)
        for axes, (panel, subset) in zip(grids, panels, strict=True):
            for level, ax in axes.items():
                cell = _Cell(
                    ax, looks[level], table, {panel_by: panel, color_by: level}, points
                )
                cell.draw(frame.at(subset, color_by, level), names, notes)
                frame.name_panel(ax, panel, level)
            _truth(
                list(axes.values()),
                subset,
                names,
                table,
                {panel_by: panel},
                notes,
                points,
            )
        frame.legend(figure, {}, _keys(notes))
    how = (
        "Thin lines: single seeds. Thick lines: their mean; the band is one "
        "standard deviation over seeds."
    )
    title = title or f"Truth and {words(prediction)}s"
    alt = f"{title}. Predictions of {frame.listed(looks)} as lines over the truth."
    alt += frame.in_panels(panels, "Rows")
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def _grids(
    panels: int, levels: Sequence[Level], x_label: str, y_label: str
) -> tuple[Canvas, list[dict[Level, Axes]]]:
    """Lay out axes by level for every panel, in rows of four.

    They are labeled at the left and at the foot of each column.
    """
    columns = min(COLUMNS, len(levels))
    rows = -(-len(levels) // columns)
    figure, grid = frame.canvas(
        panels * rows, columns, height=2.2, sharex="row", sharey="row"
    )
    found: list[dict[Level, Axes]] = []
    for start in range(0, len(grid), rows):
        axes = [ax for row in grid[start : start + rows] for ax in row]
        for spare in axes[len(levels) :]:
            spare.remove()
        found.append(dict(zip(levels, axes, strict=False)))
        for ax in axes[: len(levels) : columns]:
            ax.set_ylabel(y_label)
    for ax in list(found[-1].values())[-columns:]:
        ax.set_xlabel(x_label)
    return figure, found


class _Cell:
    """The predictions of one color in one panel."""

    def __init__(
        self,
        ax: Axes,
        look: Style,
        table: frame.Table,
        where: dict[str, Level],
        points: int,
    ) -> None:
        self.ax, self.look, self.table, self.where, self.points = (
            ax,
            look,
            table,
            where,
            points,
        )

    def draw(self, records: Records, names: Sequence[str], notes: frame.Notes) -> None:
        import numpy as np

        x, prediction, *_ = names
        having = [r for r in records if x in r.arrays and prediction in r.arrays]
        lines = [(r.seed, *_sorted(r, x, prediction)) for r in having]
        finite = [line for line in lines if len(line[1]) and np.isfinite(line[2]).all()]
        notes.count(
            frame.listed(self.where.values()), len(lines), len(finite), "not finite"
        )
        if not finite:
            return
        at = finite[0][1]
        for seed, own_x, y in finite:
            self._line("seed", own_x, y, seed=seed)
        stacked = np.stack([np.interp(at, own_x, y) for _, own_x, y in finite])
        mean, spread = (
            stacked.mean(axis=0),
            stacked.std(axis=0, ddof=int(len(finite) > 1)),
        )
        self._line("mean", at, mean, spread=spread)

    def _line(
        self,
        series: str,
        x: Floats,
        y: Floats,
        *,
        seed: Any = "",
        spread: Floats | None = None,
    ) -> None:
        width, alpha = (2.0, 1.0) if series == "mean" else (0.6, 0.45)
        keep = thin(x, y, self.points)
        color = self.look.color
        self.ax.plot(
            x[keep],
            y[keep],
            color=color,
            ls=self.look.line,
            lw=width,
            alpha=alpha,
            zorder=3,
        )
        if spread is not None and spread.any():
            low, high = (y - spread)[keep], (y + spread)[keep]
            self.ax.fill_between(x[keep], low, high, color=color, alpha=0.2, lw=0)
        extra = {} if spread is None else {"deviation": spread[keep]}
        self.table.extend(
            len(keep),
            series=series,
            seed=seed,
            x=x[keep],
            y=y[keep],
            **extra,
            where=self.where,
        )


def _truth(
    axes: Sequence[Axes],
    records: Records,
    names: Sequence[str],
    table: frame.Table,
    where: dict[str, Level],
    notes: frame.Notes,
    most: int,
) -> None:
    """Draw the truth and the training points of one panel, and frame it by them."""
    import numpy as np

    x, _, truth, train_x, train_y = names
    known = next((r for r in records if x in r.arrays and truth in r.arrays), None)
    if known is None:
        return
    at, true = _sorted(known, x, truth)
    keep = thin(at, true, most)
    for ax in axes:
        ax.plot(at[keep], true[keep], color=INK, lw=0.8, zorder=4)
    table.extend(len(at), series="truth", x=at, y=true, where=where)
    notes.say("The line in the color of the text is the truth.")
    if train_x in known.arrays and train_y in known.arrays:
        points = _sorted(known, train_x, train_y)
        every = -(-len(points[0]) // TRAINING_POINTS)
        for ax in axes:
            ax.plot(
                points[0][::every],
                points[1][::every],
                ".",
                color=INK,
                ms=3.5,
                mew=0,
                alpha=0.6,
                zorder=4,
            )
        table.extend(
            len(points[0]), series="training", x=points[0], y=points[1], where=where
        )
        some = "" if every == 1 else f" (one in {every} drawn)"
        notes.say(f"Points in that color are training points{some}.")
    low, high = float(np.min(true)), float(np.max(true))
    room = 0.5 * (high - low) or 1.0
    bottom, top = (
        min(ax.get_ylim()[0] for ax in axes),
        max(ax.get_ylim()[1] for ax in axes),
    )
    if bottom < low - room or top > high + room:
        bottom, top = max(bottom, low - room), min(top, high + room)
        notes.say("Lines that leave the frame are cut.")
    for ax in axes:
        ax.set_ylim(bottom, top)


def _sorted(record: Record, x: str, y: str) -> tuple[Floats, Floats]:
    import numpy as np

    at, values = (np.asarray(record.arrays[name], float).reshape(-1) for name in (x, y))
    if at.shape != values.shape:
        raise ValueError(
            f"'{y}' of {record.condition} has {values.size} values, but "
            f"'{x}' has {at.size}"
        )
    order = np.argsort(at, kind="stable")
    return at[order], values[order]


def _keys(notes: frame.Notes) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=INK, lw=1.0, label="truth")]
    if notes.has("Points in that color"):
        keys.append(
            Line2D(
                [],
                [],
                color=INK,
                marker=".",
                ls="",
                ms=5,
                mew=0,
                alpha=0.7,
                label="training points",
            )
        )
    return keys if notes.has("The line in the color") else []
