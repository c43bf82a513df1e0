"""The L1 penalty of optimizers: closed forms, the lasso of scikit-learn, and equal
numbers in every engine.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nablab.errors import UsageError
from nablab.training import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    build_replicas,
    fit,
)
from nablab.training.batched import BatchedEngine
from nablab.training.fused.bags import FusedBagsEngine
from nablab.training.fused.dense import FusedEngine
from nablab.training.fused.images import FusedImageEngine
from nablab.training.sequential import SequentialEngine

KINDS = {
    "sgd": lambda **n: SGD(0.05, momentum=0.5, **n),
    "rmsprop": lambda **n: RMSprop(0.01, momentum=0.5, **n),
    "adam": lambda **n: Adam(0.01, weight_decay=0.1, **n),
    "adamw": lambda **n: AdamW(0.01, **n),
}
PENALTIES = {
    "subgradient": {"l1": [0.0, 0.02, 0.5]},
    "proximal": {"proximal_l1": [0.3, 0.0, 0.02]},
    "both": {"l1": 0.05, "proximal_l1": [0.1, 0.2, 0.0]},
}
STEPS = 12
RATES = 1 / (1 + np.arange(STEPS) / 6)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def minimized(optimizer, goal, steps, rate=lambda step: 1.0):
    """Weights after steps on half of the squared distance to a goal, from zero."""
    weights = torch.ones(1, len(goal))
    slots = {name: torch.zeros_like(weights) for name in optimizer.slots()}
    for step in range(steps):
        optimizer.update(weights, weights - goal, slots, rate(step), step + 1)
    return weights[0]


GOAL = torch.tensor([2.0, -1.0, 0.3, -0.2, 0.0], dtype=torch.float64)
SOFT = torch.tensor([1.6, -0.6, 0.0, 0.0, 0.0]).double()  # moved by 0.4 towards zero


@pytest.mark.parametrize(
    "kind", [lambda **n: SGD(0.1, **n), lambda **n: Adam(0.02, **n)]
)
def test_the_proximal_step_reaches_soft_thresholding_and_its_zeros_exactly(kind):
    found = minimized(kind(proximal_l1=0.4), GOAL, 800)
    torch.testing.assert_close(found, SOFT, rtol=0, atol=1e-6)
    assert found[2:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "kind", [lambda **n: SGD(0.1, **n), lambda **n: Adam(0.05, **n)]
)
def test_the_subgradient_comes_near_and_is_never_zero(kind):
    found = minimized(kind(l1=0.4), GOAL, 800, rate=lambda step: 1 / (1 + step / 50))
    torch.testing.assert_close(found, SOFT, rtol=0, atol=0.01)
    assert (found != 0).all()


def test_one_step_of_adam_by_hand():
    """The first step of Adam has the gradient's sign times the rate; then the weight is
    moved by (rate / size of the gradient) x penalty.
    """
    weights, gradient = (
        torch.tensor([[1.0, 1.0, -1.0]]),
        torch.tensor([[2.0, 0.5, 4.0]]),
    )
    optimizer = Adam(0.1, epsilon=0.0, proximal_l1=0.3)
    slots = {name: torch.zeros_like(weights) for name in optimizer.slots()}
    optimizer.update(weights, gradient.clone(), slots, 1.0, 1)
    moved = torch.tensor([[0.9, 0.9, -1.1]])
    expected = moved - moved.sign() * 0.1 * 0.3 / gradient
    torch.testing.assert_close(weights, expected)


def test_proximal_adam_finds_the_lasso_of_scikit_learn():
    from sklearn.linear_model import Lasso

    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 8)) * np.geomspace(0.3, 3, 8)
    y = x @ np.array([2.0, 0, 0, -1.5, 0, 0.5, 0, 0]) + draw.normal(size=60)
    lasso = Lasso(alpha=0.2, fit_intercept=False, tol=1e-12).fit(x, y)
    result = fit(
        lambda: nn.Linear(8, 1, bias=False),
        (torch.from_numpy(x), torch.from_numpy(y)[:, None]),
        seeds=[0, 1, 2],
        steps=1_500,
        # The lasso halves the squared error.
        optimizer=Adam(0.02, proximal_l1=0.4),
        eval_every=1_500,
    )
    for found in result.parameters()["weight"]:
        np.testing.assert_allclose(found[0].numpy(), lasso.coef_, atol=1e-6)
        assert ((found[0] == 0).numpy() == (lasso.coef_ == 0)).all()
    assert (lasso.coef_ == 0).any()


def text(**_):
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(40, 60, generator=draw) < 0.08).double()
    return x, torch.randint(3, (40,), generator=draw)


def classifier():
    return nn.Sequential(nn.Linear(60, 9), nn.ReLU(), nn.Linear(9, 3))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_takes_the_same_steps(kind, penalty):
    optimizer = KINDS[kind](**PENALTIES[penalty])
    x, y = text()
    draw = torch.Generator().manual_seed(1)
    batches = torch.randint(40, (STEPS, 3, 16), generator=draw)
    ends = {}
    for engine_class, more in (
        (SequentialEngine, {"seeds": [1, 2, 3]}),
        (BatchedEngine, {}),
        (FusedImageEngine, {}),
        (FusedBagsEngine, {"seeds": [1, 2, 3]}),
    ):
        engine = engine_class(
            build_replicas(classifier, (1, 2, 3)),
            x,
            y,
            loss="cross_entropy",
            optimizer=optimizer,
            per_replica_targets=False,
            **more,
        )
        engine.advance(RATES, batches)
        ends[engine.name] = engine.parameters()
    for name, found in ends.items():
        for key, expected in ends["sequential"].items():
            torch.testing.assert_close(
                found[key], expected, rtol=1e-7, atol=1e-9, msg=f"{name}, {key}"
            )
            assert torch.equal(found[key] == 0, expected == 0), name


def test_the_engine_for_the_squared_error_takes_them_too():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, generator=draw), torch.randn(30, 1, generator=draw)
    ends = []
    for engine_class, more in (
        (FusedEngine, {}),
        (SequentialEngine, {"seeds": [1, 2]}),
    ):
        engine = engine_class(
            build_replicas(
                lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)),
                (1, 2),
            ),
            x,
            y,
            loss="mse",
            optimizer=Adam(0.05, proximal_l1=[0.2, 0.0], l1=[0.0, 0.1]),
            per_replica_targets=False,
            **more,
        )
        engine.advance(np.ones(60), None)
        ends.append(engine.parameters())
    assert (ends[0]["0.weight"][0] == 0).any()
    for key, expected in ends[1].items():
        # tanh is computed in another way
        torch.testing.assert_close(ends[0][key], expected, rtol=1e-5, atol=1e-7)


def test_the_loss_that_is_minimized_is_that_of_autograd():
    """The subgradient equals the gradient of the penalty where no weight is zero."""
    [ours], [theirs] = (build_replicas(classifier, (3,)) for _ in range(2))
    x, y = text()
    optimizers = (
        Adam(0.01, l1=0.1).torch_optimizer(ours.parameters(), 0),
        torch.optim.Adam(theirs.parameters(), lr=0.01),
    )
    for net, optimizer, weight in zip(
        (ours, theirs), optimizers, (0.0, 0.1), strict=True
    ):
        for _ in range(5):
            optimizer.zero_grad()
            size = sum(parameter.abs().sum() for parameter in net.parameters())
            (functional.cross_entropy(net(x), y) + weight * size).backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_negative_penalty_is_refused():
    with pytest.raises(UsageError, match="proximal_l1 must not be negative, got -1"):
        SGD(proximal_l1=[0.1, -1.0])
    with pytest.raises(UsageError, match="l1 has 2 values for 3 replicas"):
        Adam(l1=[0.1, 0.2]).check_replicas(3)
