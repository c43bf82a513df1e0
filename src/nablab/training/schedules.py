"""Learning-rate schedules: what multiplies the learning rate at each step.

Where `torch.optim.lr_scheduler` has a namesake, step t here has the rate that it gives
after t calls of ``scheduler.step()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nablab.errors import UsageError


class Schedule(Protocol):
    """Anything with `multipliers`.

    A frozen dataclass, so that checkpoints can compare it.
    """

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return what multiplies the learning rate at each of ``steps`` steps.

        float64 (steps,).
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The learning rate as it is."""

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return ones."""
        return np.ones(steps)


@dataclass(frozen=True)
class StepDecay:
    """Multiply by ``factor`` every ``every`` steps (`StepLR`)."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require_positive("StepDecay", "every", self.every)

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return ``factor ** (step // every)``."""
        return np.asarray(
            self.factor ** (np.arange(steps) // self.every), dtype=np.float64
        )


@dataclass(frozen=True)
class Exponential:
    """Multiply by ``factor`` at every step (`ExponentialLR`)."""

    factor: float

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return ``factor ** step``."""
        return np.asarray(
            self.factor ** np.arange(steps, dtype=np.float64), dtype=np.float64
        )


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``, after an optional linear warm-up.

    PyTorch's is `torch.optim.lr_scheduler.LinearLR`.
    """

    start: float = 1.0
    end: float = 0.0
    warmup_steps: int = 0

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return ``start + (end - start) * t / T``.

        T is the number of steps after the warm-up.
        """
        left = _after_warmup(steps, self.warmup_steps)
        line = self.start + (self.end - self.start) * np.arange(left) / left
        return _warmed_up(line, self.warmup_steps)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to ``minimum``, after an optional linear warm-up.

    PyTorch's is `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Loshchilov and Hutter, SGDR, 2017, without restarts.
    """

    minimum: float = 0.0
    warmup_steps: int = 0

    def multipliers(self, steps: int) -> npt.NDArray[np.float64]:
        """Return ``minimum + (1 - minimum) * (1 + cos(pi t / T)) / 2``.

        T is the number of steps after the warm-up.
        """
        left = _after_warmup(steps, self.warmup_steps)
        wave = (1 + np.cos(np.pi * np.arange(left) / left)) / 2
        return _warmed_up(self.minimum + (1 - self.minimum) * wave, self.warmup_steps)


def _after_warmup(steps: int, warmup_steps: int) -> int:
    if not 0 <= warmup_steps < steps:
        raise UsageError(
            f"A warm-up of {warmup_steps} steps does not fit into {steps} steps of "
            f"training. Choose warmup_steps from 0 to {steps - 1}."
        )
    return steps - warmup_steps


def _warmed_up(
    multipliers: npt.NDArray[np.float64], warmup_steps: int
) -> npt.NDArray[np.float64]:
    """Put a line from ``1 / warmup_steps`` up to 1 before the other multipliers.

    The line is multiplied by the first of them.
    """
    if not warmup_steps:
        return multipliers
    start = 1 / warmup_steps
    line = start + (1 - start) * np.arange(warmup_steps) / warmup_steps
    return np.concatenate([line * multipliers[0], multipliers])


def _require_positive(owner: str, name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{owner}: {name} must be at least 1, got {value}.")
