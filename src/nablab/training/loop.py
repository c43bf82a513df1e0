"""The one training loop.

It drives every engine from event to event and keeps what they leave behind.

An event is an evaluation, a probe's turn, or about 0.2 s of work (to report, save or
stop). Between two events the engine runs a chunk of steps on its own. Where the chunks
are cut never changes a number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from nablab.errors import Interrupted, UsageError
from nablab.training import checkpoints
from nablab.training.checkpoints import Checkpoint, UnusableCheckpoint, prefixed, under
from nablab.training.engine import Engine, FloatArray
from nablab.training.history import Goal, History
from nablab.training.kept_memory import kept_memory
from nablab.training.probes import Context, Probe, overrides
from nablab.training.result import Training
from nablab.training.stopping import Rule, check_metrics

# A person feels a reaction within 0.2 s as prompt; shorter chunks would only cost
# calls.
SECONDS_PER_CHUNK = 0.2
# A first chunk may be slow for reasons of its own, so estimates of the speed are
# trusted gradually.
CHUNK_GROWTH = 8


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


class Loop:
    """One training: engine, history and probes, moved together from event to event.

    Args:
        task: Checked options and data.
        probes: Look at the training as it goes on.
        checkpoint: Where to save the state, and to go on from, if anywhere.
        on_note: Told each automatic choice and its reason.
    """

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
        """Train to the end of the budget, or until every replica has ended.

        Args:
            on_progress: Called at most every 0.2 s or so.
            should_stop: Asked about every 0.2 s; once true, the state is saved and
                `Interrupted` raised.

        Raises:
            Interrupted: ``should_stop`` said so.
        """
        for probe in self._probes:
            probe.on_train_begin(self._context())
        if not self._history.evaluation_steps:
            self._evaluate()
        # Nothing is freed and asked for again but by engines that run PyTorch's layers.
        large = getattr(self._engine, "large_maps", False)
        with kept_memory() if large else nullcontext():
            self._advance_to_the_end(on_progress, should_stop)
        for probe in self._probes:
            probe.on_train_end(self._context())
        return self._result()

    def _advance_to_the_end(
        self,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
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
