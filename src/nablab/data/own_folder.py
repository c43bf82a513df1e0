"""Folders of images, a subfolder per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nablab.data.forms import convert
from nablab.data.own import Own, check_classes
from nablab.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
GRAY = ("1", "L", "LA", "La")
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
ORIENTATION, TRANSPOSED = 0x0112, 5  # the EXIF field, and its first value with height and width swapped
CLEAR = ("RGBA", "RGBa", "LA", "La", "PA")


@dataclass(frozen=True)
class Listing:
    """The image files of a split: paths, labels (N,), and how many other files there are."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    others: int


def open_folder(folder: Path, size: int | None, channels: int | None) -> Own:
    """What a folder holds; the images are decoded when they are asked for.

    Raises:
        UsageError: There are no classes, a class is empty, or the test split has a class that training
            lacks.
    """
    top = folder / "train" if (folder / "train").is_dir() else folder
    classes = _classes(top)
    listings = {"train": _list(top, classes)}
    check_classes(listings["train"].labels, classes, str(top))
    if top != folder and (folder / "test").is_dir():
        unknown = sorted(set(_classes(folder / "test")) - set(classes))
        if unknown:
            raise UsageError(f"{folder / 'test' / unknown[0]} is a class that {top} does not have.")
        listings["test"] = _list(folder / "test", classes)

    states = tuple((str(p), p.stat().st_mtime_ns) for listing in listings.values() for p in listing.paths)
    _check(states, size, channels)

    def images(split: str, where: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
        listing = listings[split]
        found, notes = read_images([listing.paths[index] for index in where], size, channels)
        if listing.others:
            notes = (*notes, f"Files that are no images, which were left out: {listing.others}")
        return found, notes

    labels = {split: listing.labels for split, listing in listings.items()}
    return Own(folder, classes, labels, images, (states, size, channels))


def read_images(
    paths: Sequence[Path], size: int | None, channels: int | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode image files into one uint8 tensor (N, C, H, W), each in the form that was asked for.

    Args:
        paths: The files.
        size: Height and width to resize to; None if all images have the same.
        channels: 1 or 3; None if all images are gray or all are in color.

    Returns:
        The images, and notes on what was decided.

    Raises:
        UsageError: A file cannot be read.
    """
    images: list[Tensor] = []
    transparent = 0
    for path in paths:
        pixels, clear = _decode(path)
        transparent += clear
        images.append(convert(pixels[None], size, channels))
    note = f"Images with transparent parts, which were laid on black: {transparent}"
    return torch.cat(images), (note,) if transparent else ()


@lru_cache(maxsize=8)
def _check(states: tuple[tuple[str, int], ...], size: int | None, channels: int | None) -> None:
    """Raise unless all images can be had in one form; only their headers are read.

    The images of both splits are looked at: what is wrong with the last test image should be known before
    the training, not after it.

    Args:
        states: Path and time of change of every file.
        size: As `read_images` has it.
        channels: As `read_images` has it.
    """
    first: tuple[Path, tuple[int, int, int]] | None = None
    for name, _ in states:
        path = Path(name)
        depth, height, width = _form(path)
        form = (channels or depth, size or height, size or width)
        first = first or (path, form)
        if form != first[1]:
            raise _different(*first, path, form)


def _form(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of an image file, from its header."""
    with _opened(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= TRANSPOSED
        width, height = reversed(image.size) if turned else image.size
        return (1 if image.mode in GRAY else 3), height, width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; whatever is wrong with it, here or while it is decoded, becomes one error."""
    try:
        with Image.open(path) as image:
            if image.mode in DEEP:
                raise UsageError(
                    f"{path} has more than 8 bits per pixel (mode {image.mode}). Save it with 8 bits, or "
                    "give the images as arrays in an .npz file."
                )
            yield image
    except UsageError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UsageError(f"{path} cannot be read: {what}. Replace the file or remove it.") from error


def _decode(path: Path) -> tuple[Tensor, bool]:
    """uint8 (C, H, W) with 1 or 3 channels, turned upright, and whether something was transparent."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        clear = image.mode in CLEAR or "transparency" in image.info
        if clear:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        tensor = torch.from_numpy(np.array(upright.convert("L" if image.mode in GRAY else "RGB")))
    return (tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)), clear


def _different(
    first: Path, form: tuple[int, int, int], second: Path, other: tuple[int, int, int]
) -> UsageError:
    if form[1:] != other[1:]:
        return UsageError(
            f"The images differ in size: {first} has {form[1]} x {form[2]} pixels (height x width), "
            f"{second} has {other[1]} x {other[2]}. size=28 (or another number) makes all of them squares."
        )
    gray, color = (first, second) if form[0] == 1 else (second, first)
    return UsageError(
        f"The images differ in color: {gray} is gray, {color} is in color. "
        "channels=1 makes all of them gray, channels=3 gives all of them three channels."
    )


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of the subfolders, sorted."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        found = f"one subfolder only ({names[0]})" if names else "no subfolders"
        raise UsageError(
            f"{folder} has {found}: put the images of each class into a subfolder of its own, named for "
            "the class, such as cats/ and dogs/."
        )
    return tuple(names)


def _list(folder: Path, classes: tuple[str, ...]) -> Listing:
    """The image files of every class, sorted by name."""
    paths: list[Path] = []
    labels: list[int] = []
    others = 0
    for label, name in enumerate(classes):
        place = folder / name
        entries = sorted(place.iterdir()) if place.is_dir() else []
        files = [path for path in entries if path.is_file() and not path.name.startswith(".")]
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        if place.is_dir() and not images:
            inside = " It has folders only: are these the classes?" if entries and not files else ""
            raise UsageError(
                f"{place}: the class '{name}' is empty.{inside} Give it images ({', '.join(SUFFIXES)}) "
                "or remove the folder."
            )
        others += len(files) - len(images)
        paths += images
        labels += [label] * len(images)
    return Listing(tuple(paths), np.array(labels, np.int64), others)
