"""Tables, as aligned text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.timing import Spread


@dataclass(frozen=True)
class Goal:
    """One line of what the laboratory must reach."""

    measure: str
    measured: str
    at_least: str
    aim: str


@dataclass(frozen=True)
class Table:
    """A title, named columns, rows of as many cells, and notes below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.title}: a row of {len(row)} cells under "
                    f"{len(self.columns)} columns"
                )

    def text(self) -> str:
        """Write the table with aligned columns.

        The first column is aligned to the left, the others to the right.
        """
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = [_aligned(line, widths) for line in lines]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join(
            [self.title, "", body[0], rule, *body[1:], *_after_blank(self.notes)]
        )

    def markdown(self) -> str:
        """Write the same as a Markdown section."""
        marks = ["---", *["---:"] * (len(self.columns) - 1)]
        body = [
            "| " + " | ".join(_escaped(line)) + " |"
            for line in (self.columns, marks, *self.rows)
        ]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *body, *_after_blank(notes)])


@dataclass(frozen=True)
class Findings:
    """What one subject measured."""

    tables: Sequence[Table]
    goals: Sequence[Goal] = field(default=())


def goals_table(goals: Iterable[Goal]) -> Table:
    """List all goals, each with what was measured for it."""
    rows = [(goal.measure, goal.measured, goal.at_least, goal.aim) for goal in goals]
    return Table("Goals", ("measure", "measured", "at least", "aim"), rows)


def spread_text(spread: Spread, unit: str = "") -> str:
    """Write the median, and the extremes where they differ from it.

    Numbers have three significant digits.

    >>> spread_text(Spread(14.23, 14.0, 15.01), "x")
    '14.2x (14–15)'
    """
    median, low, high = (
        significant(value) for value in (spread.median, spread.low, spread.high)
    )
    extremes = "" if low == high else f" ({low}–{high})"
    return f"{median}{unit}{extremes}"


def significant(value: float) -> str:
    """Write three significant digits without an exponent, thousands separated.

    >>> [significant(value) for value in (0.01234, 1.5, 187.4, 12345.6)]
    ['0.0123', '1.5', '187', '12,346']
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def _escaped(line: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in line]


def _after_blank(notes: Sequence[str]) -> list[str]:
    return ["", *notes] if notes else []
