"""Losses of a model and a batch: noise, differential equations, several outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.instruments import Closure
from tests.instruments.battery.case import EITHER, Model, rows_of


class Autoencoder(nn.Module):
    """A variational autoencoder with one latent number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(1, 3)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        latent = mean + noise * (log_variance / 2).exp()
        return self.decoder(torch.tanh(latent)), mean, log_variance


def evidence_bound(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The negative evidence lower bound; the latent noise comes with the batch."""
    output, mean, log_variance = model(batch["x"], batch["noise"])
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return ((output - batch["x"]).square().sum(1) + divergence).mean()


def seeded_evidence_bound(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same, with noise drawn from a generator of its own."""
    noise = batch["drawn"] if "drawn" in batch else _seeded_noise(batch)
    return evidence_bound(model, {**batch, "noise": noise})


def _seeded_noise(batch: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(batch["x"]), 1, generator=generator).to(batch["x"])


def growth() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def differential_equation(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Solve u' = -u, u(0) = 1, with a derivative inside the forward pass."""
    times = batch[0].detach().requires_grad_()
    with torch.enable_grad():
        u = model(times)
        (slope,) = torch.autograd.grad(u.sum(), times, create_graph=True)
        start = model(torch.zeros_like(times[:1]))
    return (slope + u).square().mean() + (start - 1).square().mean()


class TwoHeads(nn.Module):
    """Returns a mapping of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.size = nn.Linear(2, 1)
        self.kind = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"size": self.size(hidden), "kind": self.kind(hidden)}


def both_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    outputs = model(batch["x"])
    return F.mse_loss(outputs["size"], batch["size"]) + F.cross_entropy(
        outputs["kind"], batch["kind"]
    )


def _examples() -> dict[str, Any]:
    return {"x": torch.randn(6, 3), "noise": torch.randn(6, 1)}


_OUTPUTS = {"input_sensitivity": EITHER}

ROWS = {
    "variational autoencoder": Model(
        build=Autoencoder,
        data=_examples,
        loss=Closure(evidence_bound),
        sample=rows_of,
        answers=_OUTPUTS,
    ),
    "variational autoencoder, seeded": Model(
        build=Autoencoder,
        data=_examples,
        loss=Closure(seeded_evidence_bound),
        sample=lambda batch, i: rows_of({**batch, "drawn": _seeded_noise(batch)}, i),
        answers={**_OUTPUTS, "gradient_norm per sample": EITHER},
    ),
    "differential equation": Model(
        build=growth,
        data=lambda: [(torch.linspace(0, 1, 5)[:, None],)],
        loss=Closure(differential_equation),
        sample=rows_of,
        answers={"input_sensitivity": EITHER},
        matchable=True,
    ),
    "mapping of outputs": Model(
        build=TwoHeads,
        data=lambda: {
            "x": torch.randn(5, 3),
            "size": torch.randn(5, 1),
            "kind": torch.arange(5) % 2,
        },
        loss=Closure(both_losses),
        sample=rows_of,
        answers=_OUTPUTS,
    ),
}
