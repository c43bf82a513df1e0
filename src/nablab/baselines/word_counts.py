"""Word vectors from counts: which words stand near each other, and nothing learned.

Levy and Goldberg (2014) showed that word2vec's skip-gram factorizes, without saying so,
a matrix of the words' mutual information. Here that matrix is written down and
factorized by the singular value decomposition. The choices are those that Levy, Goldberg
and Dagan (2015) recommend for any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nablab.data.text.vectors import WordVectors
from nablab.data.text.vocabulary import RESERVED, Encoded, Vocabulary
from nablab.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SMOOTHING = 0.75  # the power of the contexts' counts: rare contexts weigh less


def count_vectors(
    texts: Sequence[str],
    *,
    dimensions: int = 100,
    window: int = 5,
    min_count: int = 5,
    name: str = "counts",
) -> WordVectors:
    r"""Make word vectors from how often words stand near each other.

    The positive pointwise mutual information of a word w and a context word c is

    .. math:: M_{wc} = \max\Bigl(0, \log \frac{P(w, c)}{P(w) P_{3/4}(c)}\Bigr):

    how much more often they meet than words that know nothing of each other would. Rows
    of the matrix are vectors already, with as many dimensions as there are words. Of its
    singular value decomposition :math:`M \approx U S V^T` the first D dimensions are
    kept, as :math:`U \sqrt{S}`.

    Args:
        texts: What to read; words of different texts never meet.
        dimensions: D, below the number of words.
        window: How far words may stand apart; a neighbor counts fully, a word at the
            edge of the window 1 / window.
        min_count: How often a word must occur.
        name: What the vectors are called.

    Raises:
        UsageError: There are no more words than dimensions.

    >>> pair = ["the king sat", "the queen sat", "a dog ran", "a cat ran"] * 9
    >>> count_vectors(pair, dimensions=2).neighbors("king", 1)[0][0]
    'queen'
    """
    from scipy.sparse.linalg import svds

    vocabulary = Vocabulary.build(texts, min_count=min_count)
    words = vocabulary.words[len(RESERVED) :]
    if len(words) <= dimensions:
        raise UsageError(
            f"The texts have {len(words):,} words that occur {min_count} times or more, "
            f"too few for vectors of {dimensions:,} dimensions. Take more texts, fewer "
            "dimensions, or a smaller min_count."
        )
    met = _meetings(vocabulary.encode(texts), len(vocabulary), window)
    information = _mutual_information(met[len(RESERVED) :, len(RESERVED) :])
    # A fixed start, so that the same texts give the same bytes. SciPy 1.13 does not yet
    # have the newer name rng.
    left, sizes, _ = svds(information, k=dimensions, random_state=0)
    order = np.argsort(-sizes)
    table = left[:, order] * np.sqrt(sizes[order])
    vectors = torch.from_numpy(table.astype(np.float32))
    return WordVectors(name=name, words=words, vectors=vectors)


def _meetings(encoded: Encoded, size: int, window: int) -> csr_matrix:
    """Count, with weights, how often words meet: symmetric (size, size)."""
    from scipy.sparse import csr_matrix

    values = encoded.values.numpy()
    text = np.repeat(np.arange(len(encoded)), encoded.lengths.numpy())
    met = csr_matrix((size, size))
    for apart in range(1, window + 1):
        same = text[:-apart] == text[apart:]
        first, second = values[:-apart][same], values[apart:][same]
        weights = np.full(len(first), (window + 1 - apart) / window)
        met = met + csr_matrix((weights, (first, second)), shape=(size, size))
    return met + met.T


def _mutual_information(met: csr_matrix) -> csr_matrix:
    """Compute the positive pointwise mutual information of what meets."""
    from scipy.sparse import csr_matrix

    pairs = met.tocoo()
    words = np.asarray(met.sum(axis=1)).ravel()
    contexts = words**SMOOTHING / (words**SMOOTHING).sum()
    expected = words[pairs.row] * contexts[pairs.col]
    information = np.maximum(np.log(pairs.data / expected), 0)
    return csr_matrix((information, (pairs.row, pairs.col)), shape=met.shape)
