"""Where canonical files come from: addresses, and folders of this machine.

A source yields the content of files; whoever asks checks it. Packages are in
`nablab.data.fetching.packages`.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nablab.data.fetching.download import SourceError, download
from nablab.data.fetching.progress import Progress

SLACK = 10_000_000  # bytes on the disk that do no harm


class Source(Protocol):
    """Something that may serve files of a data set."""

    @property
    def label(self) -> str:
        """What it is called in messages."""
        ...

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file that it has of these.

        Nothing larger is read into memory.

        Args:
            sizes: The canonical files that are wanted, by name, with their sizes in
                bytes.
            work: A folder for what is unfinished; the caller removes it when the set is
                complete.
            progress: Told what happens.

        Raises:
            SourceError: It cannot serve.
            OSError: ``work`` cannot be written.
        """
        ...


@dataclass(frozen=True)
class Files:
    """One file per canonical file, below an address that ends in a slash.

    Attributes:
        base: The address.
        packed: Whether each is a gzip file, with the ending ``.gz``.
    """

    base: str
    packed: bool = True

    @property
    def label(self) -> str:
        """The address."""
        return self.base

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Download the files one by one, and decompress them if they are packed."""
        for name, size in sizes.items():
            if not self.packed:
                path = download(f"{self.base}{name}", work, progress, most=size + SLACK)
                with path.open("rb") as file:
                    yield name, file.read(size + 1)
                continue
            packed = download(
                f"{self.base}{name}.gz", work, progress, most=packed_most(size)
            )
            try:
                yield name, unpack(packed, size)
            except SourceError:
                packed.unlink()
                raise


Reader = Callable[[Path, Mapping[str, int]], Iterator[tuple[str, bytes]]]
"""Yields the canonical files of an archive, of those whose names and sizes are given."""


@dataclass(frozen=True)
class Archive:
    """A tar archive at an address.

    Attributes:
        url: The address.
        inside: The folder that holds the canonical files, with a slash at the end.
        read: What makes the canonical files of an archive that has none.
    """

    url: str
    inside: str = ""
    read: Reader | None = None

    @property
    def label(self) -> str:
        """The address."""
        return self.url

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Download the archive and yield the members; nothing is unpacked to the disk."""
        packed = download(self.url, work, progress)
        inside = {f"{self.inside}{name}": name for name in sizes}
        try:
            if self.read is None:
                yield from read_tar(packed, inside, sizes)
            else:
                yield from self.read(packed, sizes)
        except SourceError:
            packed.unlink()
            raise


@dataclass(frozen=True)
class Tree:
    """A folder of this machine that has the files, as they are or as gzip."""

    folder: str

    @property
    def label(self) -> str:
        """The folder."""
        return self.folder

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Read the files."""
        for name, size in sizes.items():
            content = read_plain_or_gzip(Path(self.folder) / name, size)
            if content is None:
                raise SourceError(
                    f"has no {name}" if Path(self.folder).exists() else "is not there"
                )
            yield name, content


def read_plain_or_gzip(path: Path, size: int) -> bytes | None:
    """Read a file, or decompress the one of the same name with ``.gz``.

    None if neither is there.

    Args:
        path: The file.
        size: What it should have, in bytes; of a larger file one byte more is read,
            which shows it.

    Raises:
        SourceError: The gzip file is damaged.
    """
    if path.is_file():
        with path.open("rb") as file:
            return file.read(size + 1)
    packed = path.with_name(f"{path.name}.gz")
    return unpack(packed, size) if packed.is_file() else None


def unpack(packed: Path, size: int) -> bytes:
    """Decompress a gzip file, and of more than ``size`` bytes one more, which shows it.

    Raises:
        SourceError: It is damaged.
    """
    try:
        with gzip.open(packed) as file:
            return file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{packed} is damaged ({error})") from error


def unpack_xz(packed: Path, most: int) -> bytes:
    """Decompress an xz file.

    Args:
        packed: The file.
        most: The bytes that it may unpack to.

    Raises:
        SourceError: It is damaged or unpacks to more, or this Python cannot read xz.
        OSError: It cannot be read.
    """
    try:
        import lzma  # not part of every Python: some are built without it
    except ImportError as error:
        raise SourceError(
            f"{packed} cannot be read: this Python was built without the module lzma"
        ) from error
    try:
        with lzma.open(packed) as file:
            content = file.read(most + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise SourceError(f"{packed} is damaged ({error})") from error
    if len(content) > most:
        raise SourceError(f"{packed} unpacks to more than {most:,} bytes")
    return content


def packed_most(size: int) -> int:
    """Bound the bytes that a gzip file of this many bytes may have.

    They are a little more where packing gains nothing.
    """
    return size + size // 1000 + SLACK


def read_tar(
    archive: Path, wanted: Mapping[str, str], sizes: Mapping[str, int] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield members of a tar archive, in its order.

    Args:
        archive: Compressed or not.
        wanted: By path in the archive, the name to yield.
        sizes: By that name, the bytes that a member may have.

    Raises:
        SourceError: It is no tar archive, is damaged, lacks a member, or has one that
            is too long.
    """
    sizes = sizes or {}
    missing = dict(wanted)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name in missing and (file := tar.extractfile(member)):
                    most = sizes.get(missing[member.name], member.size)
                    if member.size > most:
                        raise SourceError(
                            f"{member.name} has {member.size:,} bytes in "
                            f"place of {most:,}"
                        )
                    yield missing.pop(member.name), file.read()
                if not missing:
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SourceError(f"the archive is damaged ({error})") from error
    if missing:
        raise SourceError(f"the archive has no {', '.join(missing)}")
