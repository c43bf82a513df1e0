"""Scores of classifiers, against what a loop over the samples gives."""

from __future__ import annotations

import pytest
import sklearn.metrics
import torch
from torch import nn

from nablab import metrics


def test_the_surest_mistakes_are_in_the_order_of_their_probability() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=draw)
    labels = torch.randint(5, (60,), generator=draw)
    expected = [
        (float(row.softmax(0).max()), place, int(row.argmax()))
        for place, (row, label) in enumerate(zip(logits, labels, strict=True))
        if int(row.argmax()) != int(label)
    ]
    expected.sort(reverse=True)
    places, answers = metrics.most_confident_errors(logits, labels, most=7)
    assert places.tolist() == [place for _, place, _ in expected[:7]]
    assert answers.tolist() == [answer for _, _, answer in expected[:7]]
    assert len(metrics.most_confident_errors(logits, labels, most=100)[0]) == len(
        expected
    )
    # The largest logit is not the surest answer: what counts is its share.
    logits = torch.tensor([[100.0, 99.0], [3.0, 0.0]])
    assert metrics.most_confident_errors(logits, torch.tensor([1, 1]), most=1)[
        0
    ].tolist() == [1]


def test_nobody_is_wrong() -> None:
    places, answers = metrics.most_confident_errors(
        torch.eye(3), torch.arange(3), most=5
    )
    assert (len(places), len(answers)) == (0, 0)


def test_the_constant_says_the_class_that_training_saw_most() -> None:
    train, test = torch.tensor([2, 2, 0, 1]), torch.tensor([0, 0, 0, 2])
    assert metrics.constant_accuracy(train, test) == 0.25


class Echo(nn.Module):
    """Gives the inputs as logits, after dropout."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(rate)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = self.drop(self.norm(x * self.scale))
        return dropped


def test_dropout_is_active_and_nothing_else_is_disturbed() -> None:
    network = Echo(0.5)
    x = torch.eye(4).repeat(1_000, 1)
    y = torch.arange(4).repeat(1_000)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    found = metrics.accuracy_with_dropout(network, x, y)
    # The one that counts is kept half of the time; else all logits are 0, and argmax
    # says class 0.
    assert found == pytest.approx(0.5 + 0.5 / 4, abs=0.03)
    assert metrics.accuracy_with_dropout(network, x, y) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in network.state_dict().items()
    )
    assert network.training
    assert network.norm.training
    network.eval()
    metrics.accuracy_with_dropout(network, x, y)
    assert not network.drop.training


def test_without_dropout_it_is_the_accuracy_on_prepared_samples() -> None:
    network = Echo(0.0)
    x = torch.eye(4) * 255
    y = torch.tensor([0, 1, 2, 0])
    seen = []

    def prepare(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch / 255

    assert metrics.accuracy_with_dropout(network, x, y, prepare=prepare) == 0.75
    assert seen == [4]


def test_the_hardest_samples_have_the_largest_loss() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    places, losses, answers = metrics.largest_losses(logits, labels, most=50)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses, expected.sort(descending=True).values)
    torch.testing.assert_close(losses, expected[places])
    assert torch.equal(answers, logits[places].argmax(1))
    assert len(metrics.largest_losses(logits, labels, most=4)[0]) == 4


def test_confusion_counts_pairs_as_scikit_learn_does() -> None:
    generator = torch.Generator().manual_seed(0)
    answers, labels = torch.randint(4, (2, 200), generator=generator)
    found = metrics.confusion_matrix(answers, labels, classes=5)
    expected = sklearn.metrics.confusion_matrix(labels, answers, labels=range(5))
    assert found.tolist() == expected.tolist()
