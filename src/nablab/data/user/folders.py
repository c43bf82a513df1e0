"""Folders of images, a subfolder per class."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from nablab.data.identity import State, state_of
from nablab.data.images.pictures import SUFFIXES, read_form, read_images
from nablab.data.user.class_folders import Wanted, list_classes
from nablab.data.user.limits import check_fits
from nablab.data.user.own import Own
from nablab.errors import UsageError
from nablab.files.places import in_text

IMAGES = Wanted("images", tuple(SUFFIXES))


def open_folder(folder: Path, size: int | None, channels: int | None) -> Own:
    """Read what a folder holds; the images are decoded when they are asked for.

    Raises:
        UsageError: As `list_classes`, and for images that differ in form.
    """
    try:
        return _open_folder(folder, size, channels)
    except OSError as error:
        where = in_text(error.filename or folder)
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error


def _open_folder(folder: Path, size: int | None, channels: int | None) -> Own:
    classes, listings = list_classes(folder, IMAGES)
    states = tuple(
        state_of(path) for listing in listings.values() for path in listing.paths
    )
    _check(in_text(folder), states, size, channels)

    def images(split: str, where: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
        listing = listings[split]
        found, notes = read_images(
            [listing.paths[index] for index in where], size, channels
        )
        return found, (*notes, *listing.notes)

    labels = {split: listing.labels for split, listing in listings.items()}
    return Own(
        folder, tuple(map(in_text, classes)), labels, images, (states, size, channels)
    )


@lru_cache(maxsize=8)
def _check(
    folder: str, states: tuple[State, ...], size: int | None, channels: int | None
) -> None:
    """Raise unless all images can be brought to one form, and fit in memory.

    Only their headers are read.

    The images of both splits are looked at: what is wrong with the last test image
    should be known before the training, not after it.

    Args:
        folder: What to call the whole.
        states: Path and state of every file.
        size: As `read_images` has it.
        channels: As `read_images` has it.
    """
    first: tuple[Path, tuple[int, int, int]] | None = None
    for name, *_ in states:
        path = Path(name)
        depth, height, width = read_form(path)
        form = (channels or depth, size or height, size or width)
        first = first or (path, form)
        if form != first[1]:
            raise _different(*first, path, form)
    if first:
        depth, height, width = first[1]
        what = (
            f"{folder} has {len(states):,} images of {height:,} x {width:,} "
            "pixels, which"
        )
        remedy = "Take a smaller size (size=64) or fewer images."
        check_fits(len(states) * depth * height * width, what, remedy)


def _different(
    first: Path, form: tuple[int, int, int], second: Path, other: tuple[int, int, int]
) -> UsageError:
    if form[1:] != other[1:]:
        return UsageError(
            f"The images differ in size: {in_text(first)} has {form[1]} x {form[2]} "
            f"pixels (height x width), {in_text(second)} has {other[1]} x {other[2]}. "
            "size=28 (or another number) makes all of them squares."
        )
    gray, color = (first, second) if form[0] == 1 else (second, first)
    return UsageError(
        f"The images differ in color: {in_text(gray)} is gray, {in_text(color)} is in "
        "color. channels=1 makes all of them gray, channels=3 gives all of them three "
        "channels."
    )
