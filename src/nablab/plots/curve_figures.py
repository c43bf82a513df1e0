"""Quantities against training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nablab.contract import Curve, Figure, Level, Records
from nablab.plots import frame
from nablab.plots.style import Style
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes

    Floats = npt.NDArray[np.float64]

GRID = 120


def curves(
    records: Records,
    curve: str = "train_loss",
    *,
    color_by: str = "model",
    panel_by: str = "target",
    log_x: bool = False,
    log_y: bool = True,
    x_label: str = "optimizer steps",
    y_label: str = "",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw a quantity against steps.

    Every run is a thin line, the mean over seeds a thick one, and its 95 % interval a
    band.

    On a logarithmic axis the mean is geometric. A run that ended early keeps its last
    value in the mean; a run that became NaN or infinite is drawn up to there and left
    out of the mean. Long curves are thinned to the smallest and largest value of each
    stretch.

    Args:
        records: The runs; factors other than the two named here are pooled.
        curve: Name of the curve.
        color_by: The factor whose levels have colors.
        panel_by: The factor whose levels have panels.
        log_x: Logarithmic steps; step 0 is then not drawn, and the caption says so.
        log_y: Logarithmic values; those that are 0 or negative are then not drawn, and
            the caption says how many.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit; the curve's name if empty.
        title: Title; made from the names if empty.
        caption: What to see; how to read the figure is added.
    """
    looks = frame.styles_of(records, color_by)
    panels = frame.panels_of(records, panel_by)
    table = frame.Table(
        "series", panel_by, color_by, "seed", "step", "value", "low", "high"
    )
    notes = frame.Notes()
    points = frame.points_per_line(
        len(records) + 3 * len(panels) * len(looks), len(panels)
    )
    with frame.drawing():
        figure, axes = frame.panel_axes(len(panels))
        for ax, (panel, subset) in zip(axes, panels, strict=True):
            groups = {
                level: [
                    (r.seed, r.curves[curve])
                    for r in frame.at(subset, color_by, level)
                    if curve in r.curves
                ]
                for level in looks
            }
            end = max(
                (
                    int(run.steps[-1])
                    for g in groups.values()
                    for _, run in g
                    if len(run.steps)
                ),
                default=0,
            )
            for level, group in groups.items():
                where = {panel_by: panel, color_by: level}
                group_of_runs = _Group(ax, looks[level], table, where, log_x, log_y)
                kept = group_of_runs.draw_runs(group, points, end, notes)
                for _, run in group:
                    _count_undrawn(run, words(curve), log_y, notes)
                notes.count(
                    frame.listed([panel, level]),
                    len(group),
                    len(kept),
                    "not finite or not drawable",
                )
                group_of_runs.draw_mean(kept, min(GRID, points))
            frame.name_panel(ax, panel)
            frame.ticks(ax, "x", log=log_x)
            frame.ticks(ax, "y", log=log_y)
            ax.set_xlabel(x_label)
        for ax in axes[:: frame.columns_of(len(panels))]:
            ax.set_ylabel(y_label or words(curve))
        frame.legend(figure, looks)
    mean = "geometric mean" if log_y else "mean"
    how = (
        f"Thin lines: single runs. Thick lines: {mean} over seeds; the band is its "
        "95 % interval."
    )
    title = title or sentence(f"{words(curve)} against {x_label}")
    alt = f"{title}. One line per run, colored by {color_by}: {frame.listed(looks)}."
    alt += frame.in_panels(panels)
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


class _Group:
    """The runs of one color in one panel."""

    def __init__(
        self,
        ax: Axes,
        look: Style,
        table: frame.Table,
        where: dict[str, Level],
        log_x: bool,
        log_y: bool,
    ) -> None:
        self.ax, self.look, self.table, self.where = ax, look, table, where
        self.log_x, self.log_y = log_x, log_y

    def draw_runs(
        self,
        group: Sequence[tuple[int, Curve]],
        points: int,
        end: int,
        notes: frame.Notes,
    ) -> list[Curve]:
        """Draw each run thin; give back those that are whole."""
        kept = []
        for seed, run in group:
            if self.log_x and len(run.steps) and run.steps[0] <= 0:
                notes.say("Step 0 has no place on the logarithmic axis.")
            drawn, whole = _drawable(run, log_x=self.log_x, log_y=self.log_y)
            keep = thin(drawn.steps, drawn.values, points, log=self.log_x)
            x, y = drawn.steps[keep], drawn.values[keep]
            self.ax.plot(
                x, y, color=self.look.color, ls=self.look.line, lw=0.6, alpha=0.4
            )
            self.table.extend(
                len(x), series="run", seed=seed, step=x, value=y, where=self.where
            )
            if whole and len(drawn.steps):
                kept.append(drawn)
            if len(x) and run.steps[-1] < end:
                self.ax.plot(
                    x[-1:], y[-1:], ".", ms=4, color=self.look.color, alpha=0.7
                )
                notes.say(
                    "A dot marks a run that ended early; it keeps its last value "
                    "in the mean."
                )
        return kept

    def draw_mean(self, runs: Sequence[Curve], grid: int) -> None:
        """Draw the mean of the runs and its interval on about ``grid`` points."""
        if not runs:
            return
        steps, mean, low, high = mean_curve(
            runs, log_x=self.log_x, log_y=self.log_y, grid=grid
        )
        self.ax.plot(steps, mean, color=self.look.color, ls=self.look.line, lw=2)
        if len(runs) > 1:
            self.ax.fill_between(
                steps, low, high, color=self.look.color, alpha=0.2, lw=0
            )
        self.table.extend(
            len(steps),
            series="mean",
            step=steps,
            value=mean,
            low=low,
            high=high,
            where=self.where,
        )


def _count_undrawn(run: Curve, name: str, log: bool, notes: frame.Notes) -> None:
    import numpy as np

    values = np.asarray(run.values, float)
    finite = np.isfinite(values)
    below = int(np.sum(values[finite] <= 0)) if log else 0
    notes.undrawn(name, below=below, not_finite=int(np.sum(~finite)))


def _drawable(run: Curve, *, log_x: bool, log_y: bool) -> tuple[Curve, bool]:
    """Take the part of a run that the axes can show, and say whether that is all."""
    import numpy as np

    steps, values = np.asarray(run.steps), np.asarray(run.values, float)
    shown = np.isfinite(values) & ((values > 0) | (not log_y))
    first = int(log_x and len(steps) > 0 and steps[0] <= 0)
    return Curve(steps[first:][shown[first:]], values[first:][shown[first:]]), bool(
        len(steps) and shown.all()
    )


def thin(
    x: npt.ArrayLike, y: npt.ArrayLike, points: int, *, log: bool = False
) -> npt.NDArray[np.int64]:
    """Choose the indices of about ``points`` values that draw like all of them.

    The range of ``x`` (ascending; positive if ``log``) is cut into equal stretches, and
    the smallest and the largest ``y`` of each are kept, so that no spike is lost.
    """
    import numpy as np

    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) <= points:
        return np.arange(len(x))
    position = np.log(x) if log else x
    edges = np.linspace(position[0], position[-1], max(1, points // 2) + 1)[1:-1]
    starts = np.flatnonzero(
        np.diff(np.searchsorted(edges, position, side="right"), prepend=-1)
    )
    keep = {0, len(x) - 1}
    for a, b in zip(starts, [*starts[1:], len(x)], strict=True):
        keep |= {int(a + np.argmin(y[a:b])), int(a + np.argmax(y[a:b]))}
    return np.array(sorted(keep), dtype=np.int64)


def mean_curve(
    runs: Sequence[Curve], *, log_x: bool = False, log_y: bool = False, grid: int = GRID
) -> tuple[Floats, Floats, Floats, Floats]:
    """Average runs on a common grid of steps, with a 95 % interval (Student's t).

    Steps are cut into at most ``grid`` stretches; the first step stands alone. A run
    that ended early keeps its last value. Computed on logarithms if ``log_y``, which
    makes the mean geometric.

    Returns:
        Steps, mean, low, high; low and high are NaN for a single run.
    """
    import numpy as np
    from scipy.special import stdtrit

    longest = max(runs, key=lambda run: float(run.steps[-1]))
    position: Any = np.log(longest.steps) if log_x else longest.steps
    inner = np.linspace(position[0], position[-1], grid + 1)[1:-1]
    edges = np.concatenate([[np.nextafter(float(position[0]), np.inf)], inner])

    def averaged(run: Curve) -> tuple[Floats, Floats]:
        steps = run.steps.astype(float)
        bucket = np.searchsorted(edges, np.log(steps) if log_x else steps, side="right")
        values = np.log(run.values) if log_y else run.values
        count = np.bincount(bucket)
        filled = count > 0
        return (
            np.bincount(bucket, weights=steps)[filled] / count[filled],
            np.bincount(bucket, weights=values)[filled] / count[filled],
        )

    common, _ = averaged(longest)
    stacked = np.stack([np.interp(common, *averaged(run)) for run in runs])
    mean = stacked.mean(axis=0)
    half = np.full_like(mean, np.nan)
    if len(runs) > 1:
        half = (
            stdtrit(len(runs) - 1, 0.975)
            * stacked.std(axis=0, ddof=1)
            / math.sqrt(len(runs))
        )
    back: Callable[[Floats], Floats] = np.exp if log_y else np.asarray
    return common, back(mean), back(mean - half), back(mean + half)
