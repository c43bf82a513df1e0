"""What a run's identity holds of its data.

Known sets are fixed by their name, a user's files by content.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from nablab.data.cache import edition_of
from nablab.data.known import KNOWN
from nablab.data.names import check_image_set, check_text_set, known_set
from nablab.data.user.columns import TABLES, split_columns
from nablab.errors import UsageError

CHUNK = 1 << 20  # bytes hashed at once

# ns; a file changed this lately may change again without another time of change
RACY = 2_000_000_000

# where a file is; its size, two times of change (ns) and its inode
State = tuple[str, int, int, int, int]


def source_hash(spec: str) -> str:
    """Compute the SHA-256 of a user's folder (names and contents) or file.

    Empty for a set known by name, unless a user's folder has an edition in place of a
    canonical file: then that of the edition.

    Links count as what they lead to: a folder of links has the hash of a folder with
    the files themselves. The content of files that have not changed since is not read
    again in one process.

    Args:
        spec: A name, or the path of a folder, an ``.npz`` file or a table of texts.

    Raises:
        UsageError: There is no such set, folder or file, or a part of it cannot be
            read.

    >>> source_hash("mnist")
    ''
    """
    if known_set(spec):
        return _editions_hash(spec)
    path, columns = split_columns(spec)
    if columns or path.endswith(TABLES):
        check_text_set(spec)
    else:
        check_image_set(spec)
    place = Path(path).expanduser()
    try:
        paths = [place] if place.is_file() else sorted(files_below(place, ()))
        states = tuple(state_of(path) for path in paths)
        hashed = _hash.__wrapped__ if is_fresh(states) else _hash
        return hashed(str(place), states)
    except OSError as error:
        raise UsageError(
            f"{error.filename or spec} cannot be read: {error.strerror}. Make it "
            "readable, or leave it out."
        ) from error


def _editions_hash(name: str) -> str:
    """Return the hashes of what stands in place of canonical files of a known set."""
    if name not in KNOWN:
        return ""
    known = KNOWN[name]
    found = (edition_of(known, split) for split in known.splits)
    return " ".join(edition.file.sha256 for edition in found if edition)


def files_below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield all files below a folder, also those behind links to folders.

    A link to a folder above is not followed.

    Args:
        folder: Where to look.
        above: Device and inode of the folders that lead here.
    """
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path, (*above, here))
        elif path.is_file():
            yield path


def state_of(path: Path) -> State:
    """Return what changes with a file's content, without reading it.

    The second time cannot be set back.
    """
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def is_fresh(states: Sequence[State]) -> bool:
    """Tell whether a file was changed so lately that it may change again unseen."""
    return time.time_ns() - max((state[3] for state in states), default=0) < RACY


@lru_cache(maxsize=32)
def _hash(place: str, states: tuple[State, ...]) -> str:
    """Compute the SHA-256 of the names below ``place`` and of the contents."""
    total = hashlib.sha256()
    for path, size, *_ in states:
        # As the file system has the name, which need not be text.
        total.update(
            os.fsencode(Path(path).relative_to(place)) + f"\0{size}\0".encode()
        )
        with Path(path).open("rb") as file:
            while piece := file.read(CHUNK):
                total.update(piece)
    return total.hexdigest()
