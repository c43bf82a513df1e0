"""Cross-entropy with label smoothing, alone and as the loss of a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab import training
from nablab.errors import UsageError
from nablab.training import CrossEntropy


def test_smoothed_targets_are_those_of_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    targets = torch.full((6, 4), 0.2 / 4, dtype=torch.float64)
    targets[torch.arange(6), labels] += 0.8
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(CrossEntropy(0.2)(logits, labels), expected)


def trained(loss: training.Loss, held_out: int = 6) -> training.Training:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    return training.train(
        training.Supervised(lambda: nn.Linear(5, 2), loss),
        (x, y),
        training.Recipe(
            epochs=3, batch_size=10, held_out={"rest": (x[:held_out], y[:held_out])}
        ),
        seeds=[0],
        replicas="sequential",
    )


def test_a_training_with_it_has_accuracies() -> None:
    plain, unsmoothed = trained("cross_entropy"), trained(CrossEntropy())
    assert set(plain.evaluations) == set(unsmoothed.evaluations)
    for name, curve in plain.evaluations.items():
        assert unsmoothed.evaluations[name] == pytest.approx(curve)
    smoothed = trained(CrossEntropy(0.3)).evaluations
    assert "rest_accuracy" in smoothed
    assert smoothed["train_loss"][0, 0] != plain.evaluations["train_loss"][0, 0]


def test_bad_smoothing_and_bad_labels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"from 0 to below 1, got 1"):
        CrossEntropy(1.0)
    with pytest.raises(UsageError, match="labels"):
        training.train(
            training.Supervised(lambda: nn.Linear(5, 2), CrossEntropy(0.1)),
            (torch.randn(4, 5), torch.tensor([1, 2, 1, 2])),
            training.Recipe(epochs=1),
            seeds=[0],
        )
