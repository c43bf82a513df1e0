"""Many small pictures side by side: filters of a convolution, and maps it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure
from nablab.plots import frame

if TYPE_CHECKING:
    import numpy.typing as npt

GAP = 0.12  # of a tile's side
LINE = 0.5  # inches: a panel's title and the gap above it


def filter_pictures(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make pictures of a convolution's filters; the filters stay as they are.

    All input channels of a filter make one picture: three of them are red, green and
    blue. Weight zero is the middle gray of every picture, and the largest size in a
    filter is its white or black, so that filters of small weights are seen, too.

    Args:
        weights: (filters, channels, height, width), of 1 or 3 channels; of others the
            mean over the channels is shown.

    Returns:
        uint8 (filters, 1 or 3, height, width).
    """
    import numpy as np

    values = np.array(weights, dtype=float)
    if values.shape[1] not in (1, 3):
        values = values.mean(axis=1, keepdims=True)
    size = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    scaled = values / np.where(size > 0, size, 1.0)
    return np.round(127.5 + 127.5 * scaled).astype(np.uint8)


def map_pictures(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make pictures of feature maps: each from black at its least to white at its most.

    A map that is the same everywhere is black.

    Args:
        maps: (maps, height, width).

    Returns:
        uint8 (maps, 1, height, width).
    """
    import numpy as np

    values = np.array(maps, dtype=float)
    least = values.min(axis=(1, 2), keepdims=True)
    span = values.max(axis=(1, 2), keepdims=True) - least
    scaled = (values - least) / np.where(span > 0, span, 1.0)
    pictures: npt.NDArray[Any] = np.round(255 * scaled).astype(np.uint8)
    return pictures[:, None]


def tiles(
    panels: Mapping[str, npt.NDArray[Any]],
    *,
    columns: int = 16,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw pictures as tiles, the panels one below the other.

    Args:
        panels: By heading, pictures uint8 (M, 1 or 3, height, width).
        columns: Tiles in a row.
        title: Title.
        caption: What to see.
    """
    table = frame.Table("panel", "tile")
    rows = [max(1, math.ceil(len(panel) / columns)) for panel in panels.values()]
    # Tiles of all panels are equally large.
    heights = [count * frame.WIDE / columns + LINE for count in rows] or [1.0]
    with frame.drawing():
        figure, grid = frame.canvas(
            max(1, len(panels)),
            1,
            height=sum(heights) / len(heights),
            width=frame.WIDE,
            height_ratios=heights,
        )
        for (ax,) in grid:
            ax.set_axis_off()
        for (ax,), (head, pictures) in zip(grid, panels.items(), strict=False):
            ax.set_title(head if len(pictures) else f"{head}: none")
            if len(pictures):
                ax.imshow(_mosaic(pictures, columns), interpolation="nearest")
                ax.set_anchor("W")
            for place in range(len(pictures)):
                table.extend(1, where={}, panel=head, tile=place)
    counts = [f"{len(panel)} of {head}" for head, panel in panels.items()]
    alt = f"{title}. Small pictures: {frame.listed(counts)}."
    return Figure(title, caption, figure, table.columns, alt)


def _mosaic(pictures: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Lay pictures out in rows, uint8 (height, width, 4); gaps are transparent."""
    import numpy as np

    count, channels, height, width = pictures.shape
    # A picture of few pixels is enlarged, or its gap would be as wide as itself.
    zoom = max(1, math.ceil(12 / min(height, width)))
    high, wide = height * zoom, width * zoom
    gap = max(1, round(GAP * min(high, wide)))
    rows = math.ceil(count / columns)
    canvas = np.zeros(
        (rows * (high + gap) - gap, columns * (wide + gap) - gap, 4), dtype=np.uint8
    )
    for place in range(count):
        row, column = divmod(place, columns)
        tile = pictures[place].repeat(zoom, axis=1).repeat(zoom, axis=2)
        top, left = row * (high + gap), column * (wide + gap)
        spot = canvas[top : top + high, left : left + wide]
        spot[..., :3] = tile.transpose(1, 2, 0) if channels == 3 else tile[0][..., None]
        spot[..., 3] = 255
    return canvas
