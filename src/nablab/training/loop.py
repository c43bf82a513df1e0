"""The one training loop.

It drives every engine from event to event and keeps what they leave behind.

An event is an evaluation, a probe's turn, or about 0.2 s of work (to report, save or
stop). Between two events the engine runs a chunk of steps on its own. Where the chunks
are cut never changes a number.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from nablab.errors import Interrupted, UsageError
from nablab.training import checkpoints
from nablab.training.arguments import check_seeds
from nablab.training.checkpoints import Checkpoint, UnusableCheckpoint, prefixed, under
from nablab.training.engine import Engine, FloatArray, Loss
from nablab.training.history import Goal, History
from nablab.training.inputs import Augment, Precision, Prepare
from nablab.training.learners import Learner, Supervised
from nablab.training.learning import make_learner_task
from nablab.training.optimizers import Adam, Specification
from nablab.training.probes import Context, Probe, overrides
from nablab.training.recipe import Recipe
from nablab.training.result import Training
from nablab.training.schedules import Constant, Schedule
from nablab.training.stopping import Rule, check_metrics
from nablab.training.task import Pair, make_task

# A person feels a reaction within 0.2 s as prompt; shorter chunks would only cost
# calls.
SECONDS_PER_CHUNK = 0.2
# A first chunk may be slow for reasons of its own, so estimates of the speed are
# trusted gradually.
CHUNK_GROWTH = 8

_logger = logging.getLogger("nablab.training")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Steps taken.
        steps: The budget.
        replica_steps_per_second: Steps per second times the replicas that still train.
        train_loss: The median over these replicas of the latest loss; NaN if none is
            left.
    """

    step: int
    steps: int
    replica_steps_per_second: float
    train_loss: float


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
            targets may be `OwnLabels`. With cross-entropy a label of -100 is counted
            nowhere.
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
    run = _Run(task, tuple(recipe.probes), checkpoint, on_note or _logger.info)
    return run.train(on_progress, should_stop)


class TrainingTask(Protocol):
    """What the loop needs to know.

    Checked options and data, the engine and the evaluations.
    """

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per trial."""
        ...

    @property
    def starts(self) -> tuple[int, ...]:
        """The seeds of the first weights, one per trial."""
        ...

    @property
    def steps(self) -> int:
        """The budget."""
        ...

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        ...

    @property
    def stop(self) -> tuple[Rule, ...]:
        """Rules that end a trial."""
        ...

    @property
    def converged(self) -> Rule | None:
        """The rule that flags a trial."""
        ...

    @property
    def goal(self) -> Goal:
        """What counts as best."""
        ...

    @property
    def build(self) -> Callable[[], nn.Module]:
        """Makes one fresh network."""
        ...

    def prepare(self, samples: Tensor) -> Tensor:
        """Return the network's input of stored samples."""
        ...

    def rates(self) -> FloatArray:
        """Return what multiplies the learning rate at each step, float64 (steps,)."""
        ...

    def batches(self) -> Any:
        """Return what cuts steps into runs of batches; see `Batches`."""
        ...

    def engine(
        self, on_note: Callable[[str], None], *, name: str | None = None
    ) -> Engine:
        """Choose the engine that trains; a given ``name`` allows only that one."""
        ...

    def evaluate(self, engine: Engine) -> dict[str, FloatArray]:
        """Return the evaluated curves' values (K,) at the present weights."""
        ...

    def fingerprint(self, engine: Engine) -> dict[str, Any]:
        """Return everything on which the course of training depends, as JSON types."""
        ...


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


class _Run:
    """One training: engine, history and probes, moved together from event to event."""

    def __init__(
        self,
        task: TrainingTask,
        probes: tuple[Probe, ...],
        checkpoint: Checkpoint | None,
        on_note: Callable[[str], None],
    ) -> None:
        self._task, self._probes, self._checkpoint, self._on_note = (
            task,
            probes,
            checkpoint,
            on_note,
        )
        self._rates = task.rates()
        self._batches = task.batches()
        self._step_probes = [
            probe for probe in probes if overrides(probe, "on_step_end")
        ]
        self._epoch_probes = [
            probe for probe in probes if overrides(probe, "on_epoch_end")
        ]
        self._engine = task.engine(on_note)
        self._history = self._fresh_history()
        self._fingerprint = task.fingerprint(self._engine) if checkpoint else {}
        self._chunk = 1
        # of all replicas, those that ended included
        self._latest: dict[str, FloatArray] = {}
        self._latest_step = -1
        if checkpoint and Path(checkpoint.path).exists():
            self._resume(checkpoint)

    def _fresh_history(self) -> History:
        return History(
            len(self._task.seeds),
            self._task.steps,
            self._task.stop,
            self._task.converged,
            self._task.goal,
        )

    def train(
        self,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Training:
        for probe in self._probes:
            probe.on_train_begin(self._context())
        if not self._history.evaluation_steps:
            self._evaluate()
        saved = time.monotonic()
        while self._history.step < self._task.steps and self._history.active.any():
            speed = self._advance()
            self._events()
            if on_progress:
                on_progress(self._progress(speed))
            if should_stop and should_stop():
                self._interrupt()
            if (
                self._checkpoint
                and time.monotonic() - saved >= self._checkpoint.every_seconds
            ):
                self._save(self._checkpoint)
                saved = time.monotonic()
        for probe in self._probes:
            probe.on_train_end(self._context())
        return self._result()

    def _advance(self) -> float:
        """Train up to the next event; the speed in replica-steps per second."""
        history, began = self._history, time.perf_counter()
        start, replicas = history.step, int(history.active.sum())
        for first, last, indices in self._batches.between(start, self._next_event()):
            losses = self._engine.advance(self._rates[first:last], indices)
            history.add_losses(losses, self._engine.measures)
        seconds = max(time.perf_counter() - began, 1e-9)
        history.seconds += seconds
        taken = history.step - start
        wanted = int(SECONDS_PER_CHUNK * taken / seconds)
        self._chunk = min(max(wanted, 1), self._chunk * CHUNK_GROWTH)
        return taken * replicas / seconds

    def _next_event(self) -> int:
        every = [self._task.eval_every, *(probe.every for probe in self._step_probes)]
        if self._epoch_probes:
            every.append(self._batches.steps_per_epoch)
        step = self._history.step
        return min(
            self._task.steps, step + self._chunk, *((step // n + 1) * n for n in every)
        )

    def _events(self) -> None:
        """Do all that is due at the present step, in an order that never changes."""
        step = self._history.step
        for probe in self._step_probes:
            if step % probe.every == 0:
                probe.on_step_end(self._context())
        if step % self._batches.steps_per_epoch == 0:
            for probe in self._epoch_probes:
                probe.on_epoch_end(self._context())
        if step % self._task.eval_every == 0 or step == self._task.steps:
            self._evaluate()

    def _evaluate(self) -> None:
        self._latest, self._latest_step = (
            self._task.evaluate(self._engine),
            self._history.step,
        )
        # what a learner evaluates is known only now
        if not self._history.evaluation_steps:
            check_metrics(self._rules(), list(self._latest))
            self._task.goal.check(list(self._latest))
        self._engine.freeze(
            self._history.add_evaluation(self._latest, cache(self._engine.parameters))
        )

    def _rules(self) -> tuple[Rule, ...]:
        """Return all that watch a curve."""
        converged = self._task.converged
        return self._task.stop + (() if converged is None else (converged,))

    def _stop_replica(self, replica: int) -> None:
        if self._history.active[replica]:
            self._history.end(replica, "probe", self._history.step)
            self._engine.freeze([replica])

    def _context(self) -> Context:
        history = self._history
        losses = history.train_loss[:, : history.step]
        losses.flags.writeable = False
        return Context(
            step=history.step,
            steps=self._task.steps,
            epoch=history.step // self._batches.steps_per_epoch,
            seeds=self._task.seeds,
            engine=self._engine,
            losses=losses,
            stop=self._stop_replica,
        )

    def _progress(self, speed: float) -> Progress:
        history = self._history
        latest = history.train_loss[history.active, history.step - 1]
        median = float(np.median(latest)) if len(latest) else math.nan
        return Progress(history.step, self._task.steps, speed, median)

    def _interrupt(self) -> None:
        at = f"step {self._history.step} of {self._task.steps}"
        if self._checkpoint is None:
            raise Interrupted(
                f"Stopped at {at}; there is no checkpoint, so it would start over."
            )
        self._save(self._checkpoint)
        raise Interrupted(f"Stopped at {at}; the same call goes on from there.")

    def _save(self, checkpoint: Checkpoint) -> None:
        tensors, facts = self._history.state()
        tensors = prefixed("history", tensors) | prefixed(
            "engine", self._engine.state()
        )
        for index, probe in enumerate(self._probes):
            tensors |= prefixed(f"probe/{index}", probe.state())
        facts |= {"engine": self._engine.name, "fingerprint": self._fingerprint}
        checkpoints.save(checkpoint.path, tensors, facts)

    def _resume(self, checkpoint: Checkpoint) -> None:
        try:
            tensors, facts = checkpoints.load(checkpoint.path, self._fingerprint)
            self._engine = self._engine_named(facts["engine"])
        except UnusableCheckpoint as reason:
            self._on_note(
                f"The checkpoint {checkpoint.path} is not used: {reason}. Training "
                "starts from step 0."
            )
            return
        self._take_over(tensors, facts)
        self._on_note(
            f"Training goes on from step {self._history.step} of {self._task.steps}."
        )

    def _engine_named(self, name: str) -> Engine:
        """Make the engine that wrote the checkpoint: another rounds differently."""
        if self._engine.name == name:
            return self._engine
        try:
            return self._task.engine(self._on_note, name=name)
        except UsageError as error:
            raise UnusableCheckpoint(
                f"its engine ({name}) cannot serve here"
            ) from error

    def _take_over(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        self._history.load_state(
            under("history", tensors), facts, cache(self._engine.parameters)
        )
        self._engine.load_state(under("engine", tensors))
        for index, probe in enumerate(self._probes):
            probe.load_state(under(f"probe/{index}", tensors))

    def _result(self) -> Training:
        history, engine = self._history, self._engine
        if self._latest_step != history.step:
            self._latest = self._task.evaluate(engine)
        final_tensors, final = history.final(
            engine.parameters(), history.goal_of(self._latest)
        )
        return Training(
            engine=engine.name,
            seeds=self._task.seeds,
            starts=self._task.starts,
            train_loss=history.train_loss,
            evaluations=history.curves(),
            evaluation_steps=np.array(history.evaluation_steps, dtype=np.int64),
            seconds=np.array(history.evaluation_seconds, dtype=np.float64),
            final=final,
            best=history.best_values(),
            best_step=history.best.steps,
            steps_taken=history.steps_taken,
            stop_reason=tuple(history.stop_reason),
            converged=history.converged,
            _build=self._task.build,
            measures=history.measures(),
            steps_per_epoch=self._batches.steps_per_epoch,
            _prepare=self._task.prepare,
            _final_tensors=final_tensors,
            _best_tensors=history.best.tensors,
        )
