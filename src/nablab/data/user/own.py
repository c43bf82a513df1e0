"""What a user's own images hold, and what is checked whatever form they have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from nablab.errors import UsageError

LABELS_NAMED = 3  # of the labels in a message


@dataclass(frozen=True)
class Own:
    """What a folder or a file holds, read when it is asked for.

    Attributes:
        path: The folder or file.
        classes: The name of each class.
        labels: By split, int64 (N,), before a test split is cut off.
        images: Of a split and indices into it, uint8 (n, C, H, W) in the form that was
            asked for, and notes.
        fingerprint: Changes when the training images or their form change.
    """

    path: Path
    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    images: Callable[[str, np.ndarray], tuple[Tensor, tuple[str, ...]]]
    fingerprint: Hashable


def check_labels(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Raise a `UsageError` unless every label is a class.

    Args:
        labels: Whole numbers (N,).
        classes: The name of each class.
        where: Names the labels in the message.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise UsageError(
            f"{where} has labels outside the {len(classes)} classes, such as "
            f"{labels[outside[0]]} at index {outside[0]}. Labels count from 0 to "
            f"{len(classes) - 1}."
        )


def check_classes(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Raise a `UsageError` unless every class has a training image."""
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UsageError(
                f"{where}: the class '{name}' is empty. Give it images or leave it out."
            )


def check_numbered(labels: np.ndarray, where: str) -> None:
    """Raise `UsageError` unless labels are the numbers from 0 without gaps.

    It serves where classes have no names.

    Args:
        labels: Whole numbers (N,), none of them below 0.
        where: Names the labels in the message.
    """
    there = np.unique(labels)
    if there[0] < 0 or there[-1] == len(there) - 1:
        return
    lacking = int(np.flatnonzero(there != np.arange(len(there)))[0])
    some = ", ".join(map(str, there[:LABELS_NAMED])) + (
        f", ... {there[-1]}" if len(there) > LABELS_NAMED else ""
    )
    raise UsageError(
        f"{where} has the {len(there):,} labels {some}: the class '{lacking}' is "
        "empty. Labels count from 0 without gaps. np.unique(labels, "
        "return_inverse=True)[1] numbers any labels this way; an array classes can "
        "keep their names."
    )
