"""Word vectors by name or path: `load_vectors`.

glove            GloVe, 100 dimensions, 400,000 words
glove@50000      the first 50,000 of its words, which are the most frequent ones
./mine.vec       your own: a word and its vector a line (.txt, .vec, or so with .gz),
                 or an .npz file with words and vectors; @20000 as above
"""

from __future__ import annotations

from pathlib import Path

from nablab.data import cache
from nablab.data.fetching.progress import Progress
from nablab.data.known import KNOWN
from nablab.data.known.known_vectors import VECTORS, KnownVectors
from nablab.data.names import check_vectors, vector_parts
from nablab.data.text.vectors import WordVectors


def load_vectors(
    spec: str,
    *,
    folder: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> WordVectors:
    """Load word vectors into memory.

    Known ones that are not on this machine are fetched, verified and cached.

    Args:
        spec: A name that `vector_set_names` lists, or the path of your own file; see
            the module's text.
        folder: Where you have the files of known ones [default: ``$NABLAB_DATA``].
        offline: Ask no server and no registry, as with ``NABLAB_OFFLINE=1``.
        progress: Told what a fetch does [default: a bar or lines on standard error].

    Raises:
        UsageError: There is no such name or path, or the file does not have the form it
            should; nothing is half-read.
        DataError: Known ones are unavailable, or files are damaged.
    """
    check_vectors(spec)
    name, most = vector_parts(spec)
    one = KNOWN.get(name)
    if not isinstance(one, KnownVectors):
        from nablab.data.user.vectors import load_own_vectors

        return load_own_vectors(Path(name).expanduser(), most)
    place = Path(folder) if folder else None
    content = cache.read(
        one, one.files_of(VECTORS), folder=place, offline=offline, progress=progress
    )
    (file, data), *_ = content.files.items()
    words, vectors = one.decode(file, data, most)
    note = content.edition.note if content.edition else ""
    return WordVectors(
        name=one.name,
        words=words,
        vectors=vectors,
        license=one.license,
        citation=one.citation,
        source=content.source,
        notes=(f"Of {one.name} there are {note}",) if note else (),
    )
