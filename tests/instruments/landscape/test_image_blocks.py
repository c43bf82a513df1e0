"""Convolutional networks in blocks against calling each, for every layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nablab import models
from nablab.instruments import interpolate, loss_plane
from nablab.instruments.landscape import image_blocks
from nablab.instruments.landscape.image_blocks import ImageBlocks

NAMES = (
    "lenet",
    "cnn-25k-shallow",
    "cnn-343k",
    "cnn-96k",
    "fast",
    "conv4k3-mean",
    "conv4k3s2-pool3-drop0.3",
)


def network(spec: str, *, size: int = 28, activation: str = "relu") -> nn.Sequential:
    torch.manual_seed(0)
    return models.image_network(spec, size=size, activation=activation).double().eval()  # type: ignore[arg-type]


def basis_of(model: nn.Module, points: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: torch.rand(points, *t.shape, generator=generator).double()
        - (0.0 if "var" in name else 0.5)
        for name, t in tensors.items()
        if t.is_floating_point()
    }


def check(model: nn.Module, inputs: torch.Tensor) -> None:
    basis = basis_of(model)
    factors = torch.rand(7, 3, generator=torch.Generator().manual_seed(1)).double()
    blocks = ImageBlocks.of(model, basis)
    assert blocks is not None
    assert blocks.takes(inputs)
    kept = inputs.clone()
    found = blocks.outputs(factors, inputs)
    for k, row in enumerate(factors):
        point = {
            name: torch.tensordot(row, tensor, 1) for name, tensor in basis.items()
        }
        torch.testing.assert_close(
            found[k], functional_call(model, point, (inputs,)), rtol=1e-9, atol=1e-9
        )
    assert torch.equal(inputs, kept)


def images(count: int = 5, size: int = 28) -> torch.Tensor:
    return torch.randn(
        count, 1, size, size, generator=torch.Generator().manual_seed(2)
    ).double()


@pytest.mark.parametrize("spec", NAMES)
def test_networks_of_the_catalogue(spec: str) -> None:
    check(network(spec), images())


@pytest.mark.parametrize(
    "activation", ["tanh", "gelu", "silu", "leaky_relu", "elu", "sigmoid"]
)
def test_activations_before_a_pooling(activation: str) -> None:
    check(
        network("conv4k3-pool-conv3k3-9", size=11, activation=activation),
        images(size=11),
    )


def test_sides_that_a_pooling_does_not_divide() -> None:
    check(network("conv4k3-pool-conv5k2-pool-9", size=13), images(size=13))


@pytest.mark.parametrize(("tile", "block"), [(1, 1), (600, 1300), (10**9, 10**9)])
def test_where_tiles_are_cut_changes_no_value(
    tile: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_blocks, "TILE_NUMBERS", tile)
    monkeypatch.setattr(image_blocks, "BLOCK_NUMBERS", block)
    check(network("conv4k3-pool-9", size=10), images(count=11, size=10))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
        # Batch norm in training mode depends on the whole batch.
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)
        ),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)),
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(8, 2)
        ),
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 2)
        ),
    ],
)
def test_other_networks_are_left_alone(model: nn.Module) -> None:
    assert ImageBlocks.of(model, basis_of(model)) is None


def test_weights_that_are_not_in_the_basis_or_stand_twice() -> None:
    model = network("conv4k3-9", size=6)
    basis = basis_of(model)
    assert (
        ImageBlocks.of(
            model, {name: t for name, t in basis.items() if name != "0.bias"}
        )
        is None
    )
    twice = nn.Conv2d(1, 1, 3, padding=1)
    shared = nn.Sequential(twice, twice, nn.Flatten(), nn.Linear(36, 2))
    assert ImageBlocks.of(shared, basis_of(shared)) is None


@pytest.mark.parametrize("spec", ["lenet", "conv4k3-bn-pool-9", "784-300-100-10"])
def test_a_line_in_blocks_is_the_line_one_by_one(spec: str) -> None:
    a, b = (models.image_network(spec).eval() for _ in range(2))
    x, y = images(30).float(), torch.arange(30) % 10
    options = {"count": 7, "metrics": "accuracy", "batch_size": 16}
    fast = interpolate(a, b, "cross_entropy", (x, y), **options)
    slow = interpolate(a, b, "cross_entropy", (x, y), **options, batched=False)
    torch.testing.assert_close(
        torch.tensor(fast.losses),
        torch.tensor(slow.losses),
        rtol=1e-5,
        atol=0,
        equal_nan=True,
    )
    assert fast.at(0) == slow.at(0)


def test_a_plane_of_some_weights_only() -> None:
    model = models.image_network("conv4k3-pool-9", size=8).eval()
    x, y = images(12, 8).float(), torch.arange(12) % 10
    options = {"resolution": 5, "parameters": ["6.*"]}
    fast = loss_plane(model, "cross_entropy", (x, y), **options)
    slow = loss_plane(model, "cross_entropy", (x, y), **options, batched=False)
    torch.testing.assert_close(
        torch.tensor(fast.losses), torch.tensor(slow.losses), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_values_nor_settings(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_blocks, "TILE_NUMBERS", 600)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(network("conv4k3-pool-9", size=10), images(count=11, size=10))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
