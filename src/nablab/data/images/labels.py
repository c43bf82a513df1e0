"""Labels with a share of errors.

Source: Zhang et al., Understanding deep learning requires rethinking generalization,
ICLR 2017 (arXiv:1611.03530).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nablab.errors import UsageError

# the label that PyTorch's cross-entropy ignores, and training's accuracy too
NOT_COUNTED = -100


class Corrupted(NamedTuple):
    """What `corrupt` gives.

    Attributes:
        labels: int64 (N,), on the device of the labels that were given.
        redrawn: bool (N,): which labels were drawn again; by chance some of them are
            the old ones.
    """

    labels: Tensor
    redrawn: Tensor


def corrupt(labels: Tensor, share: float, *, classes: int, seed: int) -> Corrupted:
    """Draw each label again, uniformly over all classes, with probability ``share``.

    A redrawn label is the old one by chance, in one of ``classes`` cases: at share 1
    the labels say nothing about the images, and at share s about s (1 - 1 / classes) of
    them are wrong.

    With one seed, shares are nested: what is redrawn at a share is redrawn, to the same
    label, at every larger one.

    Args:
        labels: int64 (N,), from 0.
        share: From 0 to 1.
        classes: Number of classes to draw from.
        seed: Of the draws; the global generator is not touched.

    Raises:
        UsageError: A share outside 0 to 1, or labels that are not class numbers.

    >>> zeros = torch.zeros(1000, dtype=torch.int64)
    >>> labels, redrawn = corrupt(zeros, 0.5, classes=10, seed=0)
    >>> bool((labels[~redrawn] == 0).all()), 400 < int(redrawn.sum()) < 600
    (True, True)
    """
    if not 0 <= share <= 1:
        raise UsageError(
            f"A share of corrupted labels must be from 0 to 1, got {share}."
        )
    if classes < 1:
        raise UsageError(f"classes must be at least 1, got {classes}.")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise UsageError(
            f"Labels must be whole numbers in one dimension, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}."
        )
    least, largest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if least < 0 or largest >= classes:
        raise UsageError(
            f"Labels must be from 0 to {classes - 1} for {classes} classes, got "
            f"{least} to {largest}. Give classes as many as there are."
        )
    generator = torch.Generator().manual_seed(seed)
    redrawn = torch.rand(len(labels), generator=generator, dtype=torch.float64) < share
    drawn = torch.randint(classes, (len(labels),), generator=generator)
    redrawn, drawn = redrawn.to(labels.device), drawn.to(labels.device)
    return Corrupted(torch.where(redrawn, drawn, labels.long()), redrawn)


def by_truth(labels: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Split labels by whether they are true, for scores of each part.

    What is in no part holds -100, which is counted nowhere.

    Args:
        labels: int64 (..., N), some of them corrupted.
        truth: int64 (N,).

    Returns:
        int64 (..., N) each. ``"unchanged"``: the labels that are the true ones;
        ``"changed"``: the others; ``"truth_of_changed"``: the true ones in their place.

    >>> parts = by_truth(torch.tensor([3, 1, 2]), torch.tensor([0, 1, 2]))
    >>> parts["unchanged"].tolist(), parts["changed"].tolist()
    ([-100, 1, 2], [3, -100, -100])
    >>> parts["truth_of_changed"].tolist()
    [0, -100, -100]
    """
    changed = labels != truth
    return {
        "unchanged": labels.masked_fill(changed, NOT_COUNTED),
        "changed": labels.masked_fill(~changed, NOT_COUNTED),
        "truth_of_changed": truth.expand_as(labels).masked_fill(~changed, NOT_COUNTED),
    }
