"""One metric against another, trial by trial, with Kendall's tau.

The figures show what goes together, and what does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nablab.contract import Claim, Figure, Level, Records
from nablab.plots import frame
from nablab.plots.style import Style
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scatter(
    records: Records,
    metrics: Mapping[str, str],
    *,
    y: str,
    color_by: str = "",
    log_x: bool | None = None,
    y_label: str = "",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw a panel per metric, with a dot per trial.

    The metric goes across, ``y`` upward, and Kendall's tau stands above.

    Tau and its 95 % interval are those of `Claim.correlates` with ``paired=True``:
    whole seeds are resampled, since trials of one seed are not independent evidence.

    Args:
        records: The trials.
        metrics: The scalars to draw ``y`` against: label of the horizontal axis to
            name.
        y: The scalar of the vertical axis.
        color_by: The factor whose levels have colors.
        log_x: Logarithmic horizontal axes, as in `trend`; None: in each panel, when all
            values are positive and span a factor of 30.
        y_label: Label of the vertical axis, with its unit; the metric's name if empty.
        title: Title; made from the names if empty.
        caption: What to see; how to read the figure is added.
    """
    looks = frame.styles_of(records, color_by)
    table = frame.Table("panel", color_by, "seed", "x", "y", "tau", "low", "high")
    notes = frame.Notes()
    with frame.drawing():
        figure, axes = frame.panel_axes(len(metrics))
        for place, (ax, (label, metric)) in enumerate(
            zip(axes, metrics.items(), strict=True)
        ):
            log = _spans_decades(records, metric) if log_x is None else log_x
            log, linear = frame.around_zero(records.values(metric), log=log)
            notes.linear(f"the axis of {label}", linear)
            lost = 0
            for level, look in looks.items():
                own = frame.at(records, color_by, level)
                points = [
                    (r.seed, r.scalars[metric], r.scalars[y])
                    for r in own
                    if {metric, y} <= {*r.scalars}
                ]
                shown = [p for p in points if all(map(math.isfinite, p))]
                lost += len(points) - len(shown)
                across, upward = [p[1] for p in shown], [p[2] for p in shown]
                ax.plot(
                    across,
                    upward,
                    look.marker,
                    color=look.color,
                    ms=5,
                    alpha=0.7,
                    mew=0,
                )
                table.extend(
                    len(shown),
                    where={"panel": label, color_by: level},
                    seed=[p[0] for p in shown],
                    x=across,
                    y=upward,
                )
            if lost:
                having = "trial has" if lost == 1 else "trials have"
                notes.say(
                    f"{sentence(label)}: {lost} {having} no value that can be drawn."
                )
            _name_with_tau(ax, records, metric, y, label, table)
            frame.ticks(ax, "x", log=log, linear=linear)
            frame.ticks(ax, "y", log=False)
            ax.set_xlabel(label)
            if place % frame.columns_of(len(metrics)) == 0:
                ax.set_ylabel(y_label or words(y))
        said: dict[Level, Style] = {
            level if isinstance(level, str) else f"{words(color_by)} {level}": look
            for level, look in looks.items()
        }
        frame.legend(figure, said)
    title = title or sentence(f"{words(y)} against {frame.listed(metrics)}")
    how = (
        "A dot is a trial. Above: Kendall's tau, from -1 to 1, and its 95 % "
        "interval over seeds."
    )
    alt = (
        f"{title}. {sentence(words(y))} against {frame.listed(metrics)}, one dot "
        "per trial."
    )
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def _spans_decades(records: Records, metric: str) -> bool:
    values = [value for value in records.values(metric) if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _name_with_tau(
    ax: Axes, records: Records, metric: str, y: str, label: str, table: frame.Table
) -> None:
    """Title the panel with tau and its interval, as a verdict would give them."""
    from nablab.verdicts import judge

    verdicts = judge([Claim.correlates(metric, y, paired=True)], records)
    if not verdicts or verdicts[0].effect is None:
        return
    tau, interval = verdicts[0].effect, verdicts[0].interval
    limits = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    ax.set_title(f"τ = {tau:.2f}{limits}".replace("-", "−"))
    low, high = interval or (math.nan, math.nan)
    table.extend(1, where={"panel": label}, tau=tau, low=low, high=high)
