"""Codes in the plane, colored by class, and images on a grid of codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level
from nablab.plots import frame
from nablab.plots.style import INK, PAPER, styles

if TYPE_CHECKING:
    import numpy.typing as npt

GAP = 128  # gray of the lines between images
MOST_CODES = 3_000  # in all panels; an SVG holds 80 bytes for each


@dataclass(frozen=True, eq=False)
class CodeMap:
    """Codes of samples, with their classes.

    Attributes:
        codes: Floats (N, 2).
        labels: Whole numbers (N,), from 0.
        classes: The name of each class.
    """

    codes: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    classes: tuple[str, ...]


def code_maps(
    maps: Mapping[Level, CodeMap], *, title: str = "", caption: str = ""
) -> Figure:
    """Draw codes as dots, a color and marker for each class, with its name at its median.

    Args:
        maps: By the name of a panel. With many codes only the first ones are drawn.
        title: Title.
        caption: What to see; how to read the map is added.
    """
    import numpy as np

    names = dict.fromkeys(name for one in maps.values() for name in one.classes)
    looks = styles(names)
    most = MOST_CODES // max(1, len(maps))
    table = frame.Table("panel", "class", "x", "y")
    notes = frame.Notes()
    with frame.drawing():
        figure, axes = frame.panel_axes(max(1, len(maps)), height=3.3)
        for ax, (panel, one) in zip(axes, maps.items(), strict=False):
            if len(one.codes) > most:
                notes.say(f"The first {most:,} of {len(one.codes):,} codes are drawn.")
            codes, labels = one.codes[:most], one.labels[:most]
            for number, name in enumerate(one.classes):
                own = codes[labels == number]
                if not len(own):
                    continue
                look = looks[name]
                ax.plot(
                    own[:, 0],
                    own[:, 1],
                    look.marker,
                    color=look.color,
                    ms=3,
                    mew=0,
                    alpha=0.7,
                )
                table.extend(
                    len(own),
                    where={"panel": panel, "class": name},
                    x=own[:, 0].tolist(),
                    y=own[:, 1].tolist(),
                )
            for number, name in enumerate(one.classes):
                if len(own := codes[labels == number]):
                    x, y = np.median(own, axis=0).tolist()
                    ax.text(
                        x,
                        y,
                        frame.shortened(name, 12),
                        ha="center",
                        va="center",
                        fontsize=9,
                        fontweight="bold",
                        color=INK,
                        bbox={"boxstyle": "round,pad=0.15", "fc": PAPER, "ec": "none"},
                    )
            frame.name_panel(ax, panel)
            ax.set_aspect("equal", adjustable="datalim")
            frame.ticks(ax, "x", log=False)
            frame.ticks(ax, "y", log=False)
            ax.set_xlabel("first number of the code")
            ax.set_ylabel("second number")
        for ax in axes[len(maps) :]:
            ax.set_axis_off()
        frame.legend(figure, {name: looks[name] for name in names})
    how = "A dot is the mean of a sample's codes; a class's name stands at its median."
    alt = f"{title}. Codes in the plane, colored by class: {frame.listed(maps)}."
    return Figure(title, notes.caption(caption, how), figure, table.columns, alt)


def image_grids(
    grids: Mapping[Level, npt.NDArray[Any]], *, title: str = "", caption: str = ""
) -> Figure:
    """Draw grids of images, each as one picture.

    Args:
        grids: By the name of a panel, uint8 (rows, columns, C, H, W) with 1 or 3
            channels.
        title: Title.
        caption: What to see.
    """
    import numpy as np

    table = frame.Table("panel", "rows", "columns")
    with frame.drawing():
        figure, axes = frame.panel_axes(max(1, len(grids)), height=3.1)
        for ax in axes:
            ax.set_axis_off()
        for ax, (panel, grid) in zip(axes, grids.items(), strict=False):
            rows, columns, channels = grid.shape[:3]
            # A line to the right of each image and below it.
            parted = np.pad(grid, [(0, 0)] * 3 + [(0, 1)] * 2, constant_values=GAP)
            height, width = parted.shape[3:]
            whole = parted.transpose(0, 3, 1, 4, 2)
            whole = whole.reshape(rows * height, columns * width, channels)
            ax.imshow(
                whole[..., 0] if channels == 1 else whole,
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
            frame.name_panel(ax, panel)
            table.extend(1, panel=str(panel), rows=rows, columns=columns, where={})
    alt = f"{title}. Grids of images: {frame.listed(grids)}."
    return Figure(title, caption, figure, table.columns, alt)
