"""What an experiment gets as ``lab``: it hides the store, the device, checkpoints and progress."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab import seeding
from nablab.errors import Interrupted, UsageError
from nablab.experiment import Condition, Curve, Experiment, Level, Record, Scalar
from nablab.lab.drafts import Draft, Drafts, Log, last_step
from nablab.lab.environment import describe_environment
from nablab.lab.memory import check_memory
from nablab.lab.provenance import Journal
from nablab.lab.shortening import Shortened
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from nablab.training import Probe, Training

PROGRESS_SECONDS = 0.5
COPIES = 3  # of the losses: as trained, as recorded, and one while they are worked on


def checkpoint_seconds() -> float:
    """Seconds between checkpoints: ``NABLAB_CHECKPOINT_SECONDS``, else 30.

    Raises:
        UsageError: The variable holds no positive number.
    """
    text = os.environ.get("NABLAB_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"NABLAB_CHECKPOINT_SECONDS is '{text}'; it must be seconds, such as 30.")
    return seconds


def check_amount(amount: Any) -> int:
    """A number for a foreign loop, or the error that says why it is none.

    Raises:
        UsageError: It is no whole number above 0.
    """
    if isinstance(amount, bool) or not hasattr(amount, "__index__") or amount < 1:
        raise UsageError(f"lab.budget takes a whole number of 1 or more, not {amount!r}.")
    return int(amount)


def check_history(replicas: int, steps: int) -> None:
    """Refuse a training whose losses cannot be held: one per replica and step, and copies of them.

    Raises:
        UsageError: They would not fit into the memory.
    """
    check_memory(8 * COPIES * replicas * steps, f"The losses of {steps:,} steps of {replicas} replicas")


class Notebook:
    """The part of a lab that keeps what an experiment tells it; needs no store.

    It is a lab in memory for experiments that do not call ``train``: it runs their loops as they are, and
    `records` gives what they left.

    Args:
        experiment: The configured experiment.
        condition: The condition being run.
        seeds: The seeds that the experiment was asked to run.
    """

    def __init__(self, experiment: Experiment, condition: Condition, seeds: Sequence[int]) -> None:
        self._experiment = experiment
        self._condition = condition
        self._drafts = {seed: Draft() for seed in seeds}
        self.notes: list[str] = []

    def seed(self, seed: int, purpose: str, **factors: Level) -> int:
        """See `nablab.experiment.Lab.seed`."""
        named = [part for item in sorted(factors.items()) for part in item]
        return seeding.derive(self._experiment.name, *named, seed, purpose)

    def rng(self, seed: int, purpose: str, **factors: Level) -> np.random.Generator:
        """See `nablab.experiment.Lab.rng`."""
        import numpy as np

        return np.random.default_rng(self.seed(seed, purpose, **factors))

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.experiment.Lab.steps`."""
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        return iter(range(check_total(total)))

    def budget(self, amount: int) -> int:
        """See `nablab.experiment.Lab.budget`."""
        return check_amount(amount)

    def record(self, seed: int, **values: Scalar | str) -> None:
        """See `nablab.experiment.Lab.record`."""
        draft = self._draft(seed)
        for name, value in values.items():
            if isinstance(value, str):
                draft.notes[name] = value
            else:
                draft.scalars[name] = float(value)

    def curve(self, seed: int, name: str, steps: Any, values: Any) -> None:
        """See `nablab.experiment.Lab.curve`."""
        import numpy as np

        # Copies: a loop may go on changing its arrays after it gave them.
        curve = Curve(np.asarray(steps, dtype=np.int64).copy(), np.asarray(values).copy())
        if curve.steps.shape != curve.values.shape:
            raise ValueError(f"curve '{name}': {curve.steps.shape} steps but {curve.values.shape} values")
        self._draft(seed).curves[name] = curve

    def log(self, seed: int, step: int, **values: float) -> None:
        """See `nablab.experiment.Lab.log`."""
        logs = self._draft(seed).logs
        for name, value in values.items():
            log = logs.get(name) or Log(last_step(self._layers(), seed, name))
            try:
                log.add(step, value)
            except (UsageError, TypeError, ValueError) as error:
                raise UsageError(f"lab.log: seed {seed}, curve '{name}': {error}.") from error
            logs[name] = log

    def array(self, seed: int, name: str, values: Any) -> None:
        """See `nablab.experiment.Lab.array`."""
        import numpy as np

        self._draft(seed).arrays[name] = np.asarray(values).copy(order="K")

    def note(self, text: str) -> None:
        """See `nablab.experiment.Lab.note`."""
        if text not in self.notes:
            self.notes.append(text)

    def records(self) -> list[Record]:
        """The finished records, by seed.

        Raises:
            RuntimeError: The experiment recorded nothing for a seed that it was given.
        """
        empty = [seed for seed, draft in self._drafts.items() if not draft.scalars]
        if empty:
            name = type(self._experiment).__name__
            raise RuntimeError(f"{name}.run recorded nothing for seeds {empty} of {self._condition}")
        return [
            Record(self._condition, seed, draft.scalars, draft.notes, draft.all_curves(), draft.arrays)
            for seed, draft in self._drafts.items()
        ]

    def _draft(self, seed: int) -> Draft:
        if seed not in self._drafts:
            raise ValueError(f"seed {seed} was not asked for; this run has {sorted(self._drafts)}")
        return self._drafts[seed]

    def _layers(self) -> list[Drafts]:
        """Everything that was said so far, the latest last."""
        return [self._drafts]


class Session(Notebook):
    """The lab of one condition in a real run: trains with checkpoints and says how far it is.

    Args:
        experiment: See `Notebook`.
        condition: See `Notebook`.
        seeds: See `Notebook`.
        folder: The run.
        stop: The request to stop, to be looked at.
        device: Where to train.
        replicas: How to train replicas.
        notes: What has to be said of these trials before they begin.
        goes_on: Whether another process began these seeds.
    """

    def __init__(
        self,
        experiment: Experiment,
        condition: Condition,
        seeds: Sequence[int],
        *,
        folder: RunFolder,
        stop: StopToken,
        device: str,
        replicas: str,
        notes: Sequence[str] = (),
        goes_on: bool = False,
    ) -> None:
        from nablab.lab.loops import OwnLoops  # brings NumPy, which `nablab runs` does without

        super().__init__(experiment, condition, seeds)
        self.notes += notes
        self._folder = folder
        self._stop = stop
        self._journal = Journal(
            folder,
            condition,
            seeds,
            environment=describe_environment(device),
            goes_on=goes_on,
            every_seconds=checkpoint_seconds(),
        )
        self._device = device
        self._replicas = replicas
        self._loops = OwnLoops(
            folder,
            condition,
            self._drafts,
            stop=stop,
            every_seconds=checkpoint_seconds(),
            on_note=self.note,
            on_progress=self._own_progress,
            on_save=lambda: self._journal.write(self.notes),  # a resumed loop does not say them again
        )
        self._reported = 0.0

    def train(
        self, build: Callable[[], nn.Module], data: tuple[Any, Any], *, seeds: Sequence[int], **options: Any
    ) -> Training:
        """See `nablab.experiment.Lab.train`."""
        from nablab import training

        self._loops.save_ended()  # a training may last
        if self._stop.requested():
            raise Interrupted("stopped before training")
        check_history(len(seeds), options.get("steps", 0))
        path = self._folder.checkpoint_path(self._condition, self._loops.next_number())
        return training.fit(
            build,
            data,
            seeds=seeds,
            device=self._device,
            replicas=self._replicas,
            checkpoint=training.Checkpoint(path, every_seconds=checkpoint_seconds()),
            on_progress=self._progress,
            should_stop=self._stop.requested,
            on_note=self.note,
            **options,
        )

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.experiment.Lab.steps`."""
        return self._loops.steps(total, state=state, name=name)

    def records(self) -> list[Record]:
        """See `Notebook.records`."""
        self._loops.close_all()
        return super().records()

    @contextmanager
    def journal(self) -> Iterator[None]:
        """Around the work: where it was done, how long it took and its notes are kept, however it ends."""
        self._journal.write(self.notes)
        try:
            yield
        finally:
            self._journal.write(self.notes)

    def _draft(self, seed: int) -> Draft:
        super()._draft(seed)  # refuses an unknown seed
        return self._loops.draft(seed)

    def _layers(self) -> list[Drafts]:
        return self._loops.layers()

    def _progress(self, progress: Any) -> None:
        speed, loss = progress.replica_steps_per_second, progress.train_loss
        self._show(progress.step, progress.steps, rate=speed, loss=loss, replicas=len(self._drafts))

    def _own_progress(self, step: int, steps: int, rate: float) -> None:
        self._show(step, steps, rate=rate, loss=None, replicas=1)

    def _show(self, step: int, steps: int, *, rate: float, loss: float | None, replicas: int) -> None:
        """Write how far the part in work is, for whoever watches."""
        self._journal.tick(self.notes)
        now = time.monotonic()
        if now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        content = {
            "condition": dict(self._condition),
            "replicas": replicas,
            "part": self._loops.begun,
            "step": step,
            "steps": steps,
            "rate": rate,
            "loss": loss,
            "time": time.time(),
        }
        self._folder.write_json(
            str(self._folder.progress_path(self._condition).relative_to(self._folder.path)),
            content,
            durable=False,
        )


@dataclass
class Estimate:
    """What a rehearsal found.

    Attributes:
        seconds: Expected time of the condition with the given seeds.
        engine: The engine that was chosen; "own loop" or "library's loop" where no training is.
        steps: Steps of all trainings (per replica) and loops, if none ends early.
        may_end_early: A stopping rule, or a library's loop of at most so many turns, may end early.
        run_in_full: Nothing could be shortened, so that the whole condition was run and thrown away.
    """

    seconds: float = 0.0
    engine: str = ""
    steps: int = 0
    may_end_early: bool = False
    run_in_full: bool = False


def _few(pair: tuple[Any, Any], samples: int) -> tuple[Any, Any]:
    """The first of some held-out samples and their labels."""
    from nablab.training import OwnLabels

    x, y = pair
    return x[:samples], OwnLabels(y.values[:, :samples]) if isinstance(y, OwnLabels) else y[:samples]


def _stretched(result: Training, steps: int) -> Training:
    """As long as the whole training, so that the code after it meets the shapes that it expects."""
    import numpy as np

    missing = steps - result.train_loss.shape[1]
    losses = np.pad(result.train_loss, ((0, 0), (0, missing)), mode="edge")
    return dataclasses.replace(result, train_loss=losses)


@contextmanager
def _more_often(probes: Sequence[Probe], times: int) -> Iterator[None]:
    """Let probes look so many times as often: what follows needs as many points from a short training."""
    usual = {probe: probe.every for probe in probes if "every" in vars(probe)}
    for probe, every in usual.items():
        probe.every = max(1, every // times)
    try:
        yield
    finally:
        for probe, every in usual.items():
            probe.every = every


class Rehearsal(Notebook):
    """The lab of a dry run: takes a few measured steps instead of all, and adds up what all would cost."""

    STEPS, SAMPLES = 20, 256  # enough for the code after training to have something to work on

    def __init__(
        self,
        experiment: Experiment,
        condition: Condition,
        seeds: Sequence[int],
        *,
        device: str,
        replicas: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(experiment, condition, seeds)
        self._device = device
        self._replicas = replicas
        self.estimate = Estimate()
        self._clock = clock
        self._spent = 0.0  # on what is in the estimate already
        self._shortened = Shortened(clock, self._now, self._add)

    def train(
        self, build: Callable[[], nn.Module], data: tuple[Any, Any], *, seeds: Sequence[int], **options: Any
    ) -> Training:
        """Measure the speed of a few steps, then train for a few."""
        from nablab import training

        self._shortened.end_call()
        begin = self._clock()
        steps = int(options.pop("steps"))
        check_history(len(seeds), steps)
        common: Mapping[str, Any] = {
            "seeds": seeds,
            "device": self._device,
            "replicas": self._replicas,
            "on_note": self.note,
            **options,
        }
        speed = training.measure_speed(build, data, steps=steps, **common)
        # A schedule is made for all the steps; a warm-up may be longer than these few. An evaluation was
        # measured: the few steps need no whole one.
        short = {name: value for name, value in common.items() if name != "schedule"}
        held_out = options.get("held_out") or {}
        short["held_out"] = {name: _few(pair, self.SAMPLES) for name, pair in held_out.items()}
        short["train_samples"] = min(self.SAMPLES, options.get("train_samples") or len(data[0]))
        with _more_often(options.get("probes", ()), max(1, steps // self.STEPS)):
            result = _stretched(training.fit(build, data, steps=min(steps, self.STEPS), **short), steps)
        evaluations = 2 + steps // int(options.get("eval_every") or max(1, steps // 100))
        self.estimate.seconds += speed.setup_seconds + speed.seconds_per_step * steps
        self.estimate.seconds += speed.seconds_per_evaluation * evaluations
        self.estimate.engine = speed.engine
        self.estimate.steps += steps
        self.estimate.may_end_early |= bool(options.get("stop"))
        self._spent += self._clock() - begin
        return result

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """Take a few steps of a loop and measure them; the others are reckoned to last as long."""
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        self.estimate.engine = self.estimate.engine or "own loop"
        self.estimate.steps += check_total(total)
        return self._shortened.steps(check_total(total))

    def budget(self, amount: int) -> int:
        """A small share; what lasts until something is kept, or a loop goes on, is reckoned for the whole."""
        self.estimate.engine = self.estimate.engine or "library's loop"
        self.estimate.may_end_early |= check_amount(amount) > 1  # no library is bound to use up its budget
        return self._shortened.budget(check_amount(amount))

    def rehearse(self) -> Estimate:
        """Run the condition in small and return the estimate of the whole."""
        begin = self._now()
        self._experiment.run(self._condition, list(self._drafts), self)
        self._shortened.end_call()
        self.estimate.seconds = self._now() - begin
        self.estimate.run_in_full = not self.estimate.engine
        return self.estimate

    def _now(self) -> float:
        """The time as if all that was cut short had been done."""
        return self._clock() + self.estimate.seconds - self._spent

    def _add(self, seconds: float) -> None:
        self.estimate.seconds += seconds

    def _draft(self, seed: int) -> Draft:
        self._shortened.end_call()  # something is kept: the library's work is over
        return super()._draft(seed)
