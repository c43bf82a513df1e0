"""Words as numbers: a vocabulary, and texts encoded by it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nablab.data.text.words import tokenize
from nablab.errors import UsageError

PADDING, UNKNOWN = 0, 1
"""The numbers of what fills up a short text, and of every word not listed."""
RESERVED = ("<padding>", "<unknown>")

Tokenizer = Callable[[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as numbers of words, one text after the other.

    Attributes:
        values: int32 (total,): the numbers of all words in a row.
        starts: int64 (N + 1,): where each text begins; the last one is the total.
    """

    values: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """int64 (N,): words of each text."""
        return self.starts.diff()


@dataclass(frozen=True)
class Vocabulary:
    """The words that a network knows, each with a number.

    Number 0 is padding, number 1 every word that is not listed. Build it from training
    texts alone: words of the test split are news to the network.

    Attributes:
        words: Word by number, `RESERVED` first.
    """

    words: tuple[str, ...]

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        *,
        size: int | None = None,
        min_count: int = 1,
        tokenize: Tokenizer = tokenize,
    ) -> Vocabulary:
        """List the words of training texts, the most frequent first.

        Words that are equally frequent stand in the order of the alphabet.

        Args:
            texts: Training texts.
            size: Most numbers, the two reserved ones among them; None for all words.
            min_count: How often a word must be seen.
            tokenize: Splits a text into words.

        Raises:
            UsageError: No word is left.

        >>> Vocabulary.build(["a cat and a dog"], size=4).words
        ('<padding>', '<unknown>', 'a', 'and')
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenize(text))
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        most = None if size is None else max(size - len(RESERVED), 0)
        words = [word for word, count in ranked if count >= min_count][:most]
        if not words:
            most_frequent = max(counts.values(), default=0)
            raise UsageError(
                f"No word is left for the vocabulary: the texts have {len(counts):,} "
                f"different words, the most frequent one {most_frequent:,} times "
                f"(size={size}, min_count={min_count}). Give texts with words, a larger "
                "size or a smaller min_count."
            )
        return cls((*RESERVED, *words))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(
        self, texts: Iterable[str], *, tokenize: Tokenizer = tokenize
    ) -> Encoded:
        """Replace the words of texts by their numbers.

        A text without words becomes one unknown word, so that no sequence is empty.

        Args:
            texts: N texts.
            tokenize: Splits a text into words, as for `build`.

        >>> found = Vocabulary.build(["a cat"]).encode(["a dog", ""])
        >>> found.values.tolist(), found.starts.tolist()
        ([2, 1, 1], [0, 2, 3])
        """
        # int32 in an array: IMDB's 11 million words take 46 MB, not 400 as a list.
        values, starts = array("i"), [0]
        number = self.number_of.get
        for text in texts:
            values.extend(
                [number(word, UNKNOWN) for word in tokenize(text)] or [UNKNOWN]
            )
            starts.append(len(values))
        numbers = (
            np.frombuffer(values, dtype=np.int32) if values else np.zeros(0, np.int32)
        )
        return Encoded(torch.from_numpy(numbers.copy()), torch.tensor(starts))

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """Return the words of these numbers, without padding, joined by spaces."""
        return " ".join(
            self.words[number]
            for number in torch.as_tensor(numbers).tolist()
            if number != PADDING
        )

    def unknown_share(self, encoded: Encoded) -> float:
        """Return the share of words that the vocabulary does not list."""
        return float((encoded.values == UNKNOWN).double().mean())
