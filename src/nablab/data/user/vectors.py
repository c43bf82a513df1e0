"""A user's own word vectors: a text file, packed by gzip or not, or an ``.npz`` file."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from nablab.data.text.vector_files import read_vectors
from nablab.data.text.vectors import WordVectors
from nablab.data.user.arrays import array_names, read_array
from nablab.data.user.limits import check_fits
from nablab.errors import UsageError
from nablab.files.places import in_text


def load_own_vectors(path: Path, most: int | None) -> WordVectors:
    """Load word vectors from a file.

    Args:
        path: A text file with a word and its vector a line, as GloVe, word2vec and
            fastText write them (``.txt``, ``.vec``, or so with ``.gz``), or an ``.npz``
            file with arrays ``words`` and ``vectors``.
        most: How many words to read; None for all.

    Raises:
        UsageError: It is not of such a form; the text names the line or array.
    """
    where = in_text(path)
    if path.is_dir():
        raise UsageError(f"{where} is a folder. Name the file with the word vectors.")
    if path.suffix == ".npz":
        words, vectors = _from_arrays(path)
    else:
        words, vectors = _from_lines(path, most)
    found = WordVectors(
        name=where, words=words, vectors=vectors, source=in_text(path.resolve())
    )
    return found.first(most) if most else found


def _from_lines(path: Path, most: int | None) -> tuple[tuple[str, ...], Tensor]:
    where = in_text(path)
    try:
        if most is None:
            remedy = f"Take the first words only, such as {where}@50000."
            check_fits(path.stat().st_size, where, remedy)
        packed = path.suffix == ".gz"
        with cast(IO[bytes], gzip.open(path) if packed else path.open("rb")) as file:
            return read_vectors(file, where, most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{where} is damaged ({error}). Pack it again.") from error
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error


def _from_arrays(path: Path) -> tuple[tuple[str, ...], Tensor]:
    where = in_text(path)
    names = array_names(path)
    if not {"words", "vectors"} <= set(names):
        raise UsageError(
            f"{where} has the arrays {', '.join(names) or 'none'}; word vectors are "
            "words (V texts, or one with line breaks between) and vectors (V, D)."
        )
    words, vectors = read_array(path, "words"), read_array(path, "vectors")
    if words.dtype.kind != "U" or words.ndim > 1:
        raise UsageError(
            f"{where}: words holds {words.dtype} of shape {words.shape}; needed are V "
            "texts, such as np.array(['the', 'of']), or one with line breaks between."
        )
    if vectors.dtype.kind not in "fiu" or vectors.ndim != 2:
        raise UsageError(
            f"{where}: vectors holds {vectors.dtype} of shape {vectors.shape}; needed "
            "are numbers of shape (words, dimensions)."
        )
    listed = str(words).split("\n") if words.ndim == 0 else words.tolist()
    return tuple(listed), torch.from_numpy(vectors.astype(np.float32))
