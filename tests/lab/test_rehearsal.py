"""A dry run measures: one whole evaluation, and a short training that needs few samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nablab import training
from nablab.experiment import Condition, Trials
from nablab.lab.session import Rehearsal
from tests.toys.toy import Toy


def test_an_evaluation_is_measured_once_and_the_short_training_takes_few_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[training.Recipe] = []
    trained: list[training.Recipe] = []

    def watched(function: Any, recipes: list[training.Recipe]) -> Any:
        return lambda *given, **options: (recipes.append(given[2]), function(*given, **options))[1]

    monkeypatch.setattr(training, "measure_speed", watched(training.measure_speed, measured))
    monkeypatch.setattr(training, "train", watched(training.train, trained))
    x, y = torch.randn(400, 3), torch.zeros(400, dtype=torch.int64)
    own = training.OwnLabels(torch.zeros(2, 400, dtype=torch.int64))
    rehearsal = Rehearsal(Toy(), Trials([Condition(width=3)], [0, 1]), device="cpu", replicas="auto")
    result = rehearsal.train(
        training.Supervised(lambda: nn.Linear(3, 2), "cross_entropy"),
        (x, y),
        training.Recipe(steps=3_000, held_out={"test": (x + 1, y), "own": (x, own)}, train_samples=300),
        seeds=[0, 1],
    )
    assert len(measured[0].held_out["test"][0]) == 400
    assert measured[0].train_samples == 300
    assert [len(part) for part in trained[0].held_out["test"]] == [256, 256]
    few, labels = trained[0].held_out["own"]
    assert few.data_ptr() == x.data_ptr()  # still the training set's, so predicted once
    assert labels.values.shape == (2, 256)
    assert trained[0].train_samples == 256
    assert result.train_loss.shape == (2, 3_000)
