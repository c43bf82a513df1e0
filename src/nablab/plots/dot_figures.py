"""One number per trial: every seed a dot, with mean and interval beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nablab.contract import Figure, Level, Records
from nablab.plots import frame
from nablab.plots.reference_lines import References, across, of_panel
from nablab.plots.style import PAPER, Style
from nablab.statistics.summary import summarize
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dots(
    records: Records,
    metric: str,
    *,
    by: str = "model",
    panel_by: str = "target",
    log_y: bool | None = None,
    same_y: bool = False,
    baselines: References | None = None,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw each seed as one dot, with the mean and its 95 % interval beside.

    Baselines and ceilings are lines.

    On a logarithmic axis the mean is geometric. Infinite values (a threshold never
    reached) are drawn as triangles at the upper edge; a condition that has them shows
    its median instead.

    Args:
        records: The trials; factors other than the two named here are pooled.
        metric: Name of the scalar.
        by: The factor whose levels stand side by side and have colors.
        panel_by: The factor whose levels have panels.
        log_y: Logarithmic axis; None: when all values are positive and span a factor of
            30.
        same_y: Whether all panels have the range of the widest one.
        baselines: Value by name for all panels, or one such mapping per level of
            ``panel_by``.
        x_label: Label of the horizontal axis; the factor if empty.
        y_label: Label of the vertical axis, with its unit; the metric's name if empty.
        title: Title; made from the names if empty.
        caption: What to see; how to read the figure is added.
    """
    looks = frame.styles_of(records, by)
    panels = frame.panels_of(records, panel_by)
    finite = [v for v in records.values(metric) if math.isfinite(v)]
    if log_y is None:
        log_y = bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)
    table = frame.Table("series", panel_by, by, "seed", "value", "low", "high")
    notes = frame.Notes()
    with frame.drawing():
        figure, axes = frame.panel_axes(len(panels))
        for ax, (panel, subset) in zip(axes, panels, strict=True):
            for position, (level, look) in enumerate(looks.items()):
                here = [r for r in frame.at(subset, by, level) if metric in r.scalars]
                values = {r.seed: r.scalars[metric] for r in here}
                where = {panel_by: panel, by: level}
                _column(ax, position, values, look, table, where, log_y, notes)
            ax.set_xlim(-0.6, len(looks) - 0.3)
            _names(ax, list(looks), len(panels))
            frame.name_panel(ax, panel)
            drawn = any(math.isfinite(v) for v in subset.values(metric))
            frame.ticks(ax, "y", log=log_y and drawn)
            across(
                ax, of_panel(baselines, panel), table, {panel_by: panel}, log_y, notes
            )
            if not drawn:
                ax.set_yticks([])
            ax.set_xlabel(x_label or (by if "" not in looks else ""))
        for ax in axes[:: frame.columns_of(len(panels))]:
            ax.set_ylabel(y_label or words(metric))
        if same_y:
            ends = [end for ax in axes for end in ax.get_ylim()]
            for ax in axes:
                ax.set_ylim(min(ends), max(ends))
                frame.ticks(ax, "y", log=log_y)
    mean = "geometric mean" if log_y else "mean"
    how = f"Each dot is one seed. Beside the dots: their {mean} and its 95 % interval."
    title = title or sentence(f"{words(metric)} by {by}")
    alt = f"{title}. One dot per seed for {frame.listed(looks)}."
    alt += frame.in_panels(panels)
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def _column(
    ax: Axes,
    position: int,
    values: Mapping[int, float],
    look: Style,
    table: frame.Table,
    where: dict[str, Level],
    log_y: bool,
    notes: frame.Notes,
) -> None:
    """Draw the dots of one condition, and its mean and interval to their right."""
    name = frame.listed(where.values())
    shown = {
        s: v for s, v in values.items() if math.isfinite(v) and (v > 0 or not log_y)
    }
    endless = [s for s, v in values.items() if v == math.inf]
    missing = len(values) - len(shown) - len(endless)
    if missing:
        notes.say(
            f"{sentence(name)}: {missing} of {len(values)} have no value that "
            "can be drawn."
        )
    x = [position + _jitter(seed) for seed in shown]
    ax.plot(
        x, list(shown.values()), look.marker, color=look.color, ms=5, alpha=0.6, mew=0
    )
    table.extend(
        len(values),
        series="seed",
        seed=list(values),
        value=list(values.values()),
        where=where,
    )
    if endless:
        edge = ax.get_xaxis_transform()
        at = [position + _jitter(seed) for seed in endless]
        ax.plot(
            at, [0.97] * len(at), "^", color=look.color, ms=6, mew=0, transform=edge
        )
        notes.say(
            "A triangle at the upper edge marks a seed that never reached the "
            "threshold (infinite)."
        )
    notes.count(name, len(values), len(values), "")
    if not shown or missing:
        return
    center, low, high = _center([*shown.values(), *(math.inf for _ in endless)], log_y)
    table.extend(
        1,
        series="median" if endless else "mean",
        value=center,
        low=low,
        high=high,
        where=where,
    )
    if endless:
        notes.say("Where a value is infinite, the bar is the median.")
    if not math.isfinite(center):
        return
    beside = position + 0.32
    if math.isfinite(low) and math.isfinite(high):
        ax.plot(
            [beside, beside], [low, high], color=look.color, lw=2, solid_capstyle="butt"
        )
    ax.plot(
        [beside],
        [center],
        look.marker,
        color=look.color,
        ms=6.5,
        mec=PAPER,
        mew=0.8,
        zorder=3,
    )


def _center(values: Sequence[float], log_y: bool) -> tuple[float, float, float]:
    """Compute the mean and its interval (on logarithms if ``log_y``).

    Where values are infinite, the median stands in for the mean.
    """
    summary = summarize(values, geometric=log_y)
    return summary.center, summary.low, summary.high


def _jitter(seed: int) -> float:
    """Compute a sideways shift that depends on the seed alone.

    Multiples of the golden ratio spread evenly.
    """
    return 0.24 * ((seed * 0.6180339887498949) % 1.0) - 0.16


def _names(ax: Axes, levels: Sequence[Level], panels: int) -> None:
    """Write the levels below the dots, slanted where they would run into each other."""
    labels = [str(level) for level in levels]
    room = (52, 34, 24)[frame.columns_of(panels) - 1]
    slanted = sum(len(label) + 2 for label in labels) > room
    ax.set_xticks(
        range(len(labels)),
        labels,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
    )
    ax.tick_params(axis="x", length=0)
