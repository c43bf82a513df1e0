"""Words in figures: what lies near what, and maps of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure
from nablab.plots import frame
from nablab.plots.style import INK

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#767676"
# Inches of a row of the lists, and of the title above them.
LINE, ABOVE = 0.21, 0.75
NAME = 14  # letters of a word beside a bar


@dataclass(frozen=True)
class Near:
    """A word near something.

    Attributes:
        word: The word.
        cosine: Of the angle between both vectors.
        given: Whether it is a word of the question itself.
    """

    word: str
    cosine: float
    given: bool = False


@dataclass(frozen=True)
class WordMap:
    """Words at places in the plane, of which pairs belong together.

    Attributes:
        words: N words; words 0 and 1 are a pair, 2 and 3, and so on.
        points: Floats (N, 2).
        note: What stands above the map.
    """

    words: Sequence[str]
    points: npt.NDArray[Any]
    note: str = ""


def neighbor_lists(
    lists: Mapping[str, Mapping[str, Sequence[Near]]],
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw the words nearest to each of several questions, a bar for each word.

    Args:
        lists: By row, such as the vectors, and by question: words, the nearest first.
            Words that the question itself holds have open bars.
        title: Title.
        caption: What to see; how to read the bars is added.
    """
    questions = list(dict.fromkeys(one for row in lists.values() for one in row))
    longest = max(
        (len(near) for row in lists.values() for near in row.values()), default=1
    )
    table = frame.Table("row", "question", "place", "word", "cosine", "given")
    with frame.drawing():
        figure, grid = frame.canvas(
            max(1, len(lists)),
            max(1, len(questions)),
            height=LINE * longest + ABOVE,
            width=frame.WIDE,
            sharex=True,
        )
        for axes, (row, found) in zip(grid, lists.items(), strict=False):
            for ax, question in zip(axes, questions, strict=False):
                near = found.get(question, ())
                _bars(ax, near)
                above = row if ax is axes[0] else ""
                ax.set_title(f"{above}\n{question}", fontsize=9)
                for place, one in enumerate(near, start=1):
                    table.extend(
                        1,
                        row=row,
                        question=question,
                        place=place,
                        word=one.word,
                        cosine=one.cosine,
                        given=one.given,
                        where={},
                    )
        for ax in grid[-1]:
            ax.set_xlabel("cosine")
    how = "Open bars are words of the question itself."
    alt = f"{title}. Bars of cosines for {frame.listed(questions)}."
    return Figure(title, f"{caption} {how}".strip(), figure, table.columns, alt)


def _bars(ax: Axes, near: Sequence[Near]) -> None:
    """Draw one list, the nearest word at the top."""
    colors = ["none" if one.given else BLUE for one in near]
    edges = [GRAY if one.given else BLUE for one in near]
    places = range(len(near))
    ax.barh(
        places, [one.cosine for one in near], 0.62, color=colors, edgecolor=edges, lw=1
    )
    ax.set_yticks(places, [frame.shortened(one.word, NAME) for one in near], fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.02)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if not near:
        ax.text(0.5, 0.5, "a word is not there", ha="center", fontsize=9)
        ax.set_yticks([])


def word_maps(
    maps: Mapping[str, WordMap], *, title: str = "", caption: str = ""
) -> Figure:
    """Draw words as points, with a line between the words of a pair.

    Args:
        maps: By the name of a panel.
        title: Title.
        caption: What to see; how to read the map is added.
    """
    table = frame.Table("panel", "word", "pair", "x", "y")
    with frame.drawing():
        figure, axes = frame.panel_axes(max(1, len(maps)), height=3.6)
        for ax, (panel, one) in zip(axes, maps.items(), strict=False):
            for pair in range(len(one.words) // 2):
                ends = one.points[2 * pair : 2 * pair + 2]
                ax.plot(ends[:, 0], ends[:, 1], color=GRAY, lw=0.9, zorder=1)
                for which, color, marker in ((0, BLUE, "o"), (1, ORANGE, "s")):
                    x, y = (float(value) for value in ends[which])
                    word = one.words[2 * pair + which]
                    ax.plot([x], [y], marker, color=color, ms=4, mew=0)
                    ax.annotate(
                        word,
                        (x, y),
                        xytext=(3, 3),
                        textcoords="offset points",
                        fontsize=8,
                        color=INK,
                    )
                    table.extend(
                        1, panel=panel, word=word, pair=pair + 1, x=x, y=y, where={}
                    )
            ax.set_title(f"{panel}\n{one.note}" if one.note else panel, fontsize=9.5)
            ax.margins(0.18, 0.1)
            ax.set_xticks([])
            ax.set_yticks([])
        for ax in axes[len(maps) :]:
            ax.set_axis_off()
    how = (
        "A line joins the words of a pair: circle and square. Axes are the first two "
        "principal components of these words' vectors."
    )
    alt = f"{title}. Words as points, pairs joined by lines: {frame.listed(maps)}."
    return Figure(title, f"{caption} {how}".strip(), figure, table.columns, alt)
