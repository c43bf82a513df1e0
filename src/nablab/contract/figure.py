"""What a figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Figure:
    """A drawing with what a reader needs beside it.

    Attributes:
        title: What is drawn, in a few words.
        caption: What to see in it and how to read it.
        figure: A matplotlib figure made without pyplot.
        table: The plotted numbers, one column per key, all of one length.
        alt: The drawing in words, for those who cannot see it.
    """

    title: str
    caption: str
    figure: Canvas
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    alt: str = ""
