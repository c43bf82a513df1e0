"""GridSearchCV over skorch: the networks that this lab's sampler and start give."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from nablab import baselines, models, training
from nablab.baselines.skorch_search import SameOrder, Start


def dense(width: int) -> nn.Sequential:
    return models.dense((12, width, 3), activation="relu")


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=draw)
    return x, (x @ torch.randn(12, 3, generator=draw)).argmax(1)


def test_it_scores_as_plain_pytorch_does(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """The loop that GridSearchCV and skorch stand for, written out."""
    x, y = data
    folds = training.Folds(60, 3, {fold: fold for fold in range(3)}, 16, seed=1)
    splits = [(folds.training(fold), folds.validation(fold)) for fold in range(3)]
    grid = {"module__width": [4], "lr": [0.01, 0.1], "max_epochs": [2]}
    found = baselines.grid_search_cv(
        dense,
        data,
        grid=grid,
        folds=splits,
        optimizer="SGD",
        batch_size=16,
        start=5,
        order=6,
    )
    order = training.Shuffled(40, 16)
    for point, scores in zip(found.points, found.scores, strict=True):
        for (train, test), score in zip(splits, scores, strict=True):
            torch.manual_seed(5)
            net = dense(4)
            optimizer = torch.optim.SGD(net.parameters(), lr=point["lr"])
            for batch in range(2 * order.batches_per_epoch):
                chosen = train[order.indices(6, batch)]
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
                optimizer.step()
            right = net(x[test]).argmax(1) == y[test]
            assert score == pytest.approx(float(right.double().mean()))
    assert found.best == found.points[int(found.scores.mean(1).argmax())]
    assert found.of(found.points[::-1]).tolist() == found.scores[::-1].tolist()
    assert found.seconds > 0


def test_each_fit_begins_with_the_first_epoch() -> None:
    sampler, order = SameOrder(7, 3, seed=2), training.Shuffled(7, 3)
    for epoch in range(2):
        wanted = [order.indices(2, 3 * epoch + place) for place in range(3)]
        assert list(sampler) == torch.cat(wanted).tolist()
    assert len(sampler) == 7


def test_the_start_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = (Start(dense, 3)(width=4)[0].weight for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, Start(partial(dense), 4)(width=4)[0].weight)
    assert torch.equal(torch.get_rng_state(), before)
