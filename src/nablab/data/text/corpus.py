"""A task's texts as numbers of words: what sequence models train on and are scored on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nablab import data
from nablab.data.text.tasks import text_parts
from nablab.data.text.text_set import TextSet
from nablab.data.text.vocabulary import Encoded, Vocabulary


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts to train on and texts to score, encoded by the training texts' vocabulary.

    Attributes:
        vocabulary: Of the training texts alone.
        train: The training texts.
        scored: Validation or test texts, sorted by length: batches of texts that stand
            together are hardly padded.
        train_labels: int64 (N,).
        scored_labels: int64 (M,), in the order of ``scored``.
        classes: The name of each class.
        notes: What was decided about the data.
    """

    vocabulary: Vocabulary
    train: Encoded
    scored: Encoded
    train_labels: Tensor
    scored_labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def split(spec: str, *, held_out: int = 0, seed: int = 0) -> tuple[TextSet, TextSet]:
    """Return training texts, and those to be scored.

    Args:
        spec: Labeled texts, as `nablab.data.text_task` takes them.
        held_out: Training texts that are held out and scored; 0 to score the test
            texts.
        seed: Decides which are held out.
    """
    task = data.text_task(spec)
    train = task.texts()
    if held_out:
        return train.hold_out(held_out, seed=seed)
    return train, task.texts("test")


def corpus(spec: str, words: int, *, held_out: int = 0, seed: int = 0) -> Corpus:
    """Encode a task's texts; the last corpus is remembered.

    Reading and encoding 50,000 film reviews takes 15 seconds, and the conditions of an
    experiment ask for the same ones.

    Args:
        spec: Labeled texts, as `nablab.data.text_task` takes them.
        words: Size of the vocabulary, at most.
        held_out: See `split`.
        seed: See `split`.

    >>> found = corpus("king-james@50", 100)
    >>> len(found.vocabulary), len(found.train), found.scored.lengths.diff().min() >= 0
    (100, 50, tensor(True))
    """
    # A user's own file may change between two calls in one process.
    source = data.source_hash(text_parts(spec)[0])
    return _corpus(spec, words, held_out, seed, source)


@lru_cache(maxsize=1)
def _corpus(spec: str, words: int, held_out: int, seed: int, source: str) -> Corpus:
    train, scored = split(spec, held_out=held_out, seed=seed)
    vocabulary = Vocabulary.build(train.texts, size=words)
    encoded = vocabulary.encode(scored.texts)
    by_length = encoded.lengths.argsort(stable=True)
    scored = scored.take(by_length)
    return Corpus(
        vocabulary,
        vocabulary.encode(train.texts),
        _reordered(encoded, by_length),
        train.labels,
        scored.labels,
        train.classes,
        train.notes,
    )


def _reordered(encoded: Encoded, order: Tensor) -> Encoded:
    """Return the same texts in another order."""
    lengths = encoded.lengths[order]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    # Where each word stood: its text's old start, and its place within the text.
    places = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)
    old = encoded.starts[:-1][order].repeat_interleave(lengths) + places
    return Encoded(encoded.values[old], starts)
