"""The colors, lines and letters of all figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nablab.contract import Level

# Stand-ins that the SVG export turns into the page's text and background colors. In a
# PNG they look black and white.
INK = "#010203"
PAPER = "#fdfefd"

# Okabe and Ito (2008), black replaced by gray because text and truth are drawn in
# black; yellow comes last because it is faint on white.
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
    "#767676",
    "#f0e442",
)
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")

SETTINGS: Mapping[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.06,
    "font.size": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "nablab",
    "text.color": INK,
    # A condition may be named "$": names are text, never formulas.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}


@dataclass(frozen=True)
class Style:
    """How one level of a factor is drawn."""

    color: str
    line: str
    marker: str


def styles(levels: Iterable[Level]) -> dict[Level, Style]:
    """Give each level one style, by order.

    There are eight colors, then the same colors with other lines and markers.

    >>> len({(s.color, s.line) for s in styles(range(20)).values()})
    20
    """
    return {
        level: Style(
            COLORS[i % len(COLORS)],
            LINES[i // len(COLORS) % len(LINES)],
            MARKERS[i // len(COLORS) % len(MARKERS)],
        )
        for i, level in enumerate(dict.fromkeys(levels))
    }


def palette(levels: Iterable[Level]) -> dict[Level, str]:
    """Give each level one Okabe-Ito color, by order.

    The colors repeat after eight (see `styles`).

    >>> palette(["deep", "shallow"])
    {'deep': '#0072b2', 'shallow': '#d55e00'}
    """
    return {level: style.color for level, style in styles(levels).items()}
