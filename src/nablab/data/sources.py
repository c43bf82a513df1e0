"""Where canonical files come from: addresses, and folders of this machine.

A source yields the content of files; whoever asks checks it. Packages are in `nablab.data.packages`.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nablab.data.download import SourceError, download
from nablab.data.progress import Progress


class Source(Protocol):
    """Something that may serve files of a data set."""

    @property
    def label(self) -> str:
        """What it is called in messages."""
        ...

    def fetch(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file that it has of these.

        Args:
            names: The canonical files that are wanted.
            work: A folder for what is unfinished; the caller removes it when the set is complete.
            progress: Told what happens.

        Raises:
            SourceError: It cannot serve.
            OSError: ``work`` cannot be written.
        """
        ...


@dataclass(frozen=True)
class Files:
    """One gzip file per canonical file, below an address that ends in a slash."""

    base: str

    @property
    def label(self) -> str:
        """The address."""
        return self.base

    def fetch(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
        """Download and decompress the files one by one."""
        for name in names:
            packed = download(f"{self.base}{name}.gz", work, progress)
            try:
                yield name, gzip.decompress(packed.read_bytes())
            except (OSError, EOFError, zlib.error) as error:
                packed.unlink()
                raise SourceError(f"{name}.gz is damaged ({error})") from error


@dataclass(frozen=True)
class Archive:
    """A tar archive at an address that holds the canonical files in one folder."""

    url: str
    inside: str

    @property
    def label(self) -> str:
        """The address."""
        return self.url

    def fetch(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
        """Download the archive and yield the members; nothing is unpacked to the disk."""
        packed = download(self.url, work, progress)
        try:
            yield from read_tar(packed, {f"{self.inside}{name}": name for name in names})
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

    def fetch(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
        """Read the files."""
        for name in names:
            content = read_plain_or_gzip(Path(self.folder) / name)
            if content is None:
                raise SourceError(f"has no {name}" if Path(self.folder).exists() else "is not there")
            yield name, content


def read_plain_or_gzip(path: Path) -> bytes | None:
    """The content of a file, or of the same name with ``.gz``, decompressed; None if neither is there.

    Raises:
        SourceError: The gzip file is damaged.
    """
    if path.is_file():
        return path.read_bytes()
    packed = path.with_name(f"{path.name}.gz")
    if not packed.is_file():
        return None
    try:
        return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{packed} is damaged ({error})") from error


def read_tar(archive: Path, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield members of a tar archive, in its order.

    Args:
        archive: Compressed or not.
        wanted: By path in the archive, the name to yield.

    Raises:
        SourceError: It is no tar archive, is damaged, or lacks a member.
    """
    missing = dict(wanted)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name in missing and (file := tar.extractfile(member)):
                    yield missing.pop(member.name), file.read()
                if not missing:
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SourceError(f"the archive is damaged ({error})") from error
    if missing:
        raise SourceError(f"the archive has no {', '.join(missing)}")
