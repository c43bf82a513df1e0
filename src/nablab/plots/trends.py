"""Metrics against a number: what happens as a network, a batch or a share grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level, Record, Records
from nablab.plots import frame
from nablab.plots.reference_lines import References, across, of_panel, upright
from nablab.plots.style import INK, LINES, MARKERS, PAPER, Style, styles
from nablab.statistics.summary import Summary, summarize
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: its title, its label, its records and its metrics."""

    title: Level
    y_label: str
    records: Records
    metrics: tuple[str, ...]


@dataclass
class _Looks:
    """How each pair of metric and color level is drawn, and what the legend says."""

    levels: list[Level]
    legend: dict[Level, Style]
    extra: list[Any] = field(default_factory=list)  # further handles of the legend
    pairs: dict[tuple[str, Level], Style] = field(default_factory=dict)


def trend(
    records: Records,
    metrics: str | Sequence[str] | Mapping[str, Sequence[str]],
    *,
    x: str = "parameters",
    color_by: str = "",
    panel_by: str = "",
    log_x: bool = True,
    log_y: bool | None = None,
    horizontal: References | None = None,
    vertical: References | None = None,
    names: Mapping[str, str] | None = None,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw metrics against a number.

    Every seed is a faint dot, the mean over seeds a line, and its 95 % interval a band.

    On a logarithmic vertical axis the mean is geometric. Where a value is infinite (a
    threshold never reached) the median stands in and the seed is a triangle at the
    upper edge. Records without ``x`` or without the metric are not drawn; nor are
    values that the axes cannot show, and the caption says how many.

    Args:
        records: The trials; factors other than those named here are pooled.
        metrics: One scalar, several in one panel, or several per panel: vertical label
            to scalars.
        x: A numeric factor or scalar; trials with an equal value share a point.
        color_by: The factor whose levels have colors. With several metrics these differ
            in the line; without this factor they differ in color.
        panel_by: The factor whose levels have panels; not together with a mapping of
            metrics.
        log_x: Logarithmic horizontal axis. Where ``x`` is 0 or below in some trials, it
            is linear up to the smallest other size, so that these have a place too; and
            all linear if the others span less than a factor of 30.
        log_y: Logarithmic vertical axis; None: in each panel, when all values are
            positive and span a factor of 30.
        horizontal: Baselines and ceilings, value by name, or one such mapping per
            panel.
        vertical: Thresholds along ``x``, likewise.
        names: What the legend calls a metric; its name in words if missing. Metrics of
            one name (train in each of two panels) look alike.
        x_label: Label of the horizontal axis, with its unit; the name of ``x`` if
            empty.
        y_label: Label of the vertical axis, with its unit; the name of the first metric
            if empty.
        title: Title; made from the names if empty.
        caption: What to see; how to read the figure is added.
    """
    panels = _panels(records, metrics, panel_by, y_label)
    every = list(dict.fromkeys(metric for panel in panels for metric in panel.metrics))
    spoken = {metric: (names or {}).get(metric) or words(metric) for metric in every}
    looks = _looks(records, color_by, spoken)
    table = frame.Table(
        "series", "panel", "metric", color_by, "seed", x, "value", "low", "high"
    )
    notes = frame.Notes()
    log_x, linear = frame.around_zero(_positions(panels, x), log=log_x)
    notes.linear("the horizontal axis", linear)
    with frame.drawing():
        figure, axes = frame.panel_axes(len(panels))
        for ax, panel in zip(axes, panels, strict=True):
            vertical_log = _spans_decades(panel) if log_y is None else log_y
            drawing = _Drawing(ax, x, vertical_log, table, notes)
            for metric in panel.metrics:
                for level in looks.levels:
                    own = frame.at(panel.records, color_by, level)
                    named: dict[str, Level] = {
                        "panel": panel.title,
                        "metric": metric,
                        color_by: level,
                    }
                    drawing.series(
                        own, metric, looks.pairs[metric, level], named, spoken[metric]
                    )
            frame.name_panel(ax, "" if isinstance(metrics, Mapping) else panel.title)
            frame.ticks(ax, "x", log=log_x, linear=linear)
            frame.ticks(ax, "y", log=vertical_log)
            across(
                ax,
                of_panel(horizontal, panel.title),
                table,
                {"panel": panel.title},
                vertical_log,
                notes,
            )
            upright(ax, of_panel(vertical, panel.title), log_x and not linear, notes)
            ax.set_xlabel(x_label or words(x))
            if (
                isinstance(metrics, Mapping)
                or ax in axes[:: frame.columns_of(len(panels))]
            ):
                ax.set_ylabel(panel.y_label)
        frame.legend(figure, looks.legend, looks.extra)
    how = "Dots: single seeds. Lines: their mean; the band is its 95 % interval."
    title = title or sentence(f"{frame.listed(spoken.values())} against {words(x)}")
    alt = f"{title}. {sentence(frame.listed(spoken.values()))} against {words(x)}"
    alt += (
        f", colored by {color_by}: {frame.listed(looks.levels)}." if color_by else "."
    )
    alt += frame.in_panels([(panel.title, panel.records) for panel in panels])
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def _panels(
    records: Records,
    metrics: str | Sequence[str] | Mapping[str, Sequence[str]],
    panel_by: str,
    y_label: str,
) -> list[_Panel]:
    if isinstance(metrics, Mapping):
        if panel_by:
            raise ValueError(
                "Panels are either the levels of a factor or groups of "
                "metrics, not both."
            )
        return [
            _Panel(label, label, records, _several(group))
            for label, group in metrics.items()
        ]
    group = _several(metrics)
    return [
        _Panel(level, y_label or words(group[0]), own, group)
        for level, own in frame.panels_of(records, panel_by)
    ]


def _several(metrics: str | Sequence[str]) -> tuple[str, ...]:
    return (metrics,) if isinstance(metrics, str) else tuple(metrics)


def _looks(records: Records, color_by: str, spoken: Mapping[str, str]) -> _Looks:
    """Choose colors for the levels, and lines for the metrics.

    Where there is a single level, the metrics have colors.
    """
    from matplotlib.lines import Line2D

    by_level, by_name = frame.styles_of(records, color_by), styles(spoken.values())
    levels = list(by_level)
    if len(levels) == 1:
        pairs = {(metric, levels[0]): by_name[name] for metric, name in spoken.items()}
        return _Looks(levels, dict(by_name) if len(by_name) > 1 else {}, [], pairs)
    said = {
        level if isinstance(level, str) else f"{words(color_by)} {level}": level
        for level in levels
    }
    legend: dict[Level, Style] = {name: by_level[level] for name, level in said.items()}
    found = _Looks(levels, legend)
    for place, name in enumerate(by_name):
        line, marker = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
        for metric, level in (
            (m, lv) for m in spoken for lv in levels if spoken[m] == name
        ):
            look = (
                by_level[level]
                if len(by_name) == 1
                else Style(by_level[level].color, line, marker)
            )
            found.pairs[metric, level] = look
        found.extra.append(
            Line2D([], [], color=INK, ls=line, marker=marker, ms=5, lw=1.6, label=name)
        )
    return found if len(by_name) > 1 else _Looks(levels, legend, [], found.pairs)


def _positions(panels: Sequence[_Panel], x: str) -> list[float]:
    """List where the trials that have one of the metrics stand."""
    return [
        _position(record, x)
        for panel in panels
        for record in panel.records
        if any(metric in record.scalars for metric in panel.metrics)
    ]


def _spans_decades(panel: _Panel) -> bool:
    finite = [
        v
        for metric in panel.metrics
        for v in panel.records.values(metric)
        if math.isfinite(v)
    ]
    return (
        bool(finite)
        and min(finite) > 0
        and max(finite) > frame.SPAN_OF_LOG * min(finite)
    )


@dataclass(frozen=True)
class _Drawing:
    """One pair of axes with what every series on it shares."""

    ax: Axes
    x: str
    log_y: bool
    table: frame.Table
    notes: frame.Notes

    def series(
        self,
        records: Records,
        metric: str,
        look: Style,
        where: dict[str, Level],
        spoken: str,
    ) -> None:
        """Draw one metric of one level: its seeds, then the mean and the band."""
        points = self._points(records, metric)
        name = frame.listed(
            level for key, level in where.items() if key not in ("metric", "")
        )
        fewest = min(map(len, points.values()), default=0)
        self.notes.count(name or spoken, fewest, fewest, "")
        summaries: dict[float, Summary] = {}
        for position, pairs in points.items():
            values = [value for _, value in pairs]
            rows = {
                "seed": [seed for seed, _ in pairs],
                "value": values,
                self.x: position,
            }
            self.table.extend(len(values), series="seed", where=where, **rows)
            shown = [
                v for v in values if math.isfinite(v) and (v > 0 or not self.log_y)
            ]
            endless = values.count(math.inf)
            self._dots(position, shown, endless, look)
            if len(shown) + endless < len(values):
                finite = sum(map(math.isfinite, values))
                self.notes.undrawn(
                    spoken,
                    below=finite - len(shown),
                    not_finite=len(values) - finite - endless,
                )
                self.notes.say("Where a seed cannot be drawn there is no mean.")
            else:
                summaries[position] = summarize(values, geometric=self.log_y)
        self._line(summaries, look, where)

    def _points(
        self, records: Records, metric: str
    ) -> dict[float, list[tuple[int, float]]]:
        """Collect seeds and values at every position the axis can show, in order."""
        points: dict[float, list[tuple[int, float]]] = {}
        for record in records:
            position = _position(record, self.x)
            if metric not in record.scalars:
                continue
            if math.isinf(position):
                self.notes.undrawn(words(self.x), not_finite=1)
            elif not math.isnan(position):
                points.setdefault(position, []).append(
                    (record.seed, record.scalars[metric])
                )
        return dict(sorted(points.items()))

    def _dots(
        self, position: float, shown: Sequence[float], endless: int, look: Style
    ) -> None:
        here = [position] * len(shown)
        self.ax.plot(
            here, shown, look.marker, color=look.color, ms=3.2, alpha=0.45, mew=0
        )
        if endless:
            edge = self.ax.get_xaxis_transform()
            self.ax.plot(
                [position], [0.97], "^", color=look.color, ms=6, mew=0, transform=edge
            )
            self.notes.say(
                "A triangle at the upper edge marks seeds that never reached the "
                "threshold (infinite); the line then goes through the median."
            )

    def _line(
        self, summaries: Mapping[float, Summary], look: Style, where: dict[str, Level]
    ) -> None:
        for position, found in summaries.items():
            values = {
                "value": found.center,
                "low": found.low,
                "high": found.high,
                self.x: position,
            }
            series = "median" if found.infinite else "mean"
            self.table.extend(1, series=series, where=where, **values)
        drawn = {
            position: found
            for position, found in summaries.items()
            if math.isfinite(found.center)
        }
        centers = [found.center for found in drawn.values()]
        self.ax.plot(list(drawn), centers, color=look.color, ls=look.line, lw=1.8)
        self.ax.plot(
            list(drawn),
            centers,
            look.marker,
            color=look.color,
            ms=5,
            mec=PAPER,
            mew=0.7,
            zorder=3,
        )
        # NaN, where there is no interval, leaves a gap in the band.
        low, high = (
            [found.low for found in drawn.values()],
            [found.high for found in drawn.values()],
        )
        self.ax.fill_between(list(drawn), low, high, color=look.color, alpha=0.18, lw=0)


def _position(record: Record, x: str) -> float:
    found = (
        record.condition[x]
        if x in record.condition
        else record.scalars.get(x, math.nan)
    )
    if isinstance(found, str):
        raise ValueError(
            f"'{x}' is '{found}' at {record.condition}: a horizontal axis "
            "needs numbers."
        )
    return float(found)
