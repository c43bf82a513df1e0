"""Paths in a plane: where runs go, from start to end.

The plane is that of the first two principal components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level
from nablab.plots import frame
from nablab.plots.style import INK, styles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """One panel of `paths`.

    Attributes:
        title: What is drawn in it.
        runs: By label: float64 (T, 2), the points of a run.
        values: By label: float64 (T,), what the color of a point says, such as its
            loss. A point whose value is not positive or not finite has no color, and
            the caption says how many these are.
        shares: The share of the variance that each of the two axes holds.
        ends: By label, what to write at the end of a run, such as its accuracy.
    """

    title: str
    runs: Mapping[Level, Floats]
    values: Mapping[Level, Floats]
    shares: tuple[float, float]
    ends: Mapping[Level, str] = field(default_factory=dict)


def paths(
    planes: Sequence[Plane],
    *,
    columns: int = 2,
    value_label: str = "training loss (MSE)",
    title: str = "Paths",
    caption: str = "",
) -> Figure:
    """Draw each run as a line in a color of its own.

    The line has the run's start, its end and the values of its points.

    Args:
        planes: The panels, row by row.
        columns: Panels in a row.
        value_label: What the points are filled by, with its unit; on one logarithmic
            scale for all panels.
        title: Title.
        caption: What to see; how to read the figure is added.
    """
    table = frame.Table("panel", "run", "point", "x", "y", "value")
    norm = _scale([values for plane in planes for values in plane.values.values()])
    notes = frame.Notes()
    for plane in planes:
        for values in plane.values.values():
            _count_uncolored(values, value_label, notes)
    looks = styles(label for plane in planes for label in plane.runs)
    with frame.drawing():
        figure, grid = frame.canvas(
            max(1, -(-len(planes) // columns)), columns, height=3.0
        )
        axes = [ax for row in grid for ax in row]
        for spare in axes[len(planes) :]:
            spare.remove()
        for ax, plane in zip(axes, planes, strict=False):
            for label, xy in plane.runs.items():
                _draw(ax, xy, plane.values[label], looks[label].color, norm)
                ax.annotate(
                    plane.ends.get(label, ""),
                    xy[-1],
                    (4, 3),
                    textcoords="offset points",
                    size=6.5,
                )
                where = {"panel": plane.title, "run": label}
                x, y = xy[:, 0], xy[:, 1]
                points = range(len(xy))
                table.extend(
                    len(xy),
                    point=points,
                    x=x,
                    y=y,
                    value=plane.values[label],
                    where=where,
                )
            ax.set_title(plane.title)
            ax.set_xlabel(f"component 1 ({100 * plane.shares[0]:.0f} %)")
            ax.set_ylabel(f"component 2 ({100 * plane.shares[1]:.0f} %)")
            frame.ticks(ax, "x", log=False)
            frame.ticks(ax, "y", log=False)
        if planes:
            _keys(figure, axes[: len(planes)], norm, value_label)
    how = (
        "Each run has a color; its dots are filled by their value. All runs of a panel "
        "share its two components, and each axis says how much of the variance it "
        "holds."
    )
    drawn = ", ".join(f"{plane.title} ({len(plane.runs)} runs)" for plane in planes)
    alt = (
        f"{title}. Lines from start to end in the plane of two components. Panels: "
        f"{drawn}."
    )
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def _count_uncolored(values: Floats, label: str, notes: frame.Notes) -> None:
    import numpy as np

    finite = np.isfinite(values)
    below = int(np.sum(np.asarray(values)[finite] <= 0))
    notes.undrawn(label, below=below, not_finite=int(np.sum(~finite)))


def _draw(ax: Any, xy: Floats, values: Floats, color: str, norm: Any) -> None:
    ax.plot(xy[:, 0], xy[:, 1], color=color, lw=1.3, zorder=2)
    ax.scatter(
        xy[:, 0], xy[:, 1], c=values, cmap="cividis", norm=norm, s=9, lw=0, zorder=3
    )
    ax.plot(*xy[0], "o", color=color, mfc="none", ms=7, zorder=4)
    ax.plot(*xy[-1], "s", color=color, ms=5.5, zorder=4)


def _keys(figure: Any, axes: Sequence[Any], norm: Any, label: str) -> None:
    """Draw the color bar, and the legend of what marks starts and ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    bar = figure.colorbar(
        ScalarMappable(norm, "cividis"),
        ax=axes,
        label=label,
        location="bottom",
        shrink=0.5,
        aspect=45,
    )
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    low, high = norm.vmin, norm.vmax
    decades = [
        10.0**exponent for exponent in range(-30, 31) if low <= 10.0**exponent <= high
    ]
    if len(decades) > 1:
        bar.set_ticks(
            decades, labels=[frame.power_of_ten(decade) for decade in decades]
        )
    else:  # within a decade or two its ends say more
        bar.set_ticks([low, high], labels=[f"{end:.2g}" for end in (low, high)])
    marks = (("o", "none", "start"), ("s", INK, "end"))
    handles = [
        Line2D([], [], color=INK, marker=m, mfc=f, ls="", ms=6, label=name)
        for m, f, name in marks
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)


def _scale(values: Sequence[Floats]) -> Any:
    import numpy as np
    from matplotlib.colors import LogNorm

    known = np.concatenate([np.zeros(0), *(np.asarray(part, float) for part in values)])
    known = known[np.isfinite(known) & (known > 0)]
    low, high = (known.min(), known.max()) if len(known) else (0.1, 1.0)
    return LogNorm(low, max(high, 1.01 * low))
