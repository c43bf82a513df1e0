"""Weights that are computed from other tensors, or that stand in two places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as new
from torch.utils.checkpoint import checkpoint

from tests.instruments.battery.case import EITHER, Model, rows_of
from tests.instruments.battery.models.layers import images, regression


def _weight_norm(parametrized: bool) -> nn.Module:
    normalize = new.weight_norm if parametrized else nn.utils.weight_norm
    return nn.Sequential(
        normalize(nn.Conv2d(1, 2, 2)),
        nn.Tanh(),
        nn.Flatten(),
        normalize(nn.Linear(8, 2)),
    )


def _spectral_norm(parametrized: bool) -> nn.Module:
    normalize = new.spectral_norm if parametrized else nn.utils.spectral_norm
    network = nn.Sequential(normalize(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2))
    for _ in range(20):
        network(torch.randn(4, 3))  # the power iteration goes on while the model trains
    return network.eval()


class Alias(nn.Module):
    """One layer under two names, as weight sharing is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.c = self.b
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


class Tied(nn.Module):
    """A decoder that uses the encoder's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2, bias=False), nn.Linear(3, 2)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.head(torch.tanh(self.encoder(x))))


class Checkpointed(nn.Module):
    """A block that runs again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        return self.c(checkpoint(self._block, hidden, use_reentrant=self.use_reentrant))

    def _block(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.b(hidden)) * hidden


ROWS = {
    "weight norm, hook": Model(
        build=lambda: _weight_norm(False),
        data=images,
        loss="cross_entropy",
        sample=rows_of,
    ),
    "weight norm, parametrization": Model(
        build=lambda: _weight_norm(True),
        data=images,
        loss="cross_entropy",
        sample=rows_of,
    ),
    "spectral norm, hook": Model(
        build=lambda: _spectral_norm(False), data=regression, sample=rows_of
    ),
    "spectral norm, parametrization": Model(
        build=lambda: _spectral_norm(True), data=regression, sample=rows_of
    ),
    "shared by alias": Model(build=Alias, data=regression, sample=rows_of),
    "shared by tying": Model(build=Tied, data=regression, sample=rows_of),
    "checkpointed": Model(
        build=lambda: Checkpointed(False), data=regression, sample=rows_of
    ),
    "checkpointed, reentrant": Model(
        build=lambda: Checkpointed(True), data=regression, sample=rows_of, answer=EITHER
    ),
}
