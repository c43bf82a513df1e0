"""What is known of a data set: its files with their checksums, its sources, its terms.

A set is defined by the SHA-256 of its canonical files, so it does not matter who serves
the bytes. What its samples are stands in a module for each kind, such as
`known_images`. This module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nablab.data.fetching.sources import Source

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Packaging:
    """Another form in which a user's folder may have a canonical file.

    Attributes:
        path: Of a file or folder, below the set's folder.
        unpack: Gives the canonical content of it.
    """

    path: str
    unpack: Callable[[Path], bytes]


@dataclass(frozen=True)
class File:
    """A canonical file of a data set.

    Attributes:
        name: Its name in the cache.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
        packagings: Other forms that a user may have it in.
    """

    name: str
    size: int
    sha256: str
    packagings: tuple[Packaging, ...] = ()


@dataclass(frozen=True)
class Edition:
    """Another file for a split, which a user's folder may have.

    It is taken where the canonical file is not on this machine, and never without a
    word: the set notes it, and the run's identity differs.

    Attributes:
        split: Whose file it stands for.
        file: The file.
        samples: How many it has.
        note: What it is, for reports.
    """

    split: str
    file: File
    samples: int
    note: str


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """What is stated of any data set that has a name.

    Attributes:
        name: What to ask for.
        title: What it is.
        samples: By split.
        classes: The name of each class; empty where samples have none.
        license: Under which terms the data may be used.
        citation: Whom to cite.
    """

    kind: ClassVar[str]
    """What its samples are: ``"images"``, ``"texts"``, ``"word vectors"`` or
    ``"network weights"``."""

    name: str
    title: str
    samples: Mapping[str, int]
    classes: tuple[str, ...] = ()
    license: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class KnownSet(NamedSet):
    """A data set that is fetched.

    A subclass knows what its samples are, and the form of its files.

    Attributes:
        files: Its canonical files.
        splits: The names of the files of each split, in order.
        sources: Where it can be fetched, in the order in which they are tried.
        folders: Where other tools put the files below a folder of data sets.
        editions: Files that a user may have in place of canonical ones.
    """

    files: tuple[File, ...]
    splits: Mapping[str, tuple[str, ...]]
    sources: tuple[Source, ...] = ()
    folders: tuple[str, ...] = ()
    editions: tuple[Edition, ...] = ()

    @property
    def nbytes(self) -> int:
        """What it takes on the disk, in bytes."""
        return sum(file.size for file in self.files)

    def files_of(self, split: str) -> tuple[File, ...]:
        """Return the canonical files of a split."""
        by_name = {file.name: file for file in self.files}
        return tuple(by_name[name] for name in self.splits[split])


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet(NamedSet):
    """A data set that comes with a package, so that it is on every machine.

    Attributes:
        package: Which package has it.
    """

    package: str
