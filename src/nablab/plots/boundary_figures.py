"""The line that parts two classes of points, as it moves while a neuron learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nablab.contract import Figure, Records
from nablab.plots import frame
from nablab.text.naming import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and vermilion of Okabe and Ito: told apart by every eye, and by their markers.
CLASSES = (("o", "#0072B2"), ("s", "#D55E00"))
FEWEST_FOR_SHADES = 2


def boundaries(
    records: Records,
    *,
    points: str = "points",
    classes: str = "classes",
    path: str = "path",
    panel_by: str = "",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw two-dimensional points and the lines where a neuron changes its mind.

    The first seed of each panel is drawn: the first lines faint, the last one black.

    Args:
        records: Trials with the arrays named here.
        points: Array (N, 2).
        classes: Array (N,) of +1 and -1.
        path: Array (T, 2) or (T, 3) of weights as they changed, a bias last.
        panel_by: The factor whose levels have panels.
        title: What is drawn.
        caption: What to see; how to read the figure is added.
    """
    panels = [
        (level, next((one for one in own if path in one.arrays), None))
        for level, own in frame.panels_of(records, panel_by)
    ]
    drawn = [(level, record) for level, record in panels if record is not None]
    table = frame.Table(panel_by or "panel", "seed", "change", "weight 1", "weight 2")
    with frame.drawing():
        figure, axes = frame.panel_axes(max(1, len(drawn)))
        for ax, (level, record) in zip(axes, drawn, strict=False):
            steps = np.atleast_2d(record.arrays[path])
            _draw(ax, record.arrays[points], record.arrays[classes], steps)
            # a bare number would not say what it is
            named = f"{words(panel_by)} {level}" if panel_by else level
            frame.name_panel(ax, named)
            table.extend(
                len(steps),
                where={panel_by or "panel": level, "seed": record.seed},
                change=list(range(len(steps))),
                **{"weight 1": list(steps[:, 0]), "weight 2": list(steps[:, 1])},
            )
    how = (
        "One trial a panel. Each line is where the neuron's answer changes, from the "
        "first (faint) to the last (black)."
    )
    return Figure(
        title or "The line between the classes",
        f"{caption} {how}".strip(),
        figure,
        table.columns,
        alt="Points of two classes and the lines between them while a neuron learns.",
    )


def _draw(
    ax: Axes,
    points: np.ndarray,
    classes: np.ndarray,
    path: np.ndarray,
) -> None:
    for (marker, color), side in zip(CLASSES, (1, -1), strict=True):
        x, y = points[classes == side].T
        ax.plot(x, y, marker, color=color, ms=3.5, alpha=0.8, mew=0)
    reach = 1.1 * float(np.abs(points).max())
    for place, weights in enumerate(path):
        last = place == len(path) - 1
        share = (place + 1) / max(len(path), FEWEST_FOR_SHADES)
        line = _segment(weights, 2 * reach)
        if line is not None:
            ax.plot(
                *line,
                color="black" if last else "0.5",
                lw=1.8 if last else 0.8,
                alpha=1.0 if last else 0.15 + 0.5 * share,
            )
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xlabel("first input")
    ax.set_ylabel("second input")


def _segment(weights: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both ends of the line where the weighted sum is 0; None if there is none."""
    normal, bias = weights[:2], float(weights[2]) if len(weights) > 2 else 0.0
    length = float(np.hypot(*normal))
    if length == 0:
        return None
    middle = -bias * normal / length**2
    along = np.array([-normal[1], normal[0]]) / length * reach
    return (
        np.array([middle[0] - along[0], middle[0] + along[0]]),
        np.array([middle[1] - along[1], middle[1] + along[1]]),
    )
