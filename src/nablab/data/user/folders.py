"""Folders of images, a subfolder per class.

Which files are images of which class, and what is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from nablab.data.identity import State, state_of
from nablab.data.images.pictures import SUFFIXES, read_form, read_images
from nablab.data.user.limits import check_fits
from nablab.data.user.own import Own, check_classes
from nablab.errors import UsageError
from nablab.files.places import in_text

# what a folder beside train/ may be, too
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")
FILES_NAMED = 3  # how many of the files that are left out are named


@dataclass(frozen=True)
class Listing:
    """The image files of a split.

    Paths, labels (N,), and notes on what lies beside them unread.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    notes: tuple[str, ...]


def open_folder(folder: Path, size: int | None, channels: int | None) -> Own:
    """Read what a folder holds; the images are decoded when they are asked for.

    Raises:
        UsageError: There are no classes, a class is empty, the test split has a class
            that training lacks, a link leads nowhere, or a folder named for a split may
            as well be a class.
    """
    try:
        return _open_folder(folder, size, channels)
    except OSError as error:
        where = in_text(error.filename or folder)
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error


def _open_folder(folder: Path, size: int | None, channels: int | None) -> Own:
    splits = _splits(folder)
    top = splits.get("train", folder)
    classes = _classes(top)
    beside = (
        _beside(folder, [place.name for place in splits.values()]) if splits else []
    )
    listings = {"train": _list(top, classes, beside)}
    check_classes(
        listings["train"].labels, [in_text(name) for name in classes], in_text(top)
    )
    if test := splits.get("test"):
        unknown = sorted(set(_classes(test)) - set(classes))
        if unknown:
            raise UsageError(
                f"{in_text(test / unknown[0])} is a class that "
                f"{in_text(top)} does not have."
            )
        listings["test"] = _list(test, classes, beside)

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


def _splits(folder: Path) -> dict[str, Path]:
    """Find the folders of the splits; none where the classes lie in ``folder``.

    ``train`` is a split if it has subfolders. If it has images only, it is a class
    among others.
    """
    for name in ("train", "test"):
        _check_link(folder / name)
    train, test = folder / "train", folder / "test"
    if not train.is_dir():
        return {}
    if not _folders(train):
        others = [path for path in _folders(folder) if path.name not in SPLIT_NAMES]
        if others and all(
            any(map(_is_image, path.iterdir())) for path in (train, *others)
        ):
            return {}
        raise UsageError(
            f"{in_text(train)} has no subfolders: put the images of each class into a "
            "subfolder of its own, named for the class, such as train/cats/ and "
            "train/dogs/."
        )
    return {"train": train, **({"test": test} if test.is_dir() else {})}


def _classes(folder: Path) -> tuple[str, ...]:
    """List the names of the subfolders, sorted."""
    for path in folder.iterdir():
        _check_link(path)
    names = sorted(path.name for path in _folders(folder))
    if len(names) < 2:
        found = (
            f"one subfolder only ({in_text(names[0])})" if names else "no subfolders"
        )
        raise UsageError(
            f"{in_text(folder)} has {found}: put the images of each class into a "
            "subfolder of its own, named for the class, such as cats/ and dogs/."
        )
    return tuple(names)


def _list(folder: Path, classes: tuple[str, ...], notes: Sequence[str]) -> Listing:
    """List the image files of every class, sorted by name."""
    paths: list[Path] = []
    labels: list[int] = []
    others: list[str] = []
    below: list[str] = []
    for label, name in enumerate(classes):
        place = folder / name
        if not place.is_dir():
            continue  # a class that the test split lacks
        images = _sort(place, folder, others, below)
        if not images:
            inside = (
                " It has folders only: are these the classes?"
                if _only_folders(place)
                else ""
            )
            raise UsageError(
                f"{in_text(place)}: the class '{in_text(name)}' is empty.{inside} Give "
                f"it images ({', '.join(SUFFIXES)}) or remove the folder."
            )
        paths += images
        labels += [label] * len(images)
    said = [*notes, *_beside(folder, classes)]
    if others:
        what = "Files that are not images by their names, which were left out"
        said.append(f"{what}: {len(others)} ({_some(others)})")
    if below:
        what = (
            "Folders below those of the classes, which were left out; images there "
            "must be moved up"
        )
        said.append(f"{what}: {len(below)} ({_some(below)})")
    return Listing(tuple(paths), np.array(labels, np.int64), tuple(said))


def _sort(place: Path, top: Path, others: list[str], below: list[str]) -> list[Path]:
    """Find the images of a class.

    The names of whatever else there is are added to ``others`` and ``below``, those of
    other files and of folders.
    """
    images = []
    for path in _entries(place):
        if _is_image(path):
            images.append(path)
        elif path.is_dir():
            below.append(_counted(path, top))
        else:
            others.append(str(path.relative_to(top)))
    _check_links(images)
    return images


def _beside(folder: Path, read: Sequence[str]) -> list[str]:
    """Note what lies beside the folders that are read, if there is anything."""
    unread = [path for path in _entries(folder) if path.name not in read]
    if not unread:
        return []
    words = [_counted(path, folder) if path.is_dir() else path.name for path in unread]
    more = ", ..." if len(read) > FILES_NAMED else ""
    return [
        f"Left out, beside {', '.join(map(in_text, read[:FILES_NAMED]))}{more} in "
        f"{in_text(folder)}: {_some(words)}"
    ]


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


def _entries(folder: Path) -> list[Path]:
    """List everything in a folder that is not hidden, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _only_folders(folder: Path) -> bool:
    entries = _entries(folder)
    return bool(entries) and all(path.is_dir() for path in entries)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _is_image(path: Path) -> bool:
    """Tell whether it has the name of an image, and is a file or a dangling link."""
    is_file = path.is_file() or (path.is_symlink() and not path.exists())
    return is_file and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists() and not path.name.startswith("."):
        raise UsageError(
            f"{in_text(path)} is a link to {_link_of(path)}, where there is nothing. "
            "Repair the link or remove it."
        )


def _link_of(path: Path) -> str:
    """Return where a link leads, as it is written there: a `Path` would tidy it up."""
    return in_text(os.readlink(path))  # noqa: PTH115


def _check_links(images: Sequence[Path]) -> None:
    broken = [path for path in images if not path.exists()]
    if broken:
        raise UsageError(
            f"{in_text(broken[0])} is a link to {_link_of(broken[0])}, where there is "
            f"nothing; {len(broken)} of the {len(images)} images are such links. "
            "Repair the links or remove them."
        )


def _counted(folder: Path, top: Path) -> str:
    count = sum(len(files) for _, _, files in os.walk(folder))
    return f"{folder.relative_to(top)} with {count:,} file{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    """Write the first few names."""
    names = list(names)
    more = (
        [f"and {len(names) - FILES_NAMED:,} more"] if len(names) > FILES_NAMED else []
    )
    return ", ".join([*map(in_text, names[:FILES_NAMED]), *more])
