"""Probes: an experiment's code that looks at training, or ends a replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nablab.training.engine import Engine, FloatArray


@dataclass(frozen=True)
class Context:
    """What a probe sees.

    Attributes:
        step: Optimizer steps taken.
        steps: The budget.
        epoch: Epochs completed.
        seeds: One per replica.
        engine: Gives `predict` and `parameters` at the present weights; a probe must
            not train with it.
        losses: float64 (K, step), the training loss before every step so far; NaN after
            a replica ended.
        stop: ``stop(replica)`` ends one replica here; its stop reason is then
            ``"probe"``.
    """

    step: int
    steps: int
    epoch: int
    seeds: tuple[int, ...]
    engine: Engine
    losses: FloatArray
    stop: Callable[[int], None]


class Probe:
    """Override what you need; every method does nothing by default.

    Attributes:
        every: `on_step_end` is called when the number of steps taken is a multiple of
            it.
        enough_looks: How many looks of a dry run are enough for the code after it, and
            to know what a look costs. None for as many as there are in the training.
    """

    every: int = 1
    enough_looks: ClassVar[int | None] = None

    def on_train_begin(self, context: Context) -> None:
        """Run before the first step; after a resume, before the next one."""

    def on_step_end(self, context: Context) -> None:
        """Run after every ``every`` steps."""

    def on_epoch_end(self, context: Context) -> None:
        """Run after each pass over the training set.

        A full batch is an epoch of one step.
        """

    def on_train_end(self, context: Context) -> None:
        """Run after the last step, before early stopping restores any weights."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep.

        With it a resumed training ends with the same findings.
        """
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""


def overrides(probe: Probe, method: str) -> bool:
    """Tell whether the probe's class defines the method itself."""
    return getattr(type(probe), method) is not getattr(Probe, method)
