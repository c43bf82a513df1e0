"""A training cut to a few steps, for a dry run, and made to look like the whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.training import Constant, PerReplicaTargets, PerTrial, Probe, Recipe, Subset
from nablab.training.result import At, Training

SAMPLES = 256  # enough for the code after a training to have something to work on
# One sample in this many is predicted: a call costs something however few they are.
PREDICTED = 8


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe for a few steps and small evaluations.

    A schedule is made for all the steps, and a warm-up may be longer than these few.
    """
    train_samples = recipe.train_samples
    return dataclasses.replace(
        recipe,
        steps=steps,
        epochs=None,
        schedule=Constant(),
        held_out={name: _few(data) for name, data in recipe.held_out.items()},
        train_samples=SAMPLES if train_samples is None else min(SAMPLES, train_samples),
    )


def _few(data: Any) -> Any:
    """Return the first of some held-out samples."""
    if isinstance(data, PerTrial):
        return PerTrial(tuple(map(_few, data.sets)))
    if isinstance(data, tuple):
        x, y = data
        few = (
            PerReplicaTargets(y.values[:, :SAMPLES])
            if isinstance(y, PerReplicaTargets)
            else y[:SAMPLES]
        )
        return x[:SAMPLES], few
    if isinstance(data, Mapping):
        return {name: tensor[:SAMPLES] for name, tensor in data.items()}
    return Subset(data, torch.arange(min(SAMPLES, len(data))))


@contextmanager
def more_often(probes: Sequence[Probe], times: int) -> Iterator[None]:
    """Let probes look more often inside.

    The code after a short training needs as many points from it as from a whole one.

    Args:
        probes: What looks at the training.
        times: How many times as often they look.
    """
    usual = {probe: probe.every for probe in probes if "every" in vars(probe)}
    for probe, every in usual.items():
        probe.every = max(1, every // times)
    try:
        yield
    finally:
        for probe, every in usual.items():
            probe.every = every


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShortTraining(Training):
    """A short training with losses as long as the whole one's.

    Its predictions are made for a part of the samples, repeated for the others; what
    those would have cost is told.

    Attributes:
        on_missing: Told the seconds that were left out.
    """

    on_missing: Callable[[float], None] = dataclasses.field(repr=False)

    def predict(self, x: Tensor, *, at: At = "final") -> Tensor:
        """See `nablab.training.Training.predict`."""
        few = max(SAMPLES, len(x) // PREDICTED)
        if len(x) <= few:
            return super().predict(x, at=at)
        begin = time.perf_counter()
        outputs = super().predict(x[:few], at=at)
        self.on_missing((len(x) / few - 1) * (time.perf_counter() - begin))
        return outputs[:, torch.arange(len(x)) % few]


def stretched(
    result: Training, steps: int, on_missing: Callable[[float], None]
) -> ShortTraining:
    """Make a short training as long as the whole one.

    So the code after it gets the shapes that it expects.
    """
    fields = {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result)
    }
    missing = steps - result.train_loss.shape[1]
    fields["train_loss"] = np.pad(
        result.train_loss, ((0, 0), (0, missing)), mode="edge"
    )
    return ShortTraining(**fields, on_missing=on_missing)
