"""Labeled texts in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.data.splits import hold_out


@dataclass(frozen=True, eq=False)
class TextSet:
    """One split of a data set of labeled texts, in memory.

    Attributes:
        name: The data set, such as ``"imdb"``.
        split: ``"train"``, ``"test"`` or ``"validation"``.
        texts: N texts, cleaned of their source's mark-up.
        labels: int64 (N,), from 0.
        classes: The name of each class.
        license: Under which terms the data may be used.
        citation: Whom to cite.
        source: Where the bytes came from.
        notes: What was decided for the user, such as a test split that was cut off.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    license: str = ""
    citation: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def describe(self) -> str:
        """Describe the set in one paragraph for a report.

        Name, size, source, terms and whom to cite.

        >>> from nablab import data
        >>> data.load_texts("king-james", split="test").describe().split(":")[0]
        'king-james, test split'
        """
        words = sorted(len(text.split()) for text in self.texts)
        parts = [
            f"{self.name}, {self.split} split: {len(self):,} texts of "
            f"{words[len(words) // 2]:,} words (median; the longest has "
            f"{words[-1]:,}), {len(self.classes)} classes",
            f"Source: {self.source}" if self.source else "",
            f"License: {self.license}" if self.license else "",
            f"Cite: {self.citation}" if self.citation else "",
            *self.notes,
        ]
        return ". ".join(part.rstrip(".") for part in parts if part) + "."

    def take(self, indices: Tensor | Sequence[int]) -> TextSet:
        """Return the texts at these places.

        Args:
            indices: Places of texts, int64 (n,).
        """
        where = torch.as_tensor(indices)
        texts = tuple(self.texts[place] for place in where.tolist())
        return dataclasses.replace(self, texts=texts, labels=self.labels[where])

    def first(self, samples: int) -> TextSet:
        """Return the first ``samples`` texts, or all if there are fewer."""
        return dataclasses.replace(
            self, texts=self.texts[:samples], labels=self.labels[:samples]
        )

    def hold_out(self, samples: int, *, seed: int) -> tuple[TextSet, TextSet]:
        """Cut a validation split off.

        It holds texts drawn by a seed; the training split keeps the rest.

        Args:
            samples: How many to cut off.
            seed: Decides which.

        Returns:
            The rest, and the validation split.

        Raises:
            UsageError: There are fewer texts, or none would be left.
        """
        return hold_out(self, samples, seed=seed, noun="texts")
