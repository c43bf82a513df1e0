"""Many networks' outputs from stacked weights: what PyTorch gives, network by network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nablab import instruments, models, training

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
    stacked = {name: torch.stack([own[name].detach() for own in named]) for name in named[0]}
    with torch.no_grad():
        expected = torch.stack([module(X) for module in networks])
    for _ in range(2):  # the engine is used again
        torch.testing.assert_close(predict(stacked, X), expected, rtol=1e-4, atol=1e-5)


def test_interpolation_finds_the_same_with_it(predict):
    a, b = (module.eval() for module in training.build_replicas(network, [0, 1]))
    batch = X, torch.arange(40) % 10
    options = {"count": 9, "metrics": ("accuracy",), "batch_size": 16}
    fast = instruments.interpolate(a, b, "cross_entropy", batch, predict=predict, **options)
    plain = instruments.interpolate(a, b, "cross_entropy", batch, batched=False, **options)
    for metric in ("loss", "accuracy"):
        np.testing.assert_allclose(fast.values["data"][metric], plain.values["data"][metric], rtol=1e-4)


def test_a_network_that_the_engine_does_not_serve_has_none():
    assert training.stacked_predictor(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten()), X) is None
