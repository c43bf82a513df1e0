"""GloVe: vectors of 400,000 words, 100 dimensions (Pennington et al. 2014).

Made from how often words stand near each other in Wikipedia of 2014 and five years of
news (Gigaword 5), 6 billion words in lower case. The words come by frequency.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.data.fetching.download import SourceError
from nablab.data.fetching.sources import Archive
from nablab.data.known.known_set import Edition, File, Packaging
from nablab.data.known.known_vectors import VECTORS, KnownVectors
from nablab.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

MEMBER = "glove.6B.100d.txt"
BYTES = 347_116_733


@dataclass(frozen=True, kw_only=True)
class Glove(KnownVectors):
    """The official file, a word and its vector a line, or an ``.npz`` file."""

    def decode(
        self, name: str, content: bytes | bytearray, most: int | None
    ) -> tuple[tuple[str, ...], Tensor]:
        """See `KnownVectors.decode`."""
        import numpy as np
        import torch

        from nablab.data.text.vector_files import read_vectors

        stream = io.BytesIO(content)
        try:
            if not name.endswith(".npz"):
                return read_vectors(stream, name, most)
            with np.load(stream, allow_pickle=False) as arrays:
                words = str(arrays["words"]).split("\n")[:most]
                vectors = arrays["vectors"][:most].astype(np.float32)
            return tuple(words), torch.from_numpy(vectors)
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} holds something else than GloVe.") from error


def from_zip(archive: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the canonical file of the official archive."""
    if MEMBER in sizes:
        yield MEMBER, unzip(archive)


def unzip(archive: Path) -> bytes:
    """Return the canonical file of the official archive."""
    try:
        with zipfile.ZipFile(archive) as packed, packed.open(MEMBER) as file:
            return file.read(BYTES + 1)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError) as error:
        raise SourceError(f"{archive} is damaged ({error})") from error


# Size and SHA-256 of the canonical file are those that a dozen projects list, which
# unpacked it from the official archive; that of the archive itself (617afb2f..., listed
# by still more, GluonNLP and Embeddings.jl among them) was not needed. Those of the
# edition are computed.
GLOVE = Glove(
    name="glove",
    title="word vectors, 100 dimensions",
    files=(
        File(
            MEMBER,
            BYTES,
            "95dde4dfd627ab26608d33e76d1195ec059734bd29089ea52cadb08d07c64544",
            (Packaging("glove.6B.zip", unzip),),
        ),
    ),
    splits={VECTORS: (MEMBER,)},
    samples={VECTORS: 400_000},
    license="PDDL 1.0",
    citation="Pennington, Socher, Manning: GloVe: Global Vectors for Word "
    "Representation, EMNLP 2014",
    sources=(
        Archive("https://nlp.stanford.edu/data/glove.6B.zip", read=from_zip),
        Archive(
            "https://downloads.cs.stanford.edu/nlp/data/glove.6B.zip", read=from_zip
        ),
    ),
    folders=("glove.6B",),
    editions=(
        Edition(
            split=VECTORS,
            file=File(
                "glove_100d_50k_f16.npz",
                9_529_026,
                "591f09bece2786517d1fb06fbc93b2acce22def04594cbff57aac3e42e6fbc11",
            ),
            samples=50_000,
            note="50,000 of the 400,000 words, in float16, from glove_100d_50k_f16.npz; "
            "'a', 'i' and \"'s\" are missing",
        ),
    ),
)
