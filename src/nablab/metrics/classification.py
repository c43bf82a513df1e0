"""What accuracy alone does not say.

The trivial score, the most confident errors, the hardest samples, which class is taken
for which, the score with dropout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BATCH = 1_000


def constant_accuracy(train_labels: Tensor, test_labels: Tensor) -> float:
    """Score always answering the most frequent training class.

    The accuracy on ``test_labels`` of the most frequent class of ``train_labels``.

    Args:
        train_labels: int64 (N,).
        test_labels: int64 (M,).

    >>> constant_accuracy(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    0.25
    """
    return float((test_labels == train_labels.bincount().argmax()).double().mean())


@torch.no_grad()
def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a network gives for inputs (N, ...), computed in parts."""
    parts: tuple[Tensor, ...] = torch.split(x, BATCH)
    return torch.cat([module(part) for part in parts])


def most_confident_errors(
    logits: Tensor, labels: Tensor, *, most: int
) -> tuple[Tensor, Tensor]:
    """Find the samples a network gets wrong, the most confident errors first.

    Confidence is the probability that the network gives to its answer.

    Args:
        logits: (N, classes).
        labels: int64 (N,).
        most: How many to give at most.

    Returns:
        The samples int64 (M,) and the wrong answers int64 (M,).

    >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    >>> most_confident_errors(logits, torch.tensor([1, 1, 1]), most=2)
    (tensor([2, 0]), tensor([0, 0]))
    """
    sureness, answers = logits.float().softmax(dim=1).max(dim=1)
    wrong = (answers != labels).nonzero()[:, 0]
    order = sureness[wrong].argsort(descending=True, stable=True)
    chosen = wrong[order[:most]]
    return chosen, answers[chosen]


def largest_losses(
    logits: Tensor, labels: Tensor, *, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the samples to whose true class a network gives the least probability.

    Args:
        logits: (N, classes).
        labels: int64 (N,).
        most: How many to give at most.

    Returns:
        The samples int64 (M,), the largest cross-entropy (nats) first; those
        cross-entropies float32 (M,); and the answers int64 (M,).

    >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    >>> places, losses, answers = largest_losses(logits, torch.tensor([1, 1, 1]), most=2)
    >>> places.tolist(), answers.tolist(), [round(x, 2) for x in losses.tolist()]
    ([2, 0], [0, 0], [5.01, 3.05])
    """
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    chosen = losses.argsort(descending=True, stable=True)[:most]
    return chosen, losses[chosen], logits[chosen].argmax(dim=1)


def confusion_matrix(answers: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Count how many samples of each class got each answer.

    Args:
        answers: int64 (N,).
        labels: int64 (N,).
        classes: How many there are.

    Returns:
        int64 (classes, classes): true classes in rows, answers in columns.

    >>> answers, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    >>> confusion_matrix(answers, labels, classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    pairs = labels * classes + answers
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def accuracy_with_dropout(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Compute the accuracy with dropout active and all else in evaluation mode.

    This is what a score *while training* shows.

    The network's mode is restored, and PyTorch's generator is left as it was: the masks
    come from a fixed seed. Without dropout it is the accuracy in evaluation mode.

    Args:
        network: Gives logits (N, classes).
        inputs: Samples (N, ...), on any device.
        labels: int64 (N,).
        prepare: Makes the network's input of a batch of samples.
    """
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    for module in modes:
        module.training = isinstance(module, nn.modules.dropout._DropoutNd)
    right = 0
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(0)
            for samples, truth in zip(
                torch.split(inputs, BATCH), torch.split(labels, BATCH), strict=True
            ):
                batch = samples.to(device)
                answers = network(prepare(batch) if prepare else batch).argmax(dim=1)
                right += int((answers.cpu() == truth.cpu()).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return right / len(labels)
