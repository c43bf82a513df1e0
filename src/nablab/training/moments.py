"""Where in a training a step is taken, and the randomness of that step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Gives a step's random numbers."""

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Draw independent standard normal values."""
        ...

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Draw independent values from 0 to 1, 1 excluded."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """The generator that they come from."""
        ...


@dataclass(frozen=True)
class Moment:
    """What a learner is told of the step that it takes.

    The random numbers are a function of the trial's seed and the step, so a resumed
    training draws what an undisturbed one draws, and a trial draws the same whoever
    shares its batch.

    Attributes:
        step: Steps taken before this one.
        steps: The budget.
        rate: What the schedule multiplies the learning rates with.
        hyper: This trial's numbers by name, such as ``{"beta": 4.0}``; tensors without
            axes where several trials are computed at once.
        source: Where the random numbers come from.
    """

    step: int
    steps: int
    rate: float = 1.0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    source: Source = field(default_factory=lambda: Drawn(torch.Generator()))

    def normal(self, *shape: int) -> Tensor:
        """Draw independent standard normal values, float32."""
        return self.source.normal(shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw independent values from 0 to 1, 1 excluded, float32.

        A value lies below p with probability p.
        """
        return self.source.uniform(shape)

    @property
    def generator(self) -> torch.Generator:
        """For what `normal` and `uniform` cannot draw; on the CPU.

        A learner that uses it trains one trial after the other: see
        `nablab.training.Minimize`.
        """
        return self.source.generator


class Drawn:
    """Draws from a generator on the CPU, for a device.

    Args:
        generator: The generator; it moves on.
        device: Where the numbers are needed.
        seed: What the generator starts from when it is first asked; None to go on from
            where it stands. Most steps draw nothing.
    """

    def __init__(
        self,
        generator: torch.Generator,
        device: torch.device | None = None,
        seed: int | None = None,
    ) -> None:
        self._generator = generator
        self._device = device
        self._seed = seed

    @property
    def generator(self) -> torch.Generator:
        """See `Source.generator`."""
        if self._seed is not None:
            self._generator.manual_seed(self._seed)
            self._seed = None
        return self._generator

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """See `Source.normal`."""
        return torch.randn(shape, generator=self.generator).to(self._device)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`."""
        return torch.rand(shape, generator=self.generator).to(self._device)
