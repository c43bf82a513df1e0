"""Images in rows with words below: any, or those that networks read wrongly."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nablab.contract import Figure, Level, Records
from nablab.plots import frame

if TYPE_CHECKING:
    import numpy.typing as npt

    from nablab.data import ImageSet

MOST_COLUMNS, MOST_LINES = 10, 3
# font sizes in points; the width of a letter as a part of its size
LARGE, SMALL, LETTER = (9, 6.5, 0.66)
UNBROKEN = "\u00a0"  # a space at which no line is broken


def image_rows(
    rows: Mapping[Level, Sequence[tuple[npt.NDArray[Any], str]]],
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw one row of images per level, as they are: gray ones from black to white.

    Args:
        rows: By level, its images uint8 (C, H, W) with 1 or 3 channels, each with the
            words below it. A row shows up to 10; one without images says so. Long words
            go on in up to three lines.
        title: Title.
        caption: What to see.
    """
    columns = (
        min(MOST_COLUMNS, max((len(images) for images in rows.values()), default=0))
        or 1
    )
    table = frame.Table("row", "place", "text")
    below = [text for images in rows.values() for _, text in images[:columns]]
    size = (
        LARGE if all(len(text) <= _letters(columns, LARGE) for text in below) else SMALL
    )
    lines = max(
        (len(_lines(text, _letters(columns, size))) for text in below), default=1
    )
    with frame.drawing():
        height = frame.WIDE / max(columns, 6) + 0.32 + (lines - 1) * SMALL * 1.3 / 72
        figure, grid = frame.canvas(
            max(1, len(rows)), columns, height=height, width=frame.WIDE
        )
        for ax in (ax for line in grid for ax in line):
            ax.set_axis_off()
        for line, (level, images) in zip(grid, rows.items(), strict=False):
            room = int(frame.WIDE * 72 / 6)
            words = frame.shortened(str(level), room) + ("" if images else ": none")
            line[0].set_title(words, fontsize=10)
            for place, (ax, (image, text)) in enumerate(
                zip(line, images, strict=False)
            ):
                shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                ax.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                words = "\n".join(_lines(text, _letters(columns, size)))
                ax.text(
                    0.5,
                    -0.05,
                    words,
                    transform=ax.transAxes,
                    ha="center",
                    va="top",
                    fontsize=size,
                )
                table.extend(
                    1,
                    row=str(level),
                    place=place,
                    text=text.replace(UNBROKEN, " "),
                    where={},
                )
    alt = f"{title}. Images with words below, in rows: {frame.listed(rows)}."
    return Figure(title, caption, figure, table.columns, alt)


def _letters(columns: int, size: float) -> int:
    """Compute how many letters of a font size in points stand below one image."""
    return int(frame.WIDE * 72 / max(columns, 6) / (LETTER * size))


def _lines(text: str, room: int) -> list[str]:
    """Break the words into lines of at most ``room`` letters."""
    words = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [frame.shortened(line, room) for line in words[:MOST_LINES]] or [""]


def mistake_arrays(
    images: ImageSet, places: Any, answers: Any
) -> dict[str, npt.NDArray[Any]]:
    """Collect what `mistakes` draws, for an experiment to keep with `Lab.array`.

    Args:
        images: The images that were read.
        places: int64 (M,): which of them were read wrongly, in the order in which they
            are to stand.
        answers: int64 (M,): what was said of each.
    """
    import numpy as np

    return {
        "mistakes": images.images[places].numpy(),
        "mistaken": images.labels[places].numpy(),
        "mistaken_for": answers.numpy(),
        "class_names": np.frombuffer(
            "\n".join(images.classes).encode(), dtype=np.uint8
        ),
    }


def mistakes(
    records: Records, *, by: str = "model", title: str = "", caption: str = ""
) -> Figure:
    """Draw what networks got wrong.

    A level shows the images of its first trial, with the true class and the answer.

    Args:
        records: The trials; they hold what `mistake_arrays` gives.
        by: The factor whose levels have a row each.
        title: Title.
        caption: What to see; how to read the words below an image is added.
    """
    rows: dict[Level, list[tuple[npt.NDArray[Any], str]]] = {}
    for record in records:
        level = record.condition[by]
        if level in rows or "mistakes" not in record.arrays:
            continue
        arrays = record.arrays
        names = arrays["class_names"].tobytes().decode().split("\n")
        pairs = zip(arrays["mistaken"], arrays["mistaken_for"], strict=True)
        words = [
            f"{names[truth]} →{UNBROKEN}{names[answer]}" for truth, answer in pairs
        ]
        rows[level] = list(zip(arrays["mistakes"], words, strict=True))
    how = "Below each image: its class → the answer."
    return image_rows(
        rows, title=title, caption=" ".join(part for part in (caption, how) if part)
    )
