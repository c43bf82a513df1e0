"""A text whose words are shaded by a number each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nablab.contract import Figure
from nablab.plots import frame

COLOR = "#0072b2"
# Points; letters of the figure's font are as wide as this part of their size.
SIZE, LETTER, LINE = 10, 0.62, 1.75
DARKEST = 0.75  # opacity; words stay readable on it


def shaded_words(
    rows: Mapping[str, tuple[Sequence[str], Sequence[float]]],
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Write texts with a shade behind each word, one text below the other.

    The darkest word of a text has its largest value; a value of 0 or less has no shade.

    Args:
        rows: By heading, the words of a text and their values.
        title: Title.
        caption: What to see.
    """
    table = frame.Table("row", "place", "word", "value")
    width = frame.WIDE * 72
    laid = {head: _lines(words, width) for head, (words, _) in rows.items()}
    lines = sum(len(lines) + 1.6 for lines in laid.values())
    with frame.drawing():
        height = max(lines, 2) * SIZE * LINE / 72
        figure, grid = frame.canvas(1, 1, height=height - 0.2, width=frame.WIDE)
        ax = grid[0][0]
        ax.set_axis_off()
        ax.set_xlim(0, width)
        ax.set_ylim(max(lines, 2), 0)
        top = 0.6
        for head, (words, values) in rows.items():
            ax.text(0, top, head, va="center", weight="bold", size=SIZE)
            largest = max((float(value) for value in values), default=0.0) or 1.0
            places = [spot for line in laid[head] for spot in line]
            for place, (word, value) in enumerate(zip(words, values, strict=True)):
                row, left = places[place]
                shade = max(0.0, float(value) / largest) * DARKEST
                _write(ax, word, left, top + 1 + row, shade)
                table.extend(
                    1, where={}, row=head, place=place, word=word, value=float(value)
                )
            top += len(laid[head]) + 1.6
    alt = f"{title}. The words of {frame.listed(rows)}, each with a shade."
    return Figure(title, caption, figure, table.columns, alt)


def _write(ax: Any, word: str, left: float, row: float, shade: float) -> None:
    from matplotlib.patches import Rectangle

    wide = _wide(word)
    box = Rectangle((left, row - 0.42), wide, 0.84, color=COLOR, alpha=shade, lw=0)
    ax.add_patch(box)
    ax.text(left + wide / 2, row, word, va="center", ha="center", size=SIZE)


def _wide(word: str) -> float:
    """Estimate the width of a word in points, with a little room."""
    return (len(word) + 0.7) * SIZE * LETTER


def _lines(words: Sequence[str], width: float) -> list[list[tuple[int, float]]]:
    """Break words into lines: row and left end, in points, of each word."""
    lines: list[list[tuple[int, float]]] = [[]]
    left = 0.0
    for word in words:
        if left + _wide(word) > width and lines[-1]:
            lines.append([])
            left = 0.0
        lines[-1].append((len(lines) - 1, left))
        left += _wide(word) + 0.3 * SIZE * LETTER
    return lines
