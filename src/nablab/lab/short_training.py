"""A training cut to a few steps, for a dry run, and made to look like the whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.training import (
    Constant,
    Context,
    PerReplicaTargets,
    PerTrial,
    Probe,
    Recipe,
    Subset,
)
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


@dataclasses.dataclass
class Looks:
    """What probes cost.

    Attributes:
        seconds: The estimated time of all their looks at the whole training.
    """

    seconds: float = 0.0


@contextmanager
def more_often(probes: Sequence[Probe], *, short: int, whole: int) -> Iterator[Looks]:
    """Let probes look more often inside, and measure how long that takes.

    The code after a short training needs as many points from it as from a whole one,
    where a probe does not say that fewer are enough.

    Args:
        probes: What looks at the training.
        short: The steps of the short training.
        whole: The steps of the whole one.

    Yields:
        What the looks cost, known at the end.
    """
    looks = Looks()
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(_looking(probe, short, whole, looks))
        yield looks


@contextmanager
def _looking(probe: Probe, short: int, whole: int, looks: Looks) -> Iterator[None]:
    own = getattr(probe, "__dict__", {})  # of one with slots: none
    usual, by_class = probe.every, "every" not in own
    wanted = min(short, max(1, whole // usual), probe.enough_looks or short)
    spent, look = 0.0, probe.on_step_end

    def timed(context: Context) -> None:
        nonlocal spent
        begin = time.perf_counter()
        look(context)
        spent += time.perf_counter() - begin

    # A frozen one keeps its pace and is not timed.
    with suppress(AttributeError):
        probe.every = short // wanted
        own["on_step_end"] = timed
    every = probe.every
    try:
        yield
    finally:
        own.pop("on_step_end", None)
        with suppress(AttributeError):
            if by_class and "every" in own:
                del own["every"]  # its class says it again
            else:
                probe.every = usual
    taken = short // every
    looks.seconds += spent / taken * (whole // usual) if taken else 0.0


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
