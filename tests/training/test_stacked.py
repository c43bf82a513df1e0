"""Many networks' outputs from stacked weights: what PyTorch gives, network by network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nablab import instruments, models, training
from nablab.errors import UsageError

X = torch.randn(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network():
    return models.image_network("conv4k3-pool-conv6k3-16", size=12)


@pytest.fixture
def predict():
    predictor = training.stacked_predictor(network(), X)
    if predictor is None:
        pytest.skip("there is no C compiler here")
    return predictor


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_those_of_each_network(predict, count):
    networks = training.build_replicas(network, range(count))
    named = [dict(module.named_parameters()) for module in networks]
    stacked = {
        name: torch.stack([own[name].detach() for own in named]) for name in named[0]
    }
    with torch.no_grad():
        expected = torch.stack([module(X) for module in networks])
    for _ in range(2):  # the engine is used again
        torch.testing.assert_close(predict(stacked, X), expected, rtol=1e-4, atol=1e-5)


def test_interpolation_finds_the_same_with_it(predict):
    a, b = (module.eval() for module in training.build_replicas(network, [0, 1]))
    batch = X, torch.arange(40) % 10
    options = {"count": 9, "metrics": ("accuracy",), "batch_size": 16}
    fast = instruments.interpolate(
        a, b, "cross_entropy", batch, predict=predict, **options
    )
    plain = instruments.interpolate(
        a, b, "cross_entropy", batch, batched=False, **options
    )
    for metric in ("loss", "accuracy"):
        np.testing.assert_allclose(
            fast.values["data"][metric], plain.values["data"][metric], rtol=1e-4
        )


FIRST_LAYERS = {
    "a convolution that pads": network,
    "a convolution before another that pads": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.Conv2d(3, 2, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(200, 3),
    ),
    "a dense layer": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 3)
    ),
    "the only layer": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(144, 3, bias=False)
    ),
    "a pooling": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_points_of_a_basis_give_what_their_weights_give(name):
    build = FIRST_LAYERS[name]
    predict = training.stacked_predictor(build(), X)
    if predict is None:
        pytest.skip("there is no C compiler here")
    named = [
        dict(module.named_parameters())
        for module in training.build_replicas(build, range(3))
    ]
    basis = {key: torch.stack([own[key].detach() for own in named]) for key in named[0]}
    # more than one ticket takes
    factors = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    points = {key: torch.tensordot(factors, tensor, 1) for key, tensor in basis.items()}
    direct = predict(points, X)
    at_points, others = (
        predict.at_points(basis, factors),
        predict.at_points(basis, -factors),
    )
    for _ in range(2):  # each makes the engine hold its own points again
        torch.testing.assert_close(at_points(X), direct, rtol=1e-4, atol=1e-4)
        assert (others(X) - direct).abs().max() > 0.1
        torch.testing.assert_close(predict(points, X), direct, rtol=0, atol=0)


def test_a_model_of_another_function_is_found_with_it(predict):
    class Doubled(nn.Module):
        """The same parameters, twice the outputs."""

        def __init__(self):
            super().__init__()
            self.own = network()
            for key, value in self.own._modules.items():
                self.add_module(key, value)
            del self.own

        def forward(self, x):
            for part in self._modules.values():
                x = part(x)
            return 2 * x

    torch.manual_seed(0)
    a, b = network().eval(), Doubled().eval()
    with pytest.raises(UsageError, match="different functions"):
        instruments.interpolate(
            a, b, "cross_entropy", (X, torch.arange(40) % 10), predict=predict
        )


def test_a_predictor_of_another_function_is_found(predict):
    a, b = (module.eval() for module in training.build_replicas(network, [0, 1]))
    batch = X, torch.arange(40) % 10
    with pytest.raises(UsageError, match="predict computes another function"):
        instruments.interpolate(
            a, b, "cross_entropy", batch, predict=lambda t, x: 2 * predict(t, x)
        )


def test_a_network_that_the_engine_does_not_serve_has_none():
    assert (
        training.stacked_predictor(
            nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten()), X
        )
        is None
    )
