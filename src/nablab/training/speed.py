"""How fast a training would be: a few steps of it, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nablab.training.inputs import Augment, Precision, Prepare
from nablab.training.optimizers import Adam, Specification
from nablab.training.schedules import Constant, Schedule
from nablab.training.task import Pair, Task, make_task


@dataclass(frozen=True)
class Speed:
    """What `measure_speed` found.

    Attributes:
        seconds_per_step: For one step of all replicas together.
        seconds_per_evaluation: For one evaluation of all replicas on the training and held-out sets.
        setup_seconds: For building the replicas and the engine, and the first step.
        engine: The engine that would train.
    """

    seconds_per_step: float
    seconds_per_evaluation: float
    setup_seconds: float
    engine: str


def measure_speed(
    build: Callable[[], nn.Module],
    data: Pair,
    *,
    seeds: Sequence[int],
    steps: int,
    loss: Any = "mse",
    optimizer: Specification = Adam(),  # noqa: B008 - immutable
    schedule: Schedule = Constant(),  # noqa: B008 - immutable
    batch_size: int | None = None,
    own_labels: bool = False,
    prepare: Prepare | None = None,
    augment: Augment | None = None,
    precision: Precision = "float32",
    train_samples: int | None = None,
    held_out: Mapping[str, Pair] | None = None,
    replicas: str = "auto",
    device: str = "cpu",
    minimum_seconds: float = 0.2,
    **other_options: Any,
) -> Speed:
    """Take a few steps with the options of `fit` and say how long one takes.

    Probes and checkpoints are not measured; ``other_options`` are options of `fit` that
    do not matter here.

    Raises:
        UsageError: As `fit`.
    """
    began = time.perf_counter()
    task = make_task(
        build,
        data,
        seeds=seeds,
        steps=steps,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        batch_size=batch_size,
        own_labels=own_labels,
        prepare=prepare,
        augment=augment,
        precision=precision,
        train_samples=train_samples,
        held_out=held_out,
        eval_every=None,
        stop=(),
        converged=None,
        replicas=replicas,
        device=device,
    )
    return _measure(task, began, minimum_seconds)


def _measure(task: Task, began: float, minimum_seconds: float) -> Speed:
    engine, batches, rates = task.engine(lambda note: None), task.batches(), task.rates()

    def advance(start: int, end: int) -> None:
        for first, last, indices in batches.between(start, end):
            engine.advance(rates.take(range(first, last), mode="wrap"), indices)

    advance(0, 1)
    setup_seconds = time.perf_counter() - began
    taken, count, began = 1, 1, time.perf_counter()
    while (seconds := time.perf_counter() - began) < minimum_seconds:
        advance(taken, taken + count)
        taken, count = taken + count, count * 2
    began = time.perf_counter()
    task.evaluate(engine)
    evaluation = time.perf_counter() - began
    return Speed(seconds / (taken - 1), evaluation, setup_seconds, engine.name)
