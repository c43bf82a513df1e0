"""The user's own Python code: of which files it is made, and their hash.

A model or an experiment of the user's is seldom one file. What decides its numbers is
the file, what it imports from beside it or from another folder of the user's, and the
data files that it names. All of this is found by reading the source, without running
it: the hash is then the same in every process, whatever was imported before, and
whether an import stands at the top of a file or inside a function.

Python's library, installed packages and nablab are not the user's: their versions are
kept with a run. What cannot be found by reading is listed in `Code.unseen`, to be said
to the user. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nablab.importing.modules import find_spec, is_installed
from nablab.importing.source import Source

CHUNK = 1 << 20  # bytes hashed at once


@dataclass(frozen=True)
class Part:
    """One file of the code.

    Attributes:
        path: Where it is.
        sha256: Of its content, and of the data files that it names.
        module: What it is imported as; empty for a file that is run by its path.
    """

    path: Path
    sha256: str
    module: str = ""


@dataclass(frozen=True)
class Code:
    """All of the user's code that one file leads to.

    Attributes:
        parts: The file itself, then what it leads to, by path.
        unseen: What decides the numbers, too, but cannot be found by reading, with file
            and line.
    """

    parts: tuple[Part, ...]
    unseen: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all parts; where there is one only, of that file's bytes.

        Paths count as seen from the first file, so that a folder may be moved as a
        whole.
        """
        if len(self.parts) == 1:
            return self.parts[0].sha256
        total, top = hashlib.sha256(), self.parts[0].path.parent
        for part in self.parts:
            total.update(
                os.fsencode(os.path.relpath(part.path, top))
                + b"\0"
                + part.sha256.encode()
                + b"\0"
            )
        return total.hexdigest()


def code_of(path: Path, *, folder: Path, module: str = "") -> Code:
    """Read the code that a file leads to.

    Args:
        path: The file.
        folder: Where its imports are looked up first, as Python does with a program's
            folder.
        module: The name under which the file is imported, where it has one: ``from .
            import x`` needs it.
    """
    if is_installed(path):
        return Code((Part(path, _sha256(path)),))
    reader = _Reader(folder)
    reader.read(path, module)
    reader.follow(module)  # the packages around it run first
    first, *others = reader.parts.values()
    # such as a bare __init__.py
    others = [part for part in others if part.path.stat().st_size]
    return Code(
        (first, *sorted(others, key=lambda part: part.path)), tuple(reader.unseen)
    )


def unseen_note(unseen: Iterable[str]) -> str:
    """Tell the user of `Code.unseen`; empty if all was seen."""
    listed = "; ".join(unseen)
    if not listed:
        return ""
    return (
        f"Your code depends on more than the run's id covers: {listed}. After a change "
        "there, give --fresh."
    )


class _Reader:
    """Reads files from one to the next, each once.

    Attributes:
        parts: What was found, by path.
        unseen: See `Code`.
    """

    def __init__(self, folder: Path) -> None:
        importlib.invalidate_caches()
        self.parts: dict[Path, Part] = {}
        self.unseen: list[str] = []
        self._folder = folder

    def read(self, path: Path, module: str) -> None:
        """Add a file, by the name under which it is imported, and what it leads to."""
        path = path.resolve()
        if path in self.parts:
            return
        self.parts[path] = Part(path, "")  # its place, before what it leads to
        source = Source(path)
        digest = _sha256(path)
        for data in source.data:
            digest = hashlib.sha256(f"{digest}{_sha256(data)}".encode()).hexdigest()
        self.parts[path] = Part(path, digest, module)
        self.unseen += source.unseen
        for name in source.imports(module, is_package=path.name == "__init__.py"):
            self.follow(name)
        for script in source.scripts:
            self.read(script, "")

    def follow(self, name: str) -> None:
        """Add the user's own files that importing a module runs.

        Its packages and itself.
        """
        search: Sequence[str] | None = None
        full = ""
        for level in filter(None, name.split(".")):
            if not full and (level == "nablab" or level in sys.builtin_module_names):
                return
            found = find_spec(level, self._folder, search)
            if found is None:
                return
            full = f"{full}.{level}" if full else level
            if found.has_location and found.origin:
                if is_installed(Path(found.origin)):
                    return
                self.read(Path(found.origin), full)
            search = list(found.submodule_search_locations or [])


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            total.update(piece)
    return total.hexdigest()
