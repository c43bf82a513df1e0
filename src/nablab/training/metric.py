"""Metrics: scores over whole sets, which know whether higher is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Score(Protocol):
    """A metric while it goes through a set."""

    def add(self, outputs: Any, batch: Any) -> None:
        """Take in a batch.

        Args:
            outputs: What the learner gives for it.
            batch: The batch itself.
        """
        ...

    def value(self) -> float:
        """Return the score of all that was taken in."""
        ...


class Metric(Protocol):
    """A score over a whole set, such as an accuracy, a BLEU or a Fréchet distance."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction, for stopping rules and for what counts as best."""
        ...

    def new(self) -> Score:
        """Return an empty score."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """The share of samples whose largest output is that of their label.

    Attributes:
        label: The name of the labels in a batch.
    """

    label: str = "y"
    higher_is_better: bool = True

    def new(self) -> Score:
        """See `Metric.new`."""
        return _Hits(self.label)


class _Hits:
    def __init__(self, label: str) -> None:
        self._label, self._hits, self._samples = label, 0, 0

    def add(self, outputs: torch.Tensor, batch: Any) -> None:
        labels = batch[self._label]
        self._hits += int((outputs.argmax(-1) == labels).sum())
        self._samples += labels.numel()

    def value(self) -> float:
        return self._hits / self._samples
