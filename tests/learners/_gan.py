"""A Wasserstein GAN with a gradient penalty on a ring of eight Gaussians: two networks,
two optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from nablab.training import Learner, Moment, State

NOISE = 8


def ring(samples: int, seed: int) -> Tensor:
    """Points of eight Gaussians of deviation 0.05 on the unit circle, (samples, 2)."""
    draw = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (samples,), generator=draw) * (2 * pi / 8)
    centers = torch.stack([angle.cos(), angle.sin()], dim=1)
    return centers + 0.05 * torch.randn(samples, 2, generator=draw)


def dense(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


@dataclass(frozen=True)
class RingGan(Learner):
    """Several critic steps for each of the generator."""

    critic_steps: int = 3
    penalty: float = 0.1

    @property
    def batches_per_step(self) -> int:  # type: ignore[override]
        return self.critic_steps

    def start(self, optimizer: Any) -> State:
        net = nn.ModuleDict({"generator": dense(NOISE, 2), "critic": dense(2, 1)})
        return State(
            net, {name: optimizer(part.parameters()) for name, part in net.items()}
        )

    def step(
        self, state: State, batches: tuple[Any, ...], moment: Moment
    ) -> Mapping[str, Tensor]:
        generator, critic = state.net["generator"], state.net["critic"]
        for batch in batches:
            real = batch["x"]
            fake = generator(moment.normal(len(real), NOISE)).detach()
            critic_loss = (
                critic(fake).mean()
                - critic(real).mean()
                + self._penalty(critic, real, fake, moment)
            )
            update(state.optimizers["critic"], critic_loss)
        generator_loss = -critic(generator(moment.normal(len(real), NOISE))).mean()
        update(state.optimizers["generator"], generator_loss)
        return {"critic": critic_loss, "generator": generator_loss}

    def _penalty(
        self, critic: Any, real: Tensor, fake: Tensor, moment: Moment
    ) -> Tensor:
        share = moment.uniform(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[
            0
        ]
        return self.penalty * (slope.norm(dim=1) - 1).square().mean()

    def outputs(self, state: State, batch: Any, moment: Moment) -> Any:
        generator: Any = state.net["generator"]
        return generator(moment.normal(len(batch["x"]), NOISE))


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class Modes:
    """How many of the eight Gaussians have a sample within four deviations."""

    higher_is_better: bool = True

    def new(self) -> Any:
        return _Modes()


class _Modes:
    def __init__(self) -> None:
        self.found: set[int] = set()

    def add(self, outputs: Tensor, batch: Any) -> None:
        angles = torch.arange(8) * (2 * pi / 8)
        centers = torch.stack([angles.cos(), angles.sin()], dim=1)
        distance, nearest = torch.cdist(outputs, centers).min(dim=1)
        self.found |= set(nearest[distance < 0.2].tolist())

    def value(self) -> float:
        return float(len(self.found))
