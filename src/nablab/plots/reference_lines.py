"""Dashed lines at known values.

Baselines and ceilings go across a panel, thresholds up and down it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nablab.contract import Level
from nablab.plots import frame
from nablab.plots.style import INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Value by name for all panels, or one such mapping per panel.
References = Mapping[str, float] | Mapping[Level, Mapping[str, float]]
DASHES = (0, (4, 3))
# A label's ground is the page's color, since the label may cross lines or dots.
GROUND = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1}


def of_panel(references: References | None, panel: Level) -> Mapping[str, float]:
    """Select the references of one panel, from either form."""
    found: Any = references or {}
    if any(isinstance(value, Mapping) for value in found.values()):
        found = found.get(panel, {})
    return dict(found)


def across(
    ax: Axes,
    values: Mapping[str, float],
    table: frame.Table,
    where: Mapping[str, Level],
    log_y: bool,
    notes: frame.Notes,
) -> None:
    """Draw labeled horizontal lines.

    Each label stands at the corner of its line where it hides the fewest dots. Call
    this when the data are drawn and the limits of x are set.
    """
    drawable = _drawable(values, log_y, notes)
    table.extend(
        len(values), series=list(values), value=list(values.values()), where=where
    )
    for value in drawable.values():
        ax.axhline(value, color=INK, lw=1, ls=DASHES, alpha=0.6, zorder=1)
    if drawable:
        ax.margins(y=0.12)
    dots = _dots(ax)
    for rank, (name, value) in enumerate(
        sorted(drawable.items(), key=lambda item: item[1])
    ):
        usual = "top" if rank == 0 and len(drawable) > 1 else "bottom"
        sides = [
            (h, v)
            for h in ("right", "left")
            for v in sorted(("top", "bottom"), key=lambda v: v != usual)
        ]
        boxes = [_label(ax, name, value, *side) for side in sides]
        hidden = [
            int(sum(box.get_window_extent().contains(*dot) for dot in dots))
            for box in boxes
        ]
        best = hidden.index(min(hidden))
        for box in (*boxes[:best], *boxes[best + 1 :]):
            box.remove()


def _label(ax: Axes, name: str, value: float, side: str, vertical: str) -> Text:
    x, edge = (0.995 if side == "right" else 0.005), ax.get_yaxis_transform()
    return ax.text(
        x,
        value,
        f" {name} ",
        transform=edge,
        ha=side,
        va=vertical,
        fontsize=9,
        alpha=0.85,
        zorder=4,
    )


def _dots(ax: Axes) -> list[tuple[float, float]]:
    """Find where scattered dots and the corners of lines are, in pixels."""
    import numpy as np
    from matplotlib.collections import PathCollection

    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    points += [
        line.get_xydata() for line in ax.lines if line.get_transform() == ax.transData
    ]
    found = np.concatenate(
        [np.asarray(p, dtype=float).reshape(-1, 2) for p in points]
        or [np.empty((0, 2))]
    )
    pixels = ax.transData.transform(found[np.isfinite(found).all(axis=1)])
    return [(float(x), float(y)) for x, y in pixels]


def upright(
    ax: Axes, values: Mapping[str, float], log_x: bool, notes: frame.Notes
) -> None:
    """Draw vertical lines, labeled along them from the top.

    The label stands on the side where the axis has more room.
    """
    drawable = _drawable(values, log_x, notes)
    for value in drawable.values():
        ax.axvline(value, color=INK, lw=1, ls=DASHES, alpha=0.6, zorder=1)
    low, high = ax.get_xlim()
    middle = math.sqrt(low * high) if log_x and low > 0 else (low + high) / 2
    for name, value in drawable.items():
        side = "right" if value > middle else "left"
        edge = ax.get_xaxis_transform()
        shift = (-3, 0) if side == "right" else (3, 0)
        ax.annotate(
            name,
            (value, 0.98),
            shift,
            edge,
            "offset points",
            rotation=90,
            ha=side,
            va="top",
            fontsize=9,
            bbox=GROUND,
            zorder=2,
        )


def _drawable(
    values: Mapping[str, float], log: bool, notes: frame.Notes
) -> dict[str, float]:
    drawable = {
        k: v for k, v in values.items() if math.isfinite(v) and (v > 0 or not log)
    }
    for name in values.keys() - drawable.keys():
        notes.say(f"The {name} ({values[name]:g}) cannot be drawn on this axis.")
    return drawable
