"""The dense network: gradients against autograd, steps against torch.optim, and types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab import models
from nablab.from_scratch.dense import (
    ACTIVATIONS,
    Array,
    Momentum,
    Network,
    columns,
    dense_network,
    softmax_cross_entropy,
    train_step,
)

MEAN, STD = (0.2, 0.5, 0.4), (0.3, 0.1, 0.25)


def twin(network: Network, spec: str, size: int, **options: Any) -> nn.Sequential:
    """The same network in PyTorch, with the same weights and in the same type."""
    module = models.image_network(spec, size=size, classes=10, **options)
    state = {k: torch.from_numpy(v.copy()) for k, v in network.state_dict().items()}
    module = module.to(next(iter(state.values())).dtype)
    module.load_state_dict(state)
    return module


def batch(
    samples: int, size: int, dtype: Any, seed: int = 0, channels: int = 1
) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    shape = (samples, channels, size, size)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    x = columns(images, mean=MEAN[:channels], std=STD[:channels], dtype=dtype)
    return x, rng.integers(0, 10, samples)


def arrays_of(network: Network, optimizer: Momentum) -> dict[str, Array]:
    """Every array of numbers that a step leaves behind."""
    kept = {
        f"{place}.{name}": value
        for place, layer in enumerate(network.layers)
        for name, value in vars(layer).items()
        if isinstance(value, np.ndarray)
    }
    velocities = {f"velocity {k}": v for k, v in optimizer.state_dict().items()}
    gradients = {f"gradient {k}": v for k, v in network.gradients().items()}
    return kept | velocities | gradients | network.state_dict()


def assert_gradients_are_those_of_autograd(
    network: Network, module: nn.Module, x: Array, labels: Array
) -> None:
    logits = network.forward(x)
    loss, slope = softmax_cross_entropy(logits, labels)
    network.backward(slope)
    images = torch.from_numpy(np.moveaxis(x, -1, 0).copy())
    outputs = module(images)
    truth = nn.functional.cross_entropy(outputs, torch.from_numpy(labels))
    truth.backward()
    np.testing.assert_allclose(logits.T, outputs.detach().numpy(), rtol=1e-9)
    assert loss == pytest.approx(truth.item(), rel=1e-12)
    gradients = network.gradients()
    named = dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert parameter.grad is not None
        np.testing.assert_allclose(
            gradients[name], parameter.grad.numpy(), rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_units", [0, 7])
def test_gradients_are_those_of_autograd(hidden_units: int, activation: str) -> None:
    rng = np.random.default_rng(1)
    network = dense_network(
        36, hidden_units, 10, rng, activation=activation, dtype=np.float64
    )
    spec = f"flatten-{hidden_units}" if hidden_units else "flatten"
    module = twin(network, spec, 6, activation=activation)
    assert_gradients_are_those_of_autograd(network, module, *batch(9, 6, np.float64))


def test_the_loss_is_log_10_for_a_network_that_knows_nothing() -> None:
    loss, slope = softmax_cross_entropy(np.zeros((10, 4)), np.array([0, 3, 3, 9]))
    assert loss == pytest.approx(np.log(10))
    np.testing.assert_allclose(slope.sum(axis=0), 0, atol=1e-16)
    assert slope[3, 1] == pytest.approx((0.1 - 1) / 4)


def test_the_loss_of_huge_logits_is_finite() -> None:
    logits = np.array([[1e4], [-1e4]], dtype=np.float32)
    loss, slope = softmax_cross_entropy(logits, np.array([1]))
    assert loss == 2e4
    assert slope[:, 0].tolist() == [1, -1]


def test_ten_steps_are_those_of_torchs_optimizer() -> None:
    network = dense_network(64, 32, 10, np.random.default_rng(2))
    module, optimizer = twin(network, "flatten-32", 8), Momentum(network, 0.9)
    sgd = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    for step in range(10):
        rate = 0.05 * (1 - step / 10)
        x, labels = batch(16, 8, np.float32, seed=step)
        loss = train_step(network, optimizer, x, labels, rate)
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        outputs = module(torch.from_numpy(np.moveaxis(x, -1, 0).copy()))
        truth = nn.functional.cross_entropy(outputs, torch.from_numpy(labels))
        truth.backward()
        sgd.step()
        assert loss == pytest.approx(truth.item(), rel=1e-4)
    for name, value in module.state_dict().items():
        own = network.state_dict()[name]
        np.testing.assert_allclose(own, value.numpy(), rtol=0, atol=1e-5)


def test_a_rate_of_numpys_own_computes_in_the_type_of_the_weights() -> None:
    ends = []
    for rate in (0.1, np.float64(0.1)):
        network = dense_network(64, 16, 10, np.random.default_rng(3))
        optimizer = Momentum(network, 0.9)
        for _ in range(3):
            train_step(network, optimizer, *batch(8, 8, np.float32), float(rate))
            optimizer.step(rate)
        ends.append(network.state_dict()["1.weight"])
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_array_of_a_step_leaves_its_type(activation: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    network = dense_network(64, 16, 10, rng, activation=activation, dtype=dtype)
    optimizer = Momentum(network, 0.9)
    x, labels = batch(8, 8, dtype)
    # A rate of NumPy's own, which would make float64 of all that it multiplies.
    train_step(network, optimizer, x, labels, np.sqrt(0.01))
    found = arrays_of(network, optimizer) | {"x": x, "logits": network.forward(x)}
    assert len(found) > 14
    assert {name for name, value in found.items() if value.dtype != dtype} == set()


def test_columns_are_what_the_lab_normalizes() -> None:
    from nablab.data import Normalize

    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    x = columns(images.numpy(), mean=MEAN, std=STD)
    truth = Normalize(MEAN, STD)(images)
    np.testing.assert_allclose(np.moveaxis(x, -1, 0), truth.numpy(), rtol=1e-6)
    constant = columns(images.numpy()[:, :1], mean=(0.5,), std=(0.0,))
    assert not constant.any()


def test_a_state_comes_back_to_the_last_bit() -> None:
    network = dense_network(64, 16, 10, np.random.default_rng(4))
    optimizer = Momentum(network, 0.9)
    x, labels = batch(8, 8, np.float32)
    train_step(network, optimizer, x, labels, 0.1)
    saved = {k: v.copy() for k, v in network.state_dict().items()}
    velocity = {k: v.copy() for k, v in optimizer.state_dict().items()}
    after = train_step(network, optimizer, x, labels, 0.1)
    end = {k: v.copy() for k, v in network.state_dict().items()}
    other = dense_network(64, 16, 10, np.random.default_rng(5))
    resumed = Momentum(other, 0.9)
    other.load_state_dict(saved)
    resumed.load_state_dict(velocity)
    assert train_step(other, resumed, x, labels, 0.1) == after
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, end[name])


def test_the_modules_use_numpy_alone() -> None:
    import subprocess
    import sys

    program = (
        "import sys, nablab.from_scratch.convolution; "
        "sys.exit(bool({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
