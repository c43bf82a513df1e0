"""Models that keep things beside parameters and buffers, and data that are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.instruments.battery.case import EITHER, REFUSAL, Model, rows_of
from tests.instruments.battery.models.layers import dense, regression


class KeepsFeatures(nn.Module):
    """Keeps features of the latest pass, which cannot be deep-copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.tanh(self.body(x))
        self.auxiliary = self.features.square().mean()
        return self.head(self.features)


class Unregistered(nn.Module):
    """A plain list of layers, whose weights PyTorch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, 3)]
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layers[0](x)))


class PlainTensor(nn.Module):
    """A tensor that is not a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor([1.0, 2.0, 0.5])
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x * self.scale))


class InPlace(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.clamp_(min=0)
        return torch.tanh(self.layer(x))


class Hooked(nn.Module):
    """A user's own hooks, which look and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = dense()
        self.network[0].register_forward_hook(lambda module, inputs, output: None)
        self.network[2].register_full_backward_hook(
            lambda module, inputs, outputs: None
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def compiled() -> nn.Module:
    return torch.compile(dense(), backend="eager")  # type: ignore[return-value]


def shuffled() -> DataLoader[tuple[Tensor, ...]]:
    """Reading it draws from PyTorch's generator."""
    return DataLoader(
        TensorDataset(torch.randn(6, 3), torch.randn(6, 2)), batch_size=6, shuffle=True
    )


ROWS = {
    "features kept": Model(build=KeepsFeatures, data=regression, sample=rows_of),
    "unregistered layers": Model(
        build=Unregistered, data=regression, sample=rows_of, answer=EITHER
    ),
    "unregistered layers, in float32": Model(
        build=Unregistered,
        data=regression,
        sample=rows_of,
        dtype=None,
        tolerance=2e-3,
        answers={
            "find_critical_point": EITHER,
            "hessian_matrix": EITHER,
            "inertia": EITHER,
            "interpolate": REFUSAL,  # two models that differ in what is no parameter
        },
    ),
    "tensor that is no buffer": Model(
        build=PlainTensor, data=regression, sample=rows_of, answer=EITHER
    ),
    "input changed in place": Model(
        build=InPlace,
        data=regression,
        sample=rows_of,
        answers={"input_sensitivity": EITHER},
    ),
    "hooks": Model(build=Hooked, data=regression, sample=rows_of),
    "compiled": Model(
        build=compiled,
        data=regression,
        sample=rows_of,
        answer=EITHER,
        answers={"match_units": REFUSAL},
    ),
    "shuffling loader": Model(
        build=dense, data=shuffled, sample=rows_of, matchable=True
    ),
}
