"""How fast a training would be: a few steps of it, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nablab.training.fitting import task_of
from nablab.training.learners import Learner, Supervised
from nablab.training.loop import TrainingTask
from nablab.training.recipe import Recipe

SHORT_SECONDS = 0.1
STEPS_SHARE = 20  # of the whole training: one step in so many is enough


@dataclass(frozen=True)
class Speed:
    """What `measure_speed` found.

    Attributes:
        seconds_per_step: For one step of all replicas together.
        seconds_per_evaluation: For one evaluation of all replicas on the training and
            held-out sets.
        setup_seconds: For building the replicas and the engine, and the first step.
        engine: The engine that would train.
        steps: The steps of the whole training, at most.
        eval_every: Steps between evaluations.
    """

    seconds_per_step: float
    seconds_per_evaluation: float
    setup_seconds: float
    engine: str
    steps: int
    eval_every: int


def measure_speed(
    learner: Learner | Supervised,
    data: Any,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    starts: Sequence[int] | None = None,
    replicas: str = "auto",
    device: str = "cpu",
    minimum_seconds: float = 0.2,
) -> Speed:
    """Take a few steps of `train` and say how long one takes.

    Probes and checkpoints are not measured.

    Args:
        learner: See `train`.
        data: See `train`.
        recipe: See `train`.
        seeds: See `train`.
        starts: See `train`.
        replicas: See `train`.
        device: See `train`.
        minimum_seconds: Steps are taken for this time, or a twentieth of all steps if
            these take less.

    Raises:
        UsageError: As `train`.
    """
    began = time.perf_counter()
    task = task_of(
        learner,
        data,
        recipe,
        seeds=seeds,
        starts=starts,
        replicas=replicas,
        device=device,
    )
    return _measure(task, began, minimum_seconds)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _measure(task: TrainingTask, began: float, minimum_seconds: float) -> Speed:
    engine, batches, rates = (
        task.engine(lambda note: None),
        task.batches(),
        task.rates(),
    )

    def advance(start: int, end: int) -> None:
        for first, last, indices in batches.between(start, end):
            engine.advance(rates.take(range(first, last), mode="wrap"), indices)

    advance(0, 1)
    setup_seconds = time.perf_counter() - began
    taken, count, began = 1, 1, time.perf_counter()
    enough = max(2, task.steps // STEPS_SHARE)
    while (seconds := time.perf_counter() - began) < minimum_seconds and (
        taken <= enough
    ):
        advance(taken, taken + count)
        taken, count = taken + count, count * 2
    evaluation = _seconds(lambda: task.evaluate(engine))
    if evaluation < SHORT_SECONDS:  # the first one warms up, and many may follow
        evaluation = min(_seconds(lambda: task.evaluate(engine)) for _ in range(2))
    return Speed(
        seconds / (taken - 1),
        evaluation,
        setup_seconds,
        engine.name,
        task.steps,
        task.eval_every,
    )
