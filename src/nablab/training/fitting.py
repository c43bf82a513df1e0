"""The calls that train: `fit` a network, or `train` any learner.

They check the options and hand the task to the one `Loop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from nablab.training.arguments import check_seeds
from nablab.training.checkpoints import Checkpoint
from nablab.training.engine import Loss
from nablab.training.inputs import Augment, Precision, Prepare
from nablab.training.learners import Learner, Supervised
from nablab.training.learning import make_learner_task
from nablab.training.loop import Loop, Progress, TrainingTask
from nablab.training.optimizers import Adam, Specification
from nablab.training.probes import Probe
from nablab.training.recipe import Recipe
from nablab.training.result import Training
from nablab.training.schedules import Constant, Schedule
from nablab.training.stopping import Rule
from nablab.training.task import Pair, make_task

_logger = logging.getLogger("nablab.training")


def fit(
    build: Callable[[], nn.Module],
    data: Pair,
    *,
    seeds: Sequence[int],
    starts: Sequence[int] | None = None,
    steps: int,
    loss: Loss = "mse",
    optimizer: Specification = Adam(),  # noqa: B008 - immutable
    schedule: Schedule = Constant(),  # noqa: B008 - immutable
    batch_size: int | None = None,
    per_replica_targets: bool = False,
    prepare: Prepare | None = None,
    augment: Augment | None = None,
    precision: Precision = "float32",
    train_samples: int | None = None,
    held_out: Mapping[str, Pair] | None = None,
    eval_every: int | None = None,
    stop: Sequence[Rule] = (),
    converged: Rule | None = None,
    probes: Sequence[Probe] = (),
    replicas: str = "auto",
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Training:
    """Train one network per seed, all of one architecture, side by side.

    Args:
        build: Makes one untrained network; called once per seed, as if after
            ``torch.manual_seed(seed)``.
        data: Inputs (N, ...) and targets (N, ...), tensors or arrays.
        seeds: One per replica, for the weights, the order of the samples and dropout.
        starts: Seeds of the first weights where they are not those of ``seeds``, one
            per replica; equal ones give equal first weights.
        steps: Optimizer steps, at most.
        loss: ``"mse"``, ``"cross_entropy"`` (integer labels) or a function (output,
            target) -> scalar tensor.
        optimizer: A specification such as `Adam`; each number may be a sequence, one
            per replica.
        schedule: Multiplies the learning rate.
        batch_size: Samples per step, drawn without replacement, reshuffled each epoch,
            the last batch of an epoch smaller; None for all samples at each step.
        per_replica_targets: The targets are (K, N, ...), one set per replica.
        prepare: Makes the network's input of a batch of stored samples, such as
            `nablab.data.Normalize`; applied whenever the network runs, so that the data
            may stay in fewer bytes.
        augment: (stored samples, generator) to stored samples, for training batches,
            before ``prepare``.
        precision: ``"float32"``; ``"bfloat16"`` for products in half the bytes
            (`torch.autocast`); or ``"auto"``: bfloat16 where the hardware multiplies it
            fast.
        train_samples: Evaluate on this number of training samples, the first ones;
            None for all.
        held_out: Further data by name, (inputs, targets) each, evaluated as
            ``"<name>_loss"`` and, with cross-entropy, ``"<name>_accuracy"``; the
            targets may be `PerReplicaTargets`. With cross-entropy a label of -100 is
            counted nowhere.
        eval_every: Steps between evaluations; None for about 100 evaluations. The
            weights before training and at the end are evaluated too.
        stop: Rules that end a replica at an evaluation.
        converged: A rule that only flags, such as `Plateau`.
        probes: Look at training while it runs.
        replicas: ``"auto"``, ``"batched"`` (as one batch or not at all) or
            ``"sequential"``.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        checkpoint: Where to save the state; an interrupted training goes on from there,
            and ends with the same bytes on the CPU as an uninterrupted one.
        on_progress: Called at most every 0.2 s or so.
        should_stop: Asked about every 0.2 s; once true, the state is saved and
            `Interrupted` raised.
        on_note: Told each automatic choice and its reason; logged if not given.

    Returns:
        Curves, stop reasons and weights of all replicas.

    Raises:
        UsageError: An option that cannot work, found before training.
        Interrupted: ``should_stop`` said so.
    """
    recipe = Recipe(
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        batch_size=batch_size,
        per_replica_targets=per_replica_targets,
        prepare=prepare,
        augment=augment,
        precision=precision,
        train_samples=train_samples,
        held_out=held_out or {},
        eval_every=eval_every,
        stop=stop,
        converged=converged,
        probes=probes,
    )
    return train(
        Supervised(build, loss),
        data,
        recipe,
        seeds=seeds,
        starts=starts,
        replicas=replicas,
        device=device,
        checkpoint=checkpoint,
        on_progress=on_progress,
        should_stop=should_stop,
        on_note=on_note,
    )


def train(
    learner: Learner | Supervised,
    data: Any,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    starts: Sequence[int] | None = None,
    replicas: str = "auto",
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Training:
    """Train a learner, one trial per seed, side by side where that is possible.

    Args:
        learner: `Supervised`, `Minimize`, or a `Learner` of one's own with one network
            or several.
        data: For `Supervised` inputs (N, ...) and targets (N, ...); else a `Dataset`,
            or tensors by name.
        recipe: How.
        seeds: One per trial, for the weights, the order of the samples and all that a
            step draws.
        starts: Seeds of the first weights where they are not those of ``seeds``, one
            per trial; equal ones give equal first weights.
        replicas: ``"auto"``, ``"batched"`` (as one batch or not at all) or
            ``"sequential"``.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        checkpoint: Where to save the state; an interrupted training goes on from there,
            and ends with the same bytes on the CPU as an uninterrupted one.
        on_progress: Called at most every 0.2 s or so.
        should_stop: Asked about every 0.2 s; once true, the state is saved and
            `Interrupted` raised.
        on_note: Told each automatic choice and its reason; logged if not given.

    Returns:
        Curves, stop reasons and weights of all trials; one `Outcome` each.

    Raises:
        UsageError: An option that cannot work, found before training.
        Interrupted: ``should_stop`` said so.
    """
    task = task_of(
        learner,
        data,
        recipe,
        seeds=seeds,
        starts=starts,
        replicas=replicas,
        device=device,
    )
    loop = Loop(task, tuple(recipe.probes), checkpoint, on_note or _logger.info)
    return loop.train(on_progress, should_stop)


def task_of(
    learner: Learner | Supervised,
    data: Any,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    starts: Sequence[int] | None,
    replicas: str,
    device: str,
) -> TrainingTask:
    """Check what is to be trained; see `train`.

    Raises:
        UsageError: A value that cannot work, with the remedy.
    """
    check_seeds(seeds, starts)
    make: Any = make_task if isinstance(learner, Supervised) else make_learner_task
    task: TrainingTask = make(
        learner,
        data,
        recipe,
        seeds=seeds,
        starts=seeds if starts is None else starts,
        replicas=replicas,
        device=device,
    )
    return task
