"""Folders with a subfolder of files per class.

Which files are of which class, and what is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nablab.data.user.own import check_classes
from nablab.errors import UsageError
from nablab.files.places import in_text

# what a folder beside train/ may be, too
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")
FILES_NAMED = 3  # how many of the files that are left out are named


@dataclass(frozen=True)
class Wanted:
    """What files are looked for.

    Attributes:
        noun: What they hold, for messages: ``"images"``.
        suffixes: How their names end, in lower case.
    """

    noun: str
    suffixes: tuple[str, ...]

    def is_one(self, path: Path) -> bool:
        """Tell whether it has such a name, and is a file or a dangling link."""
        is_file = path.is_file() or (path.is_symlink() and not path.exists())
        hidden = path.name.startswith(".")
        return is_file and path.suffix.lower() in self.suffixes and not hidden


@dataclass(frozen=True)
class Listing:
    """The files of a split.

    Paths, labels (N,), and notes on what lies beside them unread.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    notes: tuple[str, ...]


def list_classes(
    folder: Path, wanted: Wanted
) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """List the files of a folder by split and class; none of them is read.

    Args:
        folder: It has a subfolder per class, below ``train`` and ``test`` if it has
            them.
        wanted: Which files are looked for.

    Returns:
        The names of the classes, and a listing of ``"train"``, and of ``"test"`` if
        there is such a folder.

    Raises:
        UsageError: There are no classes, a class is empty, the test split has a class
            that training lacks, a link leads nowhere, or a folder named for a split may
            as well be a class.
    """
    splits = _splits(folder, wanted)
    top = splits.get("train", folder)
    classes = _classes(top, wanted)
    beside = (
        note_beside(folder, [place.name for place in splits.values()]) if splits else []
    )
    listings = {"train": _list(top, classes, beside, wanted)}
    check_classes(
        listings["train"].labels, [in_text(name) for name in classes], in_text(top)
    )
    if test := splits.get("test"):
        unknown = sorted(set(_classes(test, wanted)) - set(classes))
        if unknown:
            raise UsageError(
                f"{in_text(test / unknown[0])} is a class that "
                f"{in_text(top)} does not have."
            )
        listings["test"] = _list(test, classes, beside, wanted)
    return classes, listings


def note_beside(folder: Path, read: Sequence[str]) -> list[str]:
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


def _splits(folder: Path, wanted: Wanted) -> dict[str, Path]:
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
            any(map(wanted.is_one, path.iterdir())) for path in (train, *others)
        ):
            return {}
        raise UsageError(
            f"{in_text(train)} has no subfolders: put the {wanted.noun} of each class into "
            "a subfolder of its own, named for the class, such as train/cats/ and "
            "train/dogs/."
        )
    return {"train": train, **({"test": test} if test.is_dir() else {})}


def _classes(folder: Path, wanted: Wanted) -> tuple[str, ...]:
    """List the names of the subfolders, sorted."""
    for path in folder.iterdir():
        _check_link(path)
    names = sorted(path.name for path in _folders(folder))
    if len(names) < 2:
        found = (
            f"one subfolder only ({in_text(names[0])})" if names else "no subfolders"
        )
        raise UsageError(
            f"{in_text(folder)} has {found}: put the {wanted.noun} of each "
            "class into a subfolder of its own, named for the class, such as cats/ and "
            "dogs/."
        )
    return tuple(names)


def _list(
    folder: Path, classes: tuple[str, ...], notes: Sequence[str], wanted: Wanted
) -> Listing:
    """List the files of every class, sorted by name."""
    paths: list[Path] = []
    labels: list[int] = []
    others: list[str] = []
    below: list[str] = []
    for label, name in enumerate(classes):
        place = folder / name
        if not place.is_dir():
            continue  # a class that the test split lacks
        found = _sort(place, folder, others, below, wanted)
        if not found:
            inside = (
                " It has folders only: are these the classes?"
                if _only_folders(place)
                else ""
            )
            raise UsageError(
                f"{in_text(place)}: the class '{in_text(name)}' is empty.{inside} Give "
                f"it {wanted.noun} ({', '.join(wanted.suffixes)}) or remove the folder."
            )
        paths += found
        labels += [label] * len(found)
    said = [*notes, *note_beside(folder, classes)]
    if others:
        what = f"Files that are not {wanted.noun} by their names, which were left out"
        said.append(f"{what}: {len(others)} ({_some(others)})")
    if below:
        what = (
            "Folders below those of the classes, which were left out; "
            f"{wanted.noun} there must be moved up"
        )
        said.append(f"{what}: {len(below)} ({_some(below)})")
    return Listing(tuple(paths), np.array(labels, np.int64), tuple(said))


def _sort(
    place: Path, top: Path, others: list[str], below: list[str], wanted: Wanted
) -> list[Path]:
    """Find the files of a class.

    The names of whatever else there is are added to ``others`` and ``below``, those of
    other files and of folders.
    """
    found = []
    for path in _entries(place):
        if wanted.is_one(path):
            found.append(path)
        elif path.is_dir():
            below.append(_counted(path, top))
        else:
            others.append(str(path.relative_to(top)))
    _check_links(found, wanted)
    return found


def _entries(folder: Path) -> list[Path]:
    """List everything in a folder that is not hidden, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _only_folders(folder: Path) -> bool:
    entries = _entries(folder)
    return bool(entries) and all(path.is_dir() for path in entries)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists() and not path.name.startswith("."):
        raise UsageError(
            f"{in_text(path)} is a link to {_link_of(path)}, where there is nothing. "
            "Repair the link or remove it."
        )


def _link_of(path: Path) -> str:
    """Return where a link leads, as it is written there: a `Path` would tidy it up."""
    return in_text(os.readlink(path))  # noqa: PTH115


def _check_links(found: Sequence[Path], wanted: Wanted) -> None:
    broken = [path for path in found if not path.exists()]
    if broken:
        raise UsageError(
            f"{in_text(broken[0])} is a link to {_link_of(broken[0])}, where there is "
            f"nothing; {len(broken)} of the {len(found)} {wanted.noun} are such links. "
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
