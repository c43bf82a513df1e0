"""Image files: what their headers say, and their pixels, upright and as bytes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nablab.data.images.forms import convert
from nablab.data.user.limits import PIXELS
from nablab.errors import UsageError
from nablab.files.places import in_text

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
    ".ppm",
)
GRAY = ("1", "L", "LA", "La")
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
CLEAR = ("RGBA", "RGBa", "LA", "La", "PA")

# How pixels are stored, by the EXIF field, and what turns them upright.
ORIENTATION = 0x0112
UPRIGHT = (0, 1)  # 0 is not a value of the standard; cameras write it for "not known"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)  # height and width change places

CLEAR_NOTE = "Images with transparent parts, which were laid on black"
EXIF_NOTE = (
    "Images whose EXIF data do not say in a valid form which side is up, "
    "taken as they are stored"
)
FRAMES_NOTE = "Images of several frames or pages, of which the first was read"


def read_images(
    paths: Sequence[Path], size: int | None, channels: int | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode image files into one uint8 tensor (N, C, H, W).

    Each image is brought to the form that was asked for.

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
    decided: Counter[str] = Counter()
    for path in paths:
        with _opened(path) as image:
            pixels, notes = _decode(image)
        decided.update(notes)
        images.append(convert(pixels[None], size, channels))
    return torch.cat(images), tuple(
        f"{note}: {count}" for note, count in decided.items()
    )


def read_form(path: Path) -> tuple[int, int, int]:
    """Read the channels, height and width of an image file from its header.

    Raises:
        UsageError: The file cannot be read.
    """
    with _opened(path) as image:
        width, height = (
            reversed(image.size) if _orientation(image)[0] in SWAPPED else image.size
        )
        return (1 if image.mode in GRAY else 3), height, width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file.

    Whatever is wrong with it, here or while it is decoded, becomes one error.
    """
    try:
        with warnings.catch_warnings():
            # Its size is checked here, not only warned of; and of broken EXIF data
            # there is a note.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                _check(path, image)
                yield image
    except UsageError:
        raise
    # the decoders of formats raise anything on a broken file
    except Exception as error:
        what = (
            "it is not an image"
            if isinstance(error, UnidentifiedImageError)
            else _in_words(error)
        )
        raise UsageError(
            f"{in_text(path)} cannot be read: {what}. Replace the file or remove it."
        ) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, (OSError, SyntaxError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _check(path: Path, image: Image.Image) -> None:
    if image.mode in DEEP:
        raise UsageError(
            f"{in_text(path)} has more than 8 bits per pixel (mode {image.mode}). Save "
            "it with 8 bits, or give the images as arrays in an .npz file."
        )
    width, height = image.size
    if width * height > PIXELS:
        raise UsageError(
            f"{in_text(path)} has {height:,} x {width:,} pixels (height x width), more "
            f"than the {PIXELS:,} that one image may have here. Make it smaller, or "
            "cut it into parts."
        )


def _decode(image: Image.Image) -> tuple[Tensor, list[str]]:
    """Decode to uint8 (C, H, W) with 1 or 3 channels, turned upright, and notes."""
    orientation, valid = _orientation(image)
    notes = [] if valid else [EXIF_NOTE]
    if getattr(image, "is_animated", False):
        notes.append(FRAMES_NOTE)
    clear = image.mode in CLEAR or "transparency" in image.info
    gray = image.mode in GRAY
    upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    if clear:
        notes.append(CLEAR_NOTE)
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(
            Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba
        )
    tensor = torch.from_numpy(np.array(upright.convert("L" if gray else "RGB")))
    return (tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)), notes


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """Read the EXIF orientation, 1 (upright) where there is none.

    The second value is False where there is one that is not valid.
    """
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # broken EXIF data raise anything, and say nothing of the pixels: a note says so
    except Exception:
        # some formats keep EXIF data behind the pixels, which may be what is broken
        image.load()
        return 1, False
    if isinstance(value, int) and value in TURNS:
        return value, True
    return 1, isinstance(value, int) and value in UPRIGHT
