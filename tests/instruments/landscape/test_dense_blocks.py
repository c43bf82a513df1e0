"""Dense networks in blocks against calling each network, for every layer."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nablab.instruments.landscape import dense_blocks
from nablab.instruments.landscape.dense_blocks import DenseBlocks

ACTIVATIONS = (
    *(nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.Identity()),
    *(nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus()),
)


def basis_of(model: nn.Module, points: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(points, *p.shape, generator=generator).double()
        for name, p in model.named_parameters()
    }


def check(model: nn.Module, inputs: torch.Tensor) -> None:
    basis = basis_of(model)
    factors = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    blocks = DenseBlocks.of(model, basis)
    assert blocks is not None
    assert blocks.takes(inputs)
    kept = inputs.clone()
    found = blocks.outputs(factors, inputs)
    for k, row in enumerate(factors):
        point = {
            name: torch.tensordot(row, tensor, 1) for name, tensor in basis.items()
        }
        torch.testing.assert_close(
            found[k], functional_call(model, point, (inputs,)), rtol=1e-10, atol=1e-10
        )
    assert torch.equal(inputs, kept)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_every_activation(activation: nn.Module) -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 3)
    ).double()
    check(model, torch.linspace(-2, 2, 36).double().view(9, 4))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3)),
        nn.Sequential(
            nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)
        ),
        nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 9), nn.Tanh(), nn.ReLU()),
        nn.Sequential(
            OrderedDict(first=nn.Linear(4, 3), act=nn.ReLU(), last=nn.Linear(3, 1))
        ),
    ],
)
def test_one_layer_no_biases_names_and_no_activation(model: nn.Module) -> None:
    check(model.double(), torch.linspace(-1, 1, 20).double().view(5, 4))


def test_images_are_flattened() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)
    ).double()
    check(model, torch.linspace(-1, 1, 40).double().view(5, 2, 2, 2))


@pytest.mark.parametrize(
    ("samples", "numbers"), [(1, 1), (4, 40), (128, 2**17), (3, 10**6)]
)
def test_how_the_work_is_cut_does_not_matter(
    samples: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_blocks, "TILE_SAMPLES", samples)
    monkeypatch.setattr(dense_blocks, "TILE_NUMBERS", numbers)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    ).double()
    check(model, torch.linspace(-2, 2, 44).double().view(11, 4))


class Doubling(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(Doubling(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
        nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)),
        nn.Sequential(nn.ReLU(), nn.Linear(2, 2)),
        nn.Sequential(nn.Flatten(2), nn.Linear(2, 2)),
        nn.Sequential(),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
        hooked(),
        shared(),
    ],
)
def test_other_networks_are_left_to_others(model: nn.Module) -> None:
    assert DenseBlocks.of(model, basis_of(model)) is None


def test_other_inputs_are_left_to_others() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double()
    blocks = DenseBlocks.of(model, basis_of(model))
    assert blocks is not None
    assert not blocks.takes(torch.zeros(3, 4, 2))
    assert not blocks.takes({"x": torch.zeros(3, 2)})
