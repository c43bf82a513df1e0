"""A variational autoencoder on the digits, with a weight of the divergence for each
trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nablab import data
from nablab.training import Arrays, Minimize, Moment

CODE = 2


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2 * CODE)
        )
        self.decoder = nn.Sequential(nn.Linear(CODE, 32), nn.Tanh(), nn.Linear(32, 64))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encode(x)[0])
        return decoded


def negative_elbo(net: Any, batch: Any, moment: Moment) -> Mapping[str, Tensor]:
    """Nats per image; the divergence counts ``beta`` times."""
    x = (moment.uniform(*batch["x"].shape) < batch["x"]).float()  # dynamic binarization
    mean, log_variance = net.encode(x)
    code = mean + (log_variance / 2).exp() * moment.normal(*mean.shape)
    lost = (
        binary_cross_entropy_with_logits(net.decoder(code), x, reduction="none")
        .sum(1)
        .mean()
    )
    divergence = (
        0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    )
    return {
        "loss": lost + moment.hyper["beta"] * divergence,
        "lost": lost,
        "divergence": divergence,
    }


def digits(samples: int) -> Arrays:
    """Digits as shares of ink, (samples, 64)."""
    images = data.load("digits", size=8, channels=1).images[:samples]
    return Arrays(x=images.flatten(1).float() / 255)


def learner() -> Minimize:
    return Minimize(Vae, negative_elbo)


def with_dropout() -> Minimize:
    """The same with randomness of PyTorch's own: one trial after the other."""

    def build() -> nn.Module:
        net = Vae()
        net.encoder.insert(1, nn.Dropout(0.1))
        return net

    return Minimize(build, negative_elbo)
