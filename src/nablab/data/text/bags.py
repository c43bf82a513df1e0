"""Texts without the order of their words: which words they hold, and how telling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nablab.data.text.vocabulary import Encoded, Tokenizer
from nablab.data.text.words import tokenize

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def multi_hot(encoded: Encoded, words: int) -> Tensor:
    """Tell for each text which words it holds: uint8 (N, words), 1 or 0.

    Args:
        encoded: Texts as numbers.
        words: Size of the vocabulary, padding and unknown among them.

    >>> from nablab.data.text.vocabulary import Vocabulary
    >>> vocabulary = Vocabulary.build(["a cat"])
    >>> multi_hot(vocabulary.encode(["cat cat", "a dog"]), len(vocabulary)).tolist()
    [[0, 0, 0, 1], [0, 1, 1, 0]]
    """
    bags = torch.zeros(len(encoded), words, dtype=torch.uint8)
    rows = torch.arange(len(encoded)).repeat_interleave(encoded.lengths)
    bags[rows, encoded.values.long()] = 1
    return bags


def tf_idf(
    train: Sequence[str],
    *others: Sequence[str],
    longest: int = 2,
    min_count: int = 2,
    tokenize: Tokenizer = tokenize,
) -> tuple[csr_matrix, ...]:
    r"""Weigh the words and word pairs of texts by how telling they are.

    A term that occurs t times in a text and in d of the N training texts weighs
    :math:`(1 + \ln t)(1 + \ln\frac{1 + N}{1 + d})`; each text is scaled to length 1
    (scikit-learn's `TfidfVectorizer` with ``sublinear_tf``). Terms and their rarity are
    those of the training texts.

    Args:
        train: Training texts.
        others: Further lists of texts, such as those of the test split.
        longest: Words of the longest term: 1 for words, 2 for pairs as well.
        min_count: In how many training texts a term must occur.
        tokenize: Splits a text into words.

    Returns:
        A sparse float32 matrix (texts, terms) of each list.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        tokenizer=tokenize,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, longest),
        min_df=min_count,
        sublinear_tf=True,
        dtype="float32",
    )
    first = vectorizer.fit_transform(train)
    return (first, *(vectorizer.transform(texts) for texts in others))
