"""Where Python finds a module, and whether it is installed. Nothing is run."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

NABLAB = Path(__file__).resolve().parent.parent


def find_module(name: str, folder: Path) -> Path | None:
    """Find the file of a module, in a folder first and then as Python does.

    Args:
        name: Its full name, with dots.
        folder: Where it is looked up first.

    Returns:
        The file; None where there is none, as for a module that is built in.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    search: Sequence[str] | None = None
    found: ModuleSpec | None = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        found = find_spec(part, folder, search)
        if found is None:
            raise ModuleNotFoundError(f"No module named {full!r}", name=full)
        search = list(found.submodule_search_locations or [])
    return Path(found.origin) if found and found.has_location and found.origin else None


def is_installed(path: Path) -> bool:
    """Tell whether a file belongs to Python, to an installed package or to nablab."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link in an environment is that environment's
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(folder in path.parents for folder in (NABLAB, *_libraries()))


def find_spec(
    name: str, folder: Path, search: Sequence[str] | None
) -> ModuleSpec | None:
    """Find one level of a module's name.

    Args:
        name: The level, without dots.
        folder: Where the top level is looked up first.
        search: The folders of the package around it; None for the top level.
    """
    if search is not None:
        return PathFinder.find_spec(name, search)
    if here := PathFinder.find_spec(name, [str(folder)]):
        return here
    for finder in sys.meta_path:  # editable installs have finders of their own
        find = getattr(finder, "find_spec", None)
        if find and (found := find(name, None)):
            return found if isinstance(found, ModuleSpec) else None
    return None


@functools.cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
