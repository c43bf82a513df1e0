"""Texts that stand twice in a data set: `find_duplicates`.

A test text that is also a training text measures memory, not learning.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nablab.data.text.words import tokenize
from nablab.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    Numbers = NDArray[np.int64]

PRODUCTS = 10_000_000  # multiplications at once: about 200 MB
COMPARED = 50_000  # pairs of texts whose words are in memory at once


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Texts that have a twin: an earlier text of the same list, or one of another list.

    Attributes:
        pairs: int64 (n, 2), the place of a text and of its most similar twin, one row
            for each text that has one, in rising order. Of equally similar twins it is
            the first.
        similarity: float64 (n,), the share of the words of both that are in both.
        exact: bool (n,), whether the twins are equal letter by letter.
        texts: How many were looked at.
    """

    pairs: Tensor
    similarity: Tensor
    exact: Tensor
    texts: int

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self) -> str:
        """Count them in words.

        >>> find_duplicates(["a b", "c"], ["a b", "a b!", "d"]).describe()
        '2 of 3 texts have a twin (1 the same to the letter)'
        """
        same = int(self.exact.sum())
        return (
            f"{len(self):,} of {self.texts:,} texts have a twin "
            f"({same:,} the same to the letter)"
        )


def find_duplicates(
    texts: Sequence[str],
    others: Sequence[str] | None = None,
    *,
    similarity: float = 0.9,
) -> Duplicates:
    r"""Find texts that are the same as others, or nearly.

    Two texts with the sets of words A and B are twins if :math:`|A \cap B| / |A \cup B|`
    (Jaccard's similarity; Broder 1997 calls it resemblance) is large enough, or if they
    are equal. Upper and lower case, the order of words and marks do not count. No pair
    is missed: two texts that have most of their words in common share one of their
    rarest words as well (Chaudhuri, Ganti and Kaushik 2006), so that few pairs need be
    compared. The 25,000 reviews of each half of IMDB take 20 seconds.

    Args:
        texts: Such as those of the training split.
        others: Such as those of the test split, whose twins among ``texts`` are looked
            for [default: twins are looked for within ``texts``].
        similarity: From which on texts are twins, above 0 and at most 1.

    Raises:
        UsageError: The similarity is no such number.

    References:
        Broder: On the resemblance and containment of documents, SEQUENCES 1997.
        Chaudhuri, Ganti, Kaushik: A primitive operator for similarity joins in data
        cleaning, ICDE 2006.

    >>> news = ["Oil prices rise", "Cup won", "OIL prices rise!", "Cup won"]
    >>> find_duplicates(news).pairs.tolist()
    [[2, 0], [3, 1]]
    """
    if not 0 < similarity <= 1:
        raise UsageError(
            f"similarity={similarity:g} is no share of words: choose from above 0 to 1, "
            "where 1 is the same words."
        )
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        first.setdefault(text, place)
    later = texts if others is None else others
    twins = [first.get(text, -1) for text in later]
    if others is None:
        twins = [
            twin if twin < place else -1 for place, twin in enumerate(twins)
        ]  # no text is its own twin
    same = np.array(twins, dtype=np.int64)
    # A text that stands there a hundred times is compared once.
    here, there = np.array([*first.values()], dtype=np.int64), np.flatnonzero(same < 0)
    found, twin, alike = _nearly(
        [texts[place] for place in here.tolist()],
        [later[place] for place in there.tolist()],
        similarity,
        earlier_than=None if others is not None else (here, there),
    )
    equal = np.flatnonzero(same >= 0)
    pairs = np.concatenate(
        [
            np.stack([equal, same[equal]], axis=1),
            np.stack([there[found], here[twin]], axis=1),
        ]
    )
    order = np.argsort(pairs[:, 0], kind="stable")
    alike = np.concatenate([np.ones(len(equal)), alike])
    exact = np.arange(len(pairs)) < len(equal)
    return Duplicates(
        torch.from_numpy(pairs[order]),
        torch.from_numpy(alike[order]),
        torch.from_numpy(exact[order]),
        len(later),
    )


def _nearly(
    texts: Sequence[str],
    others: Sequence[str],
    similarity: float,
    *,
    earlier_than: tuple[Numbers, Numbers] | None,
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """Find for each of ``others`` the most similar one of ``texts``.

    Args:
        texts: Where twins are.
        others: For which they are looked for.
        similarity: From which on texts are twins.
        earlier_than: Places of both, if only a twin at an earlier place counts.

    Returns:
        Of those that have one, their place in ``others``, that of the twin in
        ``texts``, and the similarity.
    """
    sets, other_sets = _word_sets(texts, others)
    sizes, other_sizes = _sizes(sets), _sizes(other_sets)
    rarest, other_rarest = _rarest(sets, similarity), _rarest(other_sets, similarity)
    needed, other_needed = _needed(sizes, similarity), _needed(other_sizes, similarity)
    pieces = []
    for rows in _pieces(other_rarest, rarest):
        shared = (other_rarest[rows] @ rarest.T).tocoo()
        i, j = shared.row + rows.start, shared.col
        # The smaller of two twins has as many words as they must share at least.
        kept = np.minimum(other_sizes[i], sizes[j]) >= np.maximum(
            other_needed[i], needed[j]
        )
        if earlier_than is not None:
            kept &= earlier_than[0][j] < earlier_than[1][i]
        i, j = i[kept], j[kept]
        common = _common(other_sets, sets, i, j)
        alike = common / (other_sizes[i] + sizes[j] - common)
        twins = alike >= similarity
        pieces.append((i[twins], j[twins], alike[twins]))
    if not pieces:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, np.empty(0)
    i, j, alike = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((j, -alike, i))
    best = order[np.flatnonzero(np.diff(i[order], prepend=-1))]
    return i[best], j[best], alike[best]


def _word_sets(*lists: Sequence[str]) -> Iterator[csr_matrix]:
    """Yield for each list which texts have which words; rare words come first.

    Matrices of ones (texts, words) with sorted columns.
    """
    from scipy.sparse import csr_matrix

    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__
    sets = [
        [list({number[word] for word in tokenize(text)}) for text in texts]
        for texts in lists
    ]
    words = [
        np.fromiter((word for ids in one for word in ids), np.int64) for one in sets
    ]
    frequency = np.bincount(np.concatenate(words), minlength=len(number))
    place = np.empty(len(number), dtype=np.int64)
    place[np.argsort(frequency, kind="stable")] = np.arange(len(number))
    for one, ids in zip(sets, words, strict=True):
        begins = np.concatenate([[0], np.cumsum([*map(len, one)], dtype=np.int64)])
        ones = np.ones(len(ids), dtype=np.int32)
        matrix = csr_matrix(
            (ones, place[ids], begins), shape=(len(one), len(number)), dtype=np.int32
        )
        matrix.sort_indices()
        yield matrix


def _sizes(sets: csr_matrix) -> Numbers:
    return np.diff(sets.indptr).astype(np.int64)


def _needed(sizes: Numbers, similarity: float) -> Numbers:
    """Compute how many words a text of so many must share with any twin."""
    # A little less, since 0.28 * 25 is above 7 in floating point.
    needed: Numbers = np.ceil(sizes * similarity - 1e-9).astype(np.int64)
    return needed


def _rarest(sets: csr_matrix, similarity: float) -> csr_matrix:
    """Keep the rarest words of each text, of which twins share one at least.

    Of n words, a twin has m at least. The rarest of those that both have is followed by
    m - 1 others, and so it is among the n - m + 1 rarest of all.
    """
    from scipy.sparse import csr_matrix

    sizes = _sizes(sets)
    kept = np.minimum(sizes - _needed(sizes, similarity) + 1, sizes)
    position = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], sizes)
    inside = position < np.repeat(kept, sizes)
    begins = np.concatenate([[0], np.cumsum(kept)])
    return csr_matrix((sets.data[inside], sets.indices[inside], begins), sets.shape)


def _pieces(left: csr_matrix, right: csr_matrix) -> Iterator[slice]:
    """Cut the rows of ``left`` so that each product with ``right`` fits the memory."""
    texts_of_word = np.bincount(right.indices, minlength=right.shape[1])
    work = left @ texts_of_word
    piece = np.cumsum(work, dtype=np.int64) // PRODUCTS
    edges = [*np.flatnonzero(np.diff(piece, prepend=-1)).tolist(), len(piece)]
    for begin, end in itertools.pairwise(edges):
        yield slice(begin, end)


def _common(left: csr_matrix, right: csr_matrix, i: Numbers, j: Numbers) -> Numbers:
    """Count the words that text ``i[n]`` of the left shares with ``j[n]`` of the right."""
    counts = [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(i), COMPARED):
        rows = slice(begin, begin + COMPARED)
        both = left[i[rows]].multiply(right[j[rows]])
        counts.append(np.asarray(both.sum(axis=1), dtype=np.int64).ravel())
    return np.concatenate(counts)
