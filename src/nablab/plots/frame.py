"""What all drawings share.

That is settings, grids of axes, ticks, legends, the table and the caption.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nablab.contract import Level, Records
from nablab.plots.style import INK, SETTINGS, Style, styles
from nablab.text.naming import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# 18,000 points of about 12 bytes keep an SVG below 300 kB with what else is in it.
POINTS_PER_FIGURE = 18_000
MOST_POINTS, FEWEST_POINTS = 400, 16
# Inches. 8 are 768 CSS pixels, so that text of 10 points stays above 8 points at 800
# pixels.
WIDE, NARROW = 8.0, 5.6
SPAN_OF_LOG = 30  # from here on a linear axis would hide the small values
# of a legend, until it makes the figure taller; inches
LEGEND_LINES, LEGEND_LINE_HEIGHT = 2, 0.21
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the matplotlib settings of every figure, for drawing and for saving."""
    settings: Any = dict(SETTINGS)
    with matplotlib_as_shipped() as mpl, mpl.rc_context(settings):
        yield


# What belongs to the program around, not to the look of a figure; its backend may be in
# use.
_KEPT = ("backend", "interactive")


@contextmanager
def matplotlib_as_shipped() -> Iterator[Any]:
    """Apply the settings that matplotlib comes with, and give the module itself.

    A matplotlibrc, a style or a program may have set others; those are put aside
    meanwhile.
    """
    mpl = _matplotlib()
    shipped: Any = {
        key: value for key, value in mpl.rcParamsDefault.items() if key not in _KEPT
    }
    with mpl.rc_context(shipped):
        yield mpl


def _matplotlib() -> Any:
    """Import matplotlib, whatever backend ``MPLBACKEND`` names.

    The import fails where that backend is not installed.

    A notebook sets it for the commands that it starts, whatever Python these run in.
    Figures here are drawn without any backend.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def canvas(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 3.0,
    width: float | None = None,
    **options: Any,
) -> tuple[Canvas, list[list[Axes]]]:
    """Make an empty figure with a grid of axes; call it inside ``with drawing():``.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        height: Height of a row in inches.
        width: Width of the figure in inches; 8, or 5.6 for a single column.
        options: Further options of ``matplotlib.figure.Figure.subplots``.
    """
    from matplotlib.figure import Figure as Canvas

    size = (width or (WIDE if columns > 1 else NARROW), rows * height + 0.3)
    figure = Canvas(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def panel_axes(panels: int, *, height: float = 2.9) -> tuple[Canvas, list[Axes]]:
    """Make one axes per panel.

    There are up to three in one row, or two in each of several rows. The last row may
    have a gap.
    """
    columns = columns_of(panels)
    figure, grid = canvas(math.ceil(panels / columns), columns, height=height)
    axes = [ax for row in grid for ax in row]
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def points_per_line(lines: int, panels: int) -> int:
    """Compute how many points a line may have.

    A band counts as two lines, a panel as 150 points.
    """
    room = POINTS_PER_FIGURE - 150 * panels
    return min(MOST_POINTS, max(FEWEST_POINTS, room // max(1, lines)))


def columns_of(panels: int) -> int:
    """Compute how many panels stand in a row."""
    return panels if panels <= 3 else 2


def panels_of(records: Records, factor: str) -> list[tuple[Level, Records]]:
    """Split records by the levels of the factor.

    There is one nameless panel if no record has the factor.
    """
    levels = records.levels(factor) if factor else []
    return [(level, records.where(**{factor: level})) for level in levels] or [
        ("", records)
    ]


def styles_of(records: Records, factor: str) -> dict[Level, Style]:
    """Give each level its style.

    There is one nameless level if no record has the factor.
    """
    return styles((records.levels(factor) if factor else []) or [""])


def at(records: Records, factor: str, level: Level) -> Records:
    """Select the records at one level; all of them for the nameless level."""
    return (
        records
        if level == "" and not records.levels(factor)
        else records.where(**{factor: level})
    )


def name_panel(ax: Axes, *parts: Level) -> None:
    """Title a panel with the levels it shows.

    Where the panel is narrow they stand on lines of their own, and are shortened.
    """
    names = [str(part) for part in parts if part != ""]
    place = ax.get_subplotspec()
    columns = place.get_gridspec().ncols if place else 1
    figure = ax.get_figure(root=True)
    width = figure.get_figwidth() if figure else WIDE
    # Inches for the axis beside, then points per letter.
    room = int((width / columns - 0.45) * 72 / 6.2)
    text = " · ".join(names)
    if len(text) > room:
        text = "\n".join(shortened(name, room) for name in names)
    if text:
        ax.set_title(text)


def shortened(text: str, room: int) -> str:
    """Leave out the middle of a text that is longer than ``room``.

    >>> shortened("x*sin(x)@-3..3@300", 12)
    'x*sin(…3@300'
    """
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def around_zero(values: Iterable[float], *, log: bool) -> tuple[bool, float]:
    """Fit a logarithmic axis to values of which some may be 0 or below.

    >>> around_zero([0.001, 0.1], log=True)
    (True, 0.0)
    >>> around_zero([0.0, 0.001, 0.1], log=True)
    (True, 0.001)
    >>> around_zero([0.0, 0.5, 1.0], log=True)
    (False, 0.0)

    Args:
        values: What the axis shall hold; only finite ones count.
        log: Whether it shall be logarithmic.

    Returns:
        Whether it is logarithmic, and up to which size from 0 it is linear, which makes
        a place for 0 and below: the smallest size there is, or 0 where it need not be
        linear anywhere. Sizes within a factor of 30 are better seen on an axis that is
        linear everywhere.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not log or all(value > 0 for value in finite):
        return log, 0.0
    sizes = [abs(value) for value in finite if value]
    if not sizes or max(sizes) <= SPAN_OF_LOG * min(sizes):
        return False, 0.0
    return True, min(sizes)


def ticks(axis_of: Axes, which: str, *, log: bool, linear: float = 0.0) -> None:
    """Set ticks without mathematical markup.

    An SVG thus holds plain text in the reader's font.

    Args:
        axis_of: The axes, with the data in them.
        which: ``x`` or ``y``.
        log: Whether the axis is logarithmic.
        linear: Up to which size from 0 a logarithmic axis is linear, so that it has a
            place for 0 and below; see `around_zero`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis = axis_of.xaxis if which == "x" else axis_of.yaxis
    if log and linear:
        _ticks_around_zero(axis_of, which, linear)
        return
    if not log:
        axis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
        low, high = axis.get_view_interval()
        if which == "x" or max(abs(low), abs(high)) >= 1000:
            axis.set_major_formatter(
                FuncFormatter(lambda value, _: plain_number(value))
            )
        return
    if axis.get_data_interval()[1] <= 0 or not math.isfinite(
        axis.get_data_interval()[1]
    ):
        # Nothing that a logarithmic axis can show: matplotlib would warn and invent a
        # range.
        axis.set_ticks([])
        return
    (axis_of.set_xscale if which == "x" else axis_of.set_yscale)("log")
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if 0 < low < high else 1.0
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=30))
    axis.set_minor_formatter(NullFormatter())
    if decades >= 2:
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
        return
    subs = (1.0, 2.0, 5.0) if decades > 0.5 else tuple(float(i) for i in range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _ticks_around_zero(axis_of: Axes, which: str, linear: float) -> None:
    """Set a tick at 0, and others where the axis is logarithmic."""
    from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

    axis = axis_of.xaxis if which == "x" else axis_of.yaxis
    set_scale = axis_of.set_xscale if which == "x" else axis_of.set_yscale
    set_scale("symlog", linthresh=linear)
    # Powers of ten below the linear part would crowd around 0.
    first = 10.0 ** math.ceil(math.log10(linear) - 1e-9)
    major = SymmetricalLogLocator(base=10, linthresh=first)
    major.set_params(numticks=7)
    axis.set_major_locator(major)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _signed_power(value)))


def _signed_power(value: float) -> str:
    """Write a power of ten, its negative, or 0."""
    return f"−{power_of_ten(-value)}" if value < 0 else power_of_ten(value)


def power_of_ten(value: float) -> str:
    """Write a power of ten as text.

    >>> power_of_ten(0.001)
    '10⁻³'
    """
    return (
        "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)
        if value > 0
        else "0"
    )


def short_number(value: float) -> str:
    """Write a tick in few letters: k for thousands from 10,000 on, M for millions.

    >>> short_number(0.5), short_number(5_000.0), short_number(50_000.0), short_number(2e6)
    ('0.5', '5000', '50k', '2M')
    """
    for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def plain_number(value: float) -> str:
    """Write a tick with a comma between thousands and a real minus sign.

    >>> plain_number(20000.0), plain_number(-0.5)
    ('20,000', '−0.5')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return text.replace("-", "−")


def legend(
    figure: Canvas, entries: Mapping[Level, Style], extra: Sequence[Any] = ()
) -> None:
    """Draw one legend above all panels.

    There is none where there is a single nameless entry. A legend of more than two
    lines makes the figure taller, not the panels lower.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.color, ls=look.line, lw=2.2, label=str(level))
        for level, look in entries.items()
        if level != ""
    ]
    handles += list(extra)
    if not handles:
        return
    # Points: a letter takes about 5.6, the line and the gaps about as much as 7
    # letters.
    longest = 5.6 * (7 + max(len(str(handle.get_label())) for handle in handles))
    fitting = int(72 * figure.get_figwidth() / longest)
    columns = max(1, min(5, fitting, len(handles)))
    more = math.ceil(len(handles) / columns) - LEGEND_LINES
    if more > 0:
        figure.set_figheight(figure.get_figheight() + more * LEGEND_LINE_HEIGHT)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        labelcolor=INK,
        handlelength=1.6,
    )


def listed(names: Iterable[Level]) -> str:
    """Join names with commas."""
    return ", ".join(str(name) for name in names if name != "")


def in_panels(panels: Iterable[tuple[Level, Records]], kind: str = "Panels") -> str:
    """Write the names of the panels as a sentence.

    It is empty where there is a single nameless one.
    """
    names = listed(panel for panel, _ in panels)
    return f" {kind}: {names}." if names else ""


class Table:
    """The plotted numbers, built row by row, kept column by column."""

    def __init__(self, *columns: str) -> None:
        # Two parts of a figure may be told apart by the same factor: one column is
        # enough then.
        self.columns: dict[str, list[Any]] = {name: [] for name in columns if name}

    def extend(self, count: int, *, where: Mapping[str, Level], **values: Any) -> None:
        """Append ``count`` rows.

        A single value stands in each of them, a missing one is empty.
        """
        row = {**values, **where}
        for name, column in self.columns.items():
            value = row.get(name, "")
            several = hasattr(value, "__len__") and not isinstance(value, str)
            column.extend(
                (v.item() if hasattr(v, "item") else v for v in value)
                if several
                else [value] * count
            )


class Notes:
    """What the reader of an incomplete figure must know."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._single: list[str] = []
        self._empty: list[str] = []
        self._below: dict[str, int] = {}
        self._not_finite: dict[str, int] = {}

    def undrawn(self, name: str, *, below: int = 0, not_finite: int = 0) -> None:
        """Count values that cannot be drawn.

        Args:
            name: Of what.
            below: How many are 0 or negative, on a logarithmic axis.
            not_finite: How many are NaN or infinite.
        """
        for counts, more in ((self._below, below), (self._not_finite, not_finite)):
            if more:
                counts[name] = counts.get(name, 0) + more

    def linear(self, axis: str, up_to: float) -> None:
        """Say up to which size from 0 a logarithmic axis is linear, if it is."""
        if up_to:
            exponent = math.log10(up_to)
            power = exponent == round(exponent) and abs(exponent) > 2
            size = power_of_ten(up_to) if power else f"{up_to:.2g}"
            self.say(
                f"To show 0 and below, {axis} is linear up to {size} and logarithmic "
                "beyond."
            )

    def say(self, text: str) -> None:
        """Add a sentence once."""
        self._sentences[text] = None

    def has(self, start: str) -> bool:
        """Tell whether a sentence with this start was said."""
        return any(text.startswith(start) for text in self._sentences)

    def count(self, name: str, runs: int, used: int, why: str) -> None:
        """Note a condition without runs, with a single one, or with some left out."""
        name = name or "this condition"
        if not runs:
            self._empty.append(name)
        elif used < runs:
            self.say(
                f"{sentence(name)}: {runs - used} of {runs} runs left out of the "
                f"mean ({why})."
            )
        if used == 1:
            self._single.append(name)

    def caption(self, *sentences: str) -> str:
        """Join all sentences to one paragraph."""
        notes = list(self._sentences)
        if self._below:
            notes.append(
                "Not drawn, since 0 and negative numbers have no place on a logarithmic "
                f"axis: {_counted(self._below)}."
            )
        if self._not_finite:
            notes.append(f"Not drawn, since not finite: {_counted(self._not_finite)}.")
        if self._single:
            notes.append(f"A single seed, so no interval: {', '.join(self._single)}.")
        if self._empty:
            notes.append(f"No runs yet: {', '.join(self._empty)}.")
        return " ".join(s.strip() for s in (*sentences, *notes) if s.strip())


def _counted(values: Mapping[str, int]) -> str:
    """Say how many values of what there are.

    >>> _counted({"error": 1, "loss": 1200})
    '1 value of error, 1,200 values of loss'
    """
    return ", ".join(
        f"{count:,} value{'' if count == 1 else 's'} of {name}"
        for name, count in values.items()
    )
