"""Texts without the order of their words: which words they hold, and how telling."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nablab.data.text.vocabulary import Encoded, Tokenizer
from nablab.data.text.words import tokenize
from nablab.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    Numbers = NDArray[np.int64]


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


def count_terms(
    train: Sequence[str],
    *others: Sequence[str],
    longest: int = 2,
    min_count: int = 2,
    tokenize: Tokenizer = tokenize,
) -> tuple[csr_matrix, ...]:
    """Count the words of texts, and their sequences of up to ``longest`` words.

    The counts are those of scikit-learn's `CountVectorizer`, with the columns in
    another order. Terms are sorted as whole numbers here, not looked up as strings:
    50,000 film reviews take a third of the time.

    Args:
        train: Training texts; they decide which terms there are.
        others: Further lists of texts, such as those of the test split.
        longest: Words of the longest term: 1 for words, 2 for pairs as well.
        min_count: In how many training texts a term must occur.
        tokenize: Splits a text into words.

    Returns:
        A sparse float32 matrix (texts, terms) of each list.

    Raises:
        UsageError: The training texts have no words.
    """
    from scipy.sparse import hstack

    rows = _Words.of((train, *others), tokenize)
    blocks: list[list[csr_matrix]] = [[] for _ in rows]
    for length in range(1, longest + 1):
        first, known = rows[0].count(min_count)
        if length == 1 and not len(known):
            raise UsageError(
                f"No word stands in {min_count} of the {len(train):,} training texts: "
                "give more texts, or a smaller min_count."
            )
        blocks[0].append(first)
        for block, one in zip(blocks[1:], rows[1:], strict=True):
            block.append(one.count_known(known))
        if length < longest:
            for one in rows:
                one.lengthen(known)
    return tuple(hstack(found, format="csr") for found in blocks)


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
    (scikit-learn's `TfidfTransformer` with ``sublinear_tf``). Terms and their rarity
    are those of the training texts.

    Args:
        train: Training texts.
        others: Further lists of texts, such as those of the test split.
        longest: Words of the longest term: 1 for words, 2 for pairs as well.
        min_count: In how many training texts a term must occur.
        tokenize: Splits a text into words.

    Returns:
        A sparse float32 matrix (texts, terms) of each list.

    Raises:
        UsageError: The training texts have no words.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = count_terms(
        train, *others, longest=longest, min_count=min_count, tokenize=tokenize
    )
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts[0])
    return tuple(weigh.transform(matrix, copy=False) for matrix in counts)


class _Words:
    """The words of a list of texts in a row, and the terms that begin at each.

    A term is a number: its place in the sorted list of kept terms that are one word
    shorter, times the number of words, plus its last word. So terms of one length are
    different when their numbers are.
    """

    def __init__(self, words: Numbers, texts: Numbers, shape: tuple[int, int]) -> None:
        self.words, self._texts, (self._count, self._vocabulary) = words, texts, shape
        # Where a term begins, its number; words that training lacks count for nothing.
        self._starts = np.flatnonzero(words >= 0)
        self._terms = words[self._starts]
        self._length = 1

    @classmethod
    def of(cls, lists: Sequence[Sequence[str]], tokenize: Tokenizer) -> list[_Words]:
        """Give words numbers, in the order in which the first list has them."""
        number: defaultdict[str, int] = defaultdict()
        number.default_factory = number.__len__
        counted = [_numbers(lists[0], tokenize, number.__getitem__)]
        number.default_factory = None
        absent = -1
        counted += [
            _numbers(texts, tokenize, lambda word: number.get(word, absent))
            for texts in lists[1:]
        ]
        return [
            cls(
                words,
                np.repeat(np.arange(len(lengths)), lengths),
                (len(lengths), len(number)),
            )
            for words, lengths in counted
        ]

    def count(self, min_count: int) -> tuple[csr_matrix, Numbers]:
        """Count the terms that stand in enough texts.

        Returns:
            float32 (texts, terms), and the kept terms in rising order.
        """
        from scipy.sparse import csc_matrix

        # One sort of term and text together gives the terms, their texts, and how often
        # each term stands in each text.
        keys = np.sort(self._terms * self._count + self._texts[self._starts])
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        times = np.diff(first, append=len(keys))
        terms, texts = np.divmod(keys[first], self._count)
        begins = np.flatnonzero(np.diff(terms, prepend=-1))
        frequency = np.diff(begins, append=len(terms))
        kept = frequency >= min_count
        inside = np.repeat(kept, frequency)
        columns = np.concatenate([[0], np.cumsum(frequency[kept])])
        matrix = csc_matrix(
            (times[inside].astype(np.float32), texts[inside], columns),
            shape=(self._count, int(kept.sum())),
        )
        return matrix.tocsr(), terms[begins[kept]]

    def count_known(self, known: Numbers) -> csr_matrix:
        """Count these terms; float32 (texts, terms)."""
        from scipy.sparse import coo_matrix

        columns, inside = _places(known, self._terms)
        texts = self._texts[self._starts[inside]]
        ones = np.ones(len(texts), dtype=np.float32)
        shape = (self._count, len(known))
        return coo_matrix((ones, (texts, columns)), shape=shape).tocsr()

    def lengthen(self, known: Numbers) -> None:
        """Let every kept term take in the word after it, if its text has one.

        A term cannot stand in more texts than its beginning does, so that beginnings
        which were not kept are done with.
        """
        places, inside = _places(known, self._terms)
        starts, last = self._starts[inside], self._starts[inside] + self._length
        there = last < len(self.words)
        starts, last, places = starts[there], last[there], places[there]
        there = (self.words[last] >= 0) & (self._texts[last] == self._texts[starts])
        self._starts = starts[there]
        self._terms = places[there] * self._vocabulary + self.words[last[there]]
        self._length += 1


def _numbers(
    texts: Sequence[str], tokenize: Tokenizer, number: Callable[[str], int]
) -> tuple[Numbers, Numbers]:
    """Return the number of each word of all texts, and how many words each text has."""
    values, lengths = array("q"), []
    for text in texts:
        words = tokenize(text)
        values.extend(map(number, words))
        lengths.append(len(words))
    return np.array(values, dtype=np.int64), np.array(lengths, dtype=np.int64)


def _places(known: Numbers, terms: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
    """Find terms in the rising ``known``: their places, and which are there at all."""
    places = np.searchsorted(known, terms)
    inside = places < len(known)
    inside[inside] = known[places[inside]] == terms[inside]
    return places[inside], inside
