"""A verdict as a small drawing: effect and interval against the line that decides.

All rows of a report are drawn alike, so that a reader learns them once. The line that
decides stands in the middle, and the side on which the claim is true lies to the right,
whatever the claim's sign: an interval wholly to the right supports the claim, one
wholly to the left refutes it, and one across the line leaves it open. (For a claim of
"less" the numbers therefore grow to the left; the words in the row say the direction.)
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nablab.report import tables

if TYPE_CHECKING:
    from nablab.verdicts import Axis, Verdict

WIDTH, HEIGHT = 264, 38
MIDDLE, HALF = WIDTH / 2, WIDTH / 2 - 8
# Heights of the published value, of the bar, of the shaded half's end, and of the words
# below.
ABOVE, BAR, FOOT, LABELS = 5, 14, 25, 36
CHARACTER = 6.2  # pixels that a letter of a label takes, about
# a published value farther out than this many times the rest gets an arrow at the edge
FARTHEST = 3.0


@dataclass(frozen=True)
class Places:
    """Where things stand, in pixels from the left edge.

    Attributes:
        effect: The point estimate.
        low: The left end of the interval, None where there is no interval.
        high: Its right end.
        zero: Where the effect would be nil.
        published: The published value, or None.
        cut: What lies beyond the edge and is drawn at it.
    """

    effect: float
    low: float | None
    high: float | None
    zero: float
    published: float | None
    cut: frozenset[str] = frozenset()


def places(verdict: Verdict, axis: Axis) -> Places:
    """Place a verdict on an axis with the deciding line in the middle.

    The claimed side is to the right.

    One scale serves the whole drawing: a distance of ``reach`` is half its width.
    """
    values: dict[str, float] = {"effect": verdict.effect or 0.0, "zero": 0.0}
    if verdict.interval is not None:
        ends = sorted(verdict.interval, key=lambda value: axis.side * value)
        values |= {"low": ends[0], "high": ends[1]}
    distances = {
        name: axis.side * (value - axis.line) for name, value in values.items()
    }
    reach = (
        max((abs(d) for d in distances.values() if math.isfinite(d)), default=0.0)
        or 1.0
    )
    if axis.published is not None:
        distances["published"] = axis.side * (axis.published - axis.line)
        if abs(distances["published"]) <= FARTHEST * reach:
            reach = max(reach, abs(distances["published"]))
    at = {
        name: MIDDLE + HALF * max(-1.0, min(1.0, d / reach))
        for name, d in distances.items()
    }
    cut = frozenset(name for name, d in distances.items() if abs(d) > reach)
    return Places(
        at["effect"],
        at.get("low"),
        at.get("high"),
        at["zero"],
        at.get("published"),
        cut,
    )


def drawing(verdict: Verdict, name: str) -> str:
    """Draw a verdict as SVG for the inside of a page; empty where nothing was measured.

    Args:
        verdict: What to draw.
        name: An id that is unique on the page.
    """
    axis = verdict.axis
    if axis is None or verdict.effect is None:
        return ""
    at = places(verdict, axis)
    title = _text(description(verdict, axis))
    parts = [
        f'<rect class="claimed" x="{MIDDLE:g}" y="0" width="{MIDDLE:g}" height="{FOOT}"/>',
        f'<line class="rail" x1="0" x2="{WIDTH}" y1="{BAR}" y2="{BAR}"/>',
        *_zero(at, axis),
        f'<line class="deciding" x1="{MIDDLE:g}" x2="{MIDDLE:g}" y1="0" y2="{FOOT}"/>',
        *_interval(at),
        f'<circle class="dot" cx="{at.effect:.1f}" cy="{BAR}" r="4.5"/>',
        *_published(at),
        *_labels(at, axis),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="forest" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="{name}">'
        f'<title id="{name}">{title}</title>{"".join(parts)}</svg>'
    )


def description(verdict: Verdict, axis: Axis) -> str:
    """Describe what the drawing shows, for those who cannot see it."""
    half = {"supported": "right of", "refuted": "left of", "inconclusive": "across"}[
        verdict.outcome
    ]
    line = f"The line that decides: {axis.line_text}; the claimed side is to the right."
    where = (
        f"The interval lies {half} it."
        if verdict.interval and verdict.outcome != "inconclusive"
        else ""
    )
    published = (
        "The diamond is the published value." if axis.published is not None else ""
    )
    return " ".join(
        part for part in (f"{verdict.effect_text}.", line, where, published) if part
    )


def _text(words: str) -> str:
    """Escape words for the inside of the drawing."""
    return html.escape(tables.with_minus(words))


def _zero(at: Places, axis: Axis) -> Sequence[str]:
    """Draw a dotted line where the effect is nil, unless that is the deciding line."""
    if not axis.line:
        return []
    return [
        f'<line class="zero" x1="{at.zero:.1f}" x2="{at.zero:.1f}" y1="2" y2="{FOOT - 2}"/>'
    ]


def _interval(at: Places) -> Sequence[str]:
    if at.low is None or at.high is None:
        return []
    ends = [
        _arrow(x, BAR, direction)
        if name in at.cut
        else f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{BAR - 4}" y2="{BAR + 4}"/>'
        for name, x, direction in (("low", at.low, -1), ("high", at.high, 1))
    ]
    return [
        f'<line class="bar" x1="{at.low:.1f}" x2="{at.high:.1f}" y1="{BAR}" y2="{BAR}"/>',
        *ends,
    ]


def _arrow(x: float, y: float, direction: int, kind: str = "bar") -> str:
    """Draw an arrow for what goes on, or lies, beyond the edge."""
    back = x - 5 * direction
    return (
        f'<path class="{kind}" d="M{back:.1f} {y - 4}L{x:.1f} {y}L{back:.1f} {y + 4}"/>'
    )


def _published(at: Places) -> Sequence[str]:
    if at.published is None:
        return []
    x = at.published
    corner = f"M{x:.1f} {ABOVE - 4.5}"
    diamond = f'<path class="published" d="{corner}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'
    if "published" not in at.cut:
        return [diamond]
    direction = 1 if x > MIDDLE else -1
    return [diamond, _arrow(x + 8 * direction, ABOVE, direction, "beyond")]


def _labels(at: Places, axis: Axis) -> Sequence[str]:
    """Name the line in words below it, and nil where there is room for both."""
    text = axis.line_text if axis.line else axis.zero_text
    found = [
        f'<text x="{MIDDLE:g}" y="{LABELS}" text-anchor="middle">{_text(text)}</text>'
    ]
    room = CHARACTER * (len(text) + len(axis.zero_text)) / 2 + 6
    if axis.line and abs(at.zero - MIDDLE) > room:
        # A label at the edge would be cut in half, so it ends where the drawing ends.
        half = CHARACTER * len(axis.zero_text) / 2
        x = min(max(at.zero, half), WIDTH - half)
        found.append(
            f'<text x="{x:.1f}" y="{LABELS}" text-anchor="middle">'
            f"{_text(axis.zero_text)}</text>"
        )
    return found
