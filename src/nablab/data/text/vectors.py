"""Words as vectors: a table with a row for each word, and what lies near what."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nablab.errors import UsageError, unknown

NAMED = 5  # words in a message


@dataclass(frozen=True, eq=False, kw_only=True)
class WordVectors:
    """A vector for each word of a list.

    Attributes:
        name: What they are called, such as ``"glove"``.
        words: V words, each once; the most frequent ones first where that is known.
        vectors: float32 (V, D), finite.
        license: Under which terms they may be used.
        citation: Whom to cite.
        source: Where the bytes came from.
        notes: What was decided for the user.
    """

    name: str
    words: tuple[str, ...] = field(repr=False)
    vectors: Tensor = field(repr=False)
    license: str = ""
    citation: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self.words, self.vectors, self.name)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return self.find(word) is not None

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        return self.vectors.shape[1]

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The row of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def unit(self) -> Tensor:
        """float32 (V, D): the vectors, each of length 1; one of zeros stays as it is."""
        lengths = self.vectors.norm(dim=1, keepdim=True)
        return self.vectors.div(lengths.where(lengths > 0, 1.0))

    def find(self, word: str) -> int | None:
        """Return the row of a word as it is written, or else in lower case.

        None if there is neither: GloVe has ``athens``, and question files ``Athens``.
        """
        return self.number_of.get(word, self.number_of.get(word.lower()))

    def neighbors(
        self, of: str | Tensor, count: int = 10, *, without: Sequence[str] = ()
    ) -> list[tuple[str, float]]:
        """List the words whose vectors point most nearly the same way.

        Args:
            of: A word, which is left out itself, or any vector (D,).
            count: How many to list.
            without: Further words to leave out.

        Returns:
            Words with their cosines, the nearest first.

        Raises:
            UsageError: There is no such word.

        >>> compass = WordVectors(
        ...     name="compass",
        ...     words=("north", "northeast", "south"),
        ...     vectors=torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, -2.0]]),
        ... )
        >>> [(word, round(cosine, 2)) for word, cosine in compass.neighbors("north", 2)]
        [('northeast', 0.71), ('south', -1.0)]
        """
        if isinstance(of, str):
            place = self.find(of)
            if place is None:
                remedy = f"{self.name} has {len(self):,} words."
                raise unknown("vector of the word", of, (), remedy=remedy)
            without = (*without, of)
            vector = self.unit[place]
        else:
            vector = of.float() / of.float().norm().clamp(min=1e-12)
        cosines = self.unit @ vector
        left_out = [found for word in without if (found := self.find(word)) is not None]
        cosines[left_out] = -torch.inf
        best = cosines.topk(min(count, len(self) - len(set(left_out))))
        return [
            (self.words[place], cosine)
            for cosine, place in zip(*map(Tensor.tolist, best), strict=True)
        ]

    def first(self, count: int) -> WordVectors:
        """Return the first ``count`` words, or all if there are fewer."""
        return dataclasses.replace(
            self, words=self.words[:count], vectors=self.vectors[:count].clone()
        )

    def reduced(self, dimensions: int) -> WordVectors:
        r"""Keep the directions in which the vectors are longest.

        These are the first right singular vectors of the table :math:`X`, those with
        the largest :math:`\lVert X v \rVert`. The mean is not taken off, so that with
        all directions the table is only turned, and no cosine changes.

        Args:
            dimensions: How many directions to keep, at most D.

        Raises:
            UsageError: The vectors have fewer.
        """
        if not 1 <= dimensions <= self.dimensions:
            raise UsageError(
                f"{self.name} has vectors of {self.dimensions} dimensions, of which "
                f"{dimensions} cannot be kept: choose from 1 to {self.dimensions}."
            )
        table = self.vectors.double()
        _, directions = torch.linalg.eigh(table.T @ table)  # the longest ones last
        kept = directions[:, -dimensions:].flip(1)
        return dataclasses.replace(self, vectors=(table @ kept).float())

    def tensors(self) -> dict[str, Tensor]:
        """Return words and vectors as tensors, such as `nablab.contract.Lab.weights` keeps.

        Returns:
            ``embedding.weight`` float32 (V, D), and ``words`` uint8: the words, joined
            by line breaks, in UTF-8.

        >>> one = WordVectors(name="one", words=("a",), vectors=torch.ones(1, 2))
        >>> WordVectors.of_tensors("one", one.tensors()).words
        ('a',)
        """
        joined = bytearray("\n".join(self.words).encode())
        return {
            "embedding.weight": self.vectors,
            "words": torch.frombuffer(joined, dtype=torch.uint8),
        }

    @classmethod
    def of_tensors(cls, name: str, tensors: Mapping[str, Tensor]) -> WordVectors:
        """Take words and vectors out of what `tensors` gave.

        Raises:
            UsageError: They are no such tensors.
        """
        if not {"embedding.weight", "words"} <= tensors.keys():
            raise UsageError(
                f"{name} holds {', '.join(tensors) or 'nothing'}, and word vectors are "
                "'embedding.weight' (V, D) with 'words', V words joined by line breaks."
            )
        text = tensors["words"].numpy().tobytes().decode()
        words = tuple(text.split("\n"))
        return cls(name=name, words=words, vectors=tensors["embedding.weight"].float())

    def describe(self) -> str:
        """Describe the vectors in one paragraph for a report.

        Number of words and dimensions, source, terms and whom to cite.
        """
        parts = [
            f"{self.name}: {len(self):,} words, {self.dimensions} dimensions",
            f"Source: {self.source}" if self.source else "",
            f"License: {self.license}" if self.license else "",
            f"Cite: {self.citation}" if self.citation else "",
            *self.notes,
        ]
        return ". ".join(part.rstrip(".") for part in parts if part) + "."


def check(words: Sequence[str], vectors: Tensor, where: str) -> None:
    """Raise `UsageError` unless these are V different words and V finite vectors.

    Args:
        words: The words.
        vectors: Should be (V, D).
        where: Names them in messages.
    """
    if vectors.ndim != 2 or not vectors.numel() or len(vectors) != len(words):
        shape = tuple(vectors.shape)
        raise UsageError(
            f"{where} has {len(words):,} words and vectors of shape {shape}; needed is "
            "a row for each word, and a word and a dimension at least."
        )
    if len(set(words)) < len(words):
        twice = [word for word, count in Counter(words).items() if count > 1]
        named = ", ".join(f"'{word}'" for word in twice[:NAMED])
        raise UsageError(
            f"{where} has words more than once: {named}. Which vector is meant cannot "
            "be known: keep one of each."
        )
    if not bool(torch.isfinite(vectors).all()):
        row = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
        raise UsageError(
            f"{where}: the vector of '{words[row]}' (word {row + 1:,}) has values that "
            "are not finite (NaN or infinity). Leave the word out."
        )
