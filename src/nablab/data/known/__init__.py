"""The data sets that nablab knows by name, a file for each.

Found by scanning this folder.

A module here that holds a `KnownSet` or an `EmbeddedSet` adds it. Nothing here imports
torch or numpy before a set is read.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TypeVar

from nablab.data.known.known_set import (
    SPLITS,
    Edition,
    EmbeddedSet,
    File,
    KnownSet,
    NamedSet,
    Packaging,
)

_Set = TypeVar("_Set", KnownSet, EmbeddedSet)


def _all(kind: type[_Set]) -> dict[str, _Set]:
    """Collect the sets of one kind that the modules of this folder hold, by name.

    They come in the order of the modules.
    """
    modules = [
        import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    ]
    found = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, kind)
    ]
    return {one.name: one for one in found}


KNOWN = _all(KnownSet)
"""Those that are fetched, by name."""
EMBEDDED = _all(EmbeddedSet)
"""Those that need no download, by name."""

__all__ = [
    "EMBEDDED",
    "KNOWN",
    "SPLITS",
    "Edition",
    "EmbeddedSet",
    "File",
    "KnownSet",
    "NamedSet",
    "Packaging",
    "names_of",
]


def names_of(kind: str) -> list[str]:
    """List the names of the sets of one kind, those that are fetched first.

    >>> names_of("texts")
    ['ag-news', 'imdb', 'king-james']
    """
    return [
        one.name for one in (*KNOWN.values(), *EMBEDDED.values()) if one.kind == kind
    ]
