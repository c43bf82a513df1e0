"""Labeled texts as something to learn: `text_task`.

imdb, ag-news, king-james     texts by name, as `nablab.data.load_texts` reads them
ag-news@10000                 10,000 of the training texts, drawn once and for all
reviews.csv:review,stars      your own table, and its columns of texts and labels
./letters                     a folder with a subfolder of .txt files per class
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nablab import data
from nablab.data import names
from nablab.data.text.text_set import TextSet
from nablab.errors import UsageError


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTask:
    """Texts to learn from and others for tests.

    Attributes:
        name: What the user wrote.
        data_set: The name or path of the texts.
        samples: How many training texts are drawn; None for all.
    """

    name: str
    data_set: str
    samples: int | None = None

    def texts(self, split: str = "train") -> TextSet:
        """Return the texts of ``"train"`` that are drawn, or those of ``"test"``.

        Raises:
            UsageError: There is no such split.
        """
        return self._train if split == "train" else self._load(split)

    @property
    def outputs(self) -> int:
        """The number of classes: what a network gives for a text."""
        return len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class; of a known set no byte is read for it."""
        known = names.known_set(self.data_set)
        return known.classes if known else self._train.classes

    @property
    def train_samples(self) -> int:
        """How many texts there are to train on."""
        if self.samples is not None:
            return self.samples
        return names.train_samples(self.data_set) or len(self._train)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user, to be passed to `Lab.note`."""
        return self._train.notes

    @cached_property
    def _train(self) -> TextSet:
        texts = self._load("train")
        if self.samples is None:
            return texts
        if self.samples > len(texts):
            raise UsageError(
                f"'{self.name}' asks for {self.samples:,} training texts, but "
                f"{self.data_set} has {len(texts):,}. Ask for fewer, or write "
                f"{self.data_set} for all."
            )
        return texts.first(self.samples)

    def _load(self, split: str) -> TextSet:
        texts = data.load_texts(self.data_set, split=split)
        # Texts may come sorted by class, and the first ones must stand for all.
        return _shuffled(texts)


def text_task(spec: str) -> TextTask:
    """Return the task of texts that ``spec`` names, checked.

    Args:
        spec: A text set; see the module's text.

    Raises:
        UsageError: There is no such set, or a number of samples below 1.

    >>> task = text_task("king-james@500")
    >>> len(task.texts()), task.outputs
    (500, 4)
    """
    check_texts(spec)
    name, samples = text_parts(spec)
    return TextTask(name=spec, data_set=name, samples=samples)


def check_texts(spec: str) -> None:
    """Raise `UsageError` unless ``spec`` names labeled texts; no data are read."""
    name, samples = text_parts(spec)
    names.check_text_set(name)
    if samples is not None and samples < 1:
        raise UsageError(
            f"'{spec}' asks for no texts: write a number from 1, or {name} for all."
        )


def text_parts(spec: str) -> tuple[str, int | None]:
    """Split a text into the name and the number after the last ``@``, if there is one.

    What is on the disk as it is written is a name as a whole.

    >>> text_parts("ag-news@10000"), text_parts("reviews.csv:review,stars")
    (('ag-news', 10000), ('reviews.csv:review,stars', None))
    """
    found = re.fullmatch(r"(.+)@(\d[\d_]{0,9})", spec)
    if not found or (
        found[1] not in names.text_set_names() and Path(spec).expanduser().exists()
    ):
        return spec, None
    return found[1], int(found[2])


def _shuffled(texts: TextSet) -> TextSet:
    """Shuffle texts in an order that is drawn once and for all."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return texts.take(torch.randperm(len(texts), generator=generator))
