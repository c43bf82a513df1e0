"""Images and labels in an ``.npz`` file."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from nablab.data.identity import state_of
from nablab.data.images.forms import convert
from nablab.data.user.limits import check_fits, check_ratio
from nablab.data.user.limits import size as size_of
from nablab.data.user.own import Own, check_classes, check_labels, check_numbered
from nablab.errors import UsageError

PAIRS = (("images", "labels"), ("x", "y"))
SPLIT_PAIRS = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},  # Keras
    # MedMNIST
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
)


def open_arrays(path: Path, size: int | None, channels: int | None) -> Own:
    """Read what an ``.npz`` file holds; its images are read when they are asked for.

    Raises:
        UsageError: It is damaged or lacks arrays; labels are not whole numbers,
            outside the classes, or differ in number from the images.
    """
    pairs = _pairs(path)
    labels = {split: _labels(path, pair) for split, pair in pairs.items()}
    classes = _classes(path, labels["train"], pairs["train"][1])
    for split, (_, name) in pairs.items():
        check_labels(labels[split], classes, f"{path}: {name}")
    check_classes(labels["train"], classes, str(path))

    def images(split: str, where: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
        name = pairs[split][0]
        found = images_from(read_array(path, name), f"{path}: {name}")
        if len(found) != len(labels[split]):
            raise UsageError(
                f"{path}: {name} has {len(found):,} images and {pairs[split][1]} has "
                f"{len(labels[split]):,} labels. Give one label for each image."
            )
        if len(where) < len(found):
            found = found[torch.from_numpy(where)]
        return convert(found, size, channels), ()

    return Own(path, classes, labels, images, (state_of(path), size, channels))


def images_from(array: np.ndarray, where: str) -> Tensor:
    """Convert an array of images to uint8 (N, C, H, W).

    The array is (N, H, W), (N, C, H, W) or (N, H, W, C), with C of 1 or 3.

    Whole numbers must lie from 0 to 255, floats from 0 to 1.

    Args:
        array: The images.
        where: Names the array in messages.

    Raises:
        UsageError: Shape or values are not like that.
    """
    if array.size == 0:
        raise UsageError(f"{where} is empty: its shape is {array.shape}.")
    first, last = (array.ndim == 4 and array.shape[axis] in (1, 3) for axis in (1, 3))
    if not (array.ndim == 3 or first or last):
        raise UsageError(
            f"{where} has the shape {array.shape}; images are (N, height, width), (N, "
            "channels, height, width) or (N, height, width, channels) with 1 or 3 "
            "channels."
        )
    if first and last:
        raise UsageError(
            f"{where} has the shape {array.shape}, in which the channels may come "
            "first or last; store (N, height, width), or images of more than 3 pixels."
        )
    if array.ndim == 3:
        array = array[:, None]
    elif last:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(_bytes(array, where)))


def _bytes(array: np.ndarray, where: str) -> np.ndarray:
    """Convert the values to uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise UsageError(
            f"{where} holds {array.dtype}; images are uint8, other whole "
            "numbers, or floats."
        )
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UsageError(f"{where} holds values that are not finite (NaN or infinity).")
    top, remedy = (
        (1, "Divide by 255, or store uint8")
        if array.dtype.kind == "f"
        else (255, "Store uint8")
    )
    if low < 0 or high > top:
        kind = "floats" if top == 1 else "whole numbers"
        raise UsageError(
            f"{where} has values from {low:g} to {high:g}; {kind} must lie from 0 to "
            f"{top}. {remedy}."
        )
    return np.rint(array * 255).astype(np.uint8) if top == 1 else array.astype(np.uint8)


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one array of the file.

    Raises:
        UsageError: The file is damaged, or the array holds Python objects: reading
            those runs code.
    """
    try:
        with _opened(path) as content:
            _check_size(path, name, content)
            return np.asarray(content[name])
    except UsageError:
        raise
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise UsageError(f"{path}: {name} cannot be read: {error}.") from error
        raise UsageError(
            f"{path}: {name} is an array of Python objects, which is not read: it "
            "could run any code. Store it as an array of numbers: np.savez(file, "
            "images=np.stack(images), labels=labels)."
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UsageError(
            f"{path}: {name} cannot be read, the file is damaged: {error}."
        ) from error


def _check_size(path: Path, name: str, content: NpzFile) -> None:
    """Check the size that an array claims before memory is asked for it.

    The claim is held against what the file says of itself.
    """
    what = f"{path}: {name}"
    archive = content.zip
    assert archive is not None  # it is open
    member = archive.getinfo(
        f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    )
    check_ratio(member.compress_size, member.file_size, what)
    with archive.open(member) as file:
        shape, dtype = _header(file)
        start = file.tell()
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed != member.file_size - start:
        raise UsageError(
            f"{what} is damaged: it claims {size_of(claimed)} (shape {shape}, "
            f"{dtype}), and {size_of(member.file_size - start)} are stored. Write the "
            "file again."
        )
    check_fits(claimed, what, "Store smaller or fewer images, as uint8.")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and type that an array's header claims.

    Raises:
        ValueError: It is not a header.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is not known")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def array_names(path: Path) -> list[str]:
    """List the names of the arrays in an ``.npz`` file.

    Raises:
        UsageError: It is not such a file, or it is damaged.
    """
    with _opened(path) as content:
        return list(content.files)


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """Open the file's arrays, which are read when they are asked for."""
    # np.load would take other files for something else
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an .npz file, or it is damaged.")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        yield content


def _pairs(path: Path) -> Mapping[str, tuple[str, str]]:
    """Return, by split, the names of its images and labels."""
    names = array_names(path)
    for splits in SPLIT_PAIRS:
        if set(splits["train"]) <= set(names):
            return {
                split: pair for split, pair in splits.items() if set(pair) <= set(names)
            }
    for pair in PAIRS:
        if set(pair) <= set(names):
            return {"train": pair}
    raise UsageError(
        f"{path} has the arrays {', '.join(names) or 'none'}; it needs images and "
        "labels, x and y, or x_train, y_train, x_test and y_test."
    )


def _labels(path: Path, pair: tuple[str, str]) -> np.ndarray:
    """Read labels int64 (N,) from whole numbers of any type, (N,) or (N, 1)."""
    name = pair[1]
    labels = read_array(path, name)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.size == 0:
        raise UsageError(
            f"{path}: {name} has the shape {labels.shape}; labels are "
            "(N,), one per image."
        )
    if labels.dtype.kind not in "iufb":
        raise UsageError(
            f"{path}: {name} holds {labels.dtype}; labels are whole numbers from 0."
        )
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        first = int(np.flatnonzero(whole != labels)[0])
        raise UsageError(
            f"{path}: {name} holds {labels[first]} at index {first}; labels are whole "
            "numbers from 0."
        )
    return whole


def _classes(path: Path, training_labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Read the names of the classes.

    They stand in the array ``classes``; without it they are the numbers up to the
    largest training label.
    """
    with _opened(path) as content:
        named = "classes" in content.files
    if named:
        return tuple(str(name) for name in read_array(path, "classes"))
    check_numbered(training_labels, f"{path}: {where}")
    return tuple(str(number) for number in range(int(training_labels.max()) + 1))
