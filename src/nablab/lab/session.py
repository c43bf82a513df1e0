"""What an experiment gets as ``lab``.

It hides the store, the device, checkpoints and progress.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab import seeding
from nablab.contract import Curve, Experiment, Record, Scalar, Trial, Trials
from nablab.errors import Interrupted, UsageError
from nablab.lab.drafts import Draft, Drafts, Log, last_step
from nablab.lab.environment import describe_environment
from nablab.lab.kept_weights import MOST_BYTES, check_name, pack
from nablab.lab.memory import check_memory
from nablab.lab.provenance import Journal
from nablab.lab.shortening import Shortened
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder
from nablab.lab.trained_weights import Owners, keep, note_of

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from nablab.training import Learner, Probe, Recipe, Supervised, Training

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
        raise UsageError(
            f"NABLAB_CHECKPOINT_SECONDS is '{text}'; it must be seconds, such as 30."
        )
    return seconds


def check_amount(amount: Any) -> int:
    """A number for a foreign loop, or the error that says why it is none.

    Raises:
        UsageError: It is no whole number above 0.
    """
    if isinstance(amount, bool) or not hasattr(amount, "__index__") or amount < 1:
        raise UsageError(
            f"lab.budget takes a whole number of 1 or more, not {amount!r}."
        )
    return int(amount)


def check_history(replicas: int, steps: int) -> None:
    """Refuse a training whose losses cannot be held.

    One per replica and step, and copies of them.

    Raises:
        UsageError: They would not fit into the memory.
    """
    check_memory(
        8 * COPIES * replicas * steps,
        f"The losses of {steps:,} steps of {replicas} replicas",
    )


class Notebook:
    """The part of a lab that keeps what an experiment tells it; needs no store.

    It is a lab in memory for experiments that do not call ``train``: it runs their
    loops as they are, and `records` gives what they left.

    Args:
        experiment: The configured experiment.
        trials: What it is asked to run.
    """

    def __init__(self, experiment: Experiment, trials: Trials) -> None:
        self._experiment = experiment
        self._trials = trials
        self._places = {trial: place for place, trial in enumerate(trials)}
        self._drafts: Drafts = {place: Draft() for place in range(len(trials))}
        self.notes: list[str] = []

    def seed(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> int:
        """See `nablab.contract.Lab.seed`."""
        counted = trial.condition if by is None else by
        named = [
            part
            for factor in sorted(counted)
            for part in (factor, trial.condition[factor])
        ]
        return seeding.derive(self._experiment.name, *named, trial.seed, purpose)

    def shared_seed(self, purpose: str) -> int:
        """See `nablab.contract.Lab.shared_seed`."""
        return seeding.derive(self._experiment.name, 0, purpose)

    def rng(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> np.random.Generator:
        """See `nablab.contract.Lab.rng`."""
        import numpy as np

        return np.random.default_rng(self.seed(trial, purpose, by=by))

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.contract.Lab.steps`."""
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        return iter(range(check_total(total)))

    def budget(self, amount: int) -> int:
        """See `nablab.contract.Lab.budget`."""
        return check_amount(amount)

    def record(self, trial: Trial, **values: Scalar | str) -> None:
        """See `nablab.contract.Lab.record`."""
        draft = self._draft(trial)
        for name, value in values.items():
            if isinstance(value, str):
                draft.notes[name] = value
            else:
                draft.scalars[name] = float(value)

    def curve(self, trial: Trial, name: str, steps: Any, values: Any) -> None:
        """See `nablab.contract.Lab.curve`."""
        import numpy as np

        # Copies: a loop may go on changing its arrays after it gave them.
        curve = Curve(
            np.asarray(steps, dtype=np.int64).copy(), np.asarray(values).copy()
        )
        if curve.steps.shape != curve.values.shape:
            raise ValueError(
                f"curve '{name}': {curve.steps.shape} steps but "
                f"{curve.values.shape} values"
            )
        self._draft(trial).curves[name] = curve

    def log(self, trial: Trial, step: int, **values: float) -> None:
        """See `nablab.contract.Lab.log`."""
        logs = self._draft(trial).logs
        for name, value in values.items():
            log = logs.get(name) or Log(
                last_step(self._layers(), self._places[trial], name)
            )
            try:
                log.add(step, value)
            except (UsageError, TypeError, ValueError) as error:
                raise UsageError(
                    f"lab.log: seed {trial.seed}, curve '{name}': {error}."
                ) from error
            logs[name] = log

    def array(self, trial: Trial, name: str, values: Any) -> None:
        """See `nablab.contract.Lab.array`."""
        import numpy as np

        self._draft(trial).arrays[name] = np.asarray(values).copy(order="K")

    def weights(
        self, trial: Trial, name: str, tensors: Mapping[str, Any] | nn.Module
    ) -> None:
        """See `nablab.contract.Lab.weights`."""
        self._draft(trial).weights[check_name(name)] = pack(tensors)

    def note(self, *texts: str) -> None:
        """See `nablab.contract.Lab.note`."""
        self.notes += [text for text in dict.fromkeys(texts) if text not in self.notes]

    def records(self) -> list[Record]:
        """The finished records, in the order of the trials.

        Raises:
            RuntimeError: The experiment recorded nothing for a trial that it was given.
        """
        for trial, draft in zip(self._trials, self._drafts.values(), strict=True):
            if not draft.scalars:
                name = type(self._experiment).__name__
                raise RuntimeError(
                    f"{name}.run recorded nothing for seed {trial.seed} "
                    f"of {trial.condition}"
                )
        return [
            Record(
                trial.condition,
                trial.seed,
                draft.scalars,
                draft.notes,
                draft.all_curves(),
                draft.arrays,
                draft.all_weights(),
                {
                    name: size
                    for name, size in draft.weights_left_out.items()
                    if name not in draft.weights
                },
            )
            for trial, draft in zip(self._trials, self._drafts.values(), strict=True)
        ]

    def _draft(self, trial: Trial) -> Draft:
        """Where to keep what is said of a trial now."""
        return self._drafts[self._place(trial)]

    def _place(self, trial: Trial) -> int:
        if trial not in self._places:
            raise ValueError(
                f"{trial} was not asked for; this call has {list(self._places)}"
            )
        return self._places[trial]

    def _layers(self) -> list[Drafts]:
        """Everything that was said so far, the latest last."""
        return [self._drafts]


class Session(Notebook):
    """The lab of some trials in a real run.

    Trains with checkpoints and says how far it is.

    Args:
        experiment: See `Notebook`.
        trials: See `Notebook`.
        folder: The run.
        stop: The request to stop, to be looked at.
        device: Where to train.
        replicas: How to train replicas.
        notes: What has to be said of these trials before they begin.
        goes_on: Whether another process began these seeds.
        keep_weights: Bytes of the weights that trainings may leave in each trial.
    """

    def __init__(
        self,
        experiment: Experiment,
        trials: Trials,
        *,
        folder: RunFolder,
        stop: StopToken,
        device: str,
        replicas: str,
        notes: Sequence[str] = (),
        goes_on: bool = False,
        keep_weights: int = MOST_BYTES,
    ) -> None:
        # brings NumPy, which `nablab runs` does without
        from nablab.lab.loops import OwnLoops

        super().__init__(experiment, trials)
        self.notes += notes
        self._folder = folder
        self._stop = stop
        self._journal = Journal(
            folder,
            trials.condition,
            trials.seeds,
            environment=describe_environment(device),
            goes_on=goes_on,
            every_seconds=checkpoint_seconds(),
        )
        self._device = device
        self._replicas = replicas
        self._loops = OwnLoops(
            folder,
            trials,
            self._drafts,
            stop=stop,
            every_seconds=checkpoint_seconds(),
            on_note=self.note,
            on_progress=self._own_progress,
            # a resumed loop does not say them again
            on_save=lambda: self._journal.write(self.notes),
        )
        self._reported = 0.0
        self._keep_weights = keep_weights
        self._owners = Owners(trials)

    def seed(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> int:
        """See `nablab.contract.Lab.seed`."""
        seed = super().seed(trial, purpose, by=by)
        self._owners.ask(seed, trial)
        return seed

    def train(
        self,
        learner: Learner | Supervised,
        data: Any,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
    ) -> Training:
        """See `nablab.contract.Lab.train`."""
        from nablab import training

        self._loops.save_ended()  # a training may last
        if self._stop.requested():
            raise Interrupted("stopped before training")
        check_history(len(seeds), recipe.steps or 0)
        path = self._folder.checkpoint_path(
            self._trials.condition, self._loops.next_number()
        )
        result = training.train(
            learner,
            data,
            recipe,
            seeds=seeds,
            device=self._device,
            replicas=self._replicas,
            checkpoint=training.Checkpoint(path, every_seconds=checkpoint_seconds()),
            on_progress=self._progress,
            should_stop=self._stop.requested,
            on_note=self.note,
        )
        if self._keep_weights:
            self._keep_trained(result)
        return result

    def _keep_trained(self, result: Training) -> None:
        """Keep the weights that a training leaves, as far as there is room, or say why
        not.
        """
        owners = self._owners.of(result.seeds)
        if owners is None:
            self.note(
                "Weights were not kept: seeds that are not of lab.seed, or not one for "
                "each trial that asked for it, do not tell whose they are. lab.weights "
                "keeps them."
            )
            return
        for replica, trial in enumerate(owners):
            draft = self._draft(trial)
            most = self._keep_weights
            place = self._place(trial)
            if not keep(
                result,
                place,
                replica=replica,
                layers=self._layers(),
                draft=draft,
                most=most,
            ):
                self.note(note_of(most))

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.contract.Lab.steps`."""
        return self._loops.steps(total, state=state, name=name)

    def records(self) -> list[Record]:
        """See `Notebook.records`."""
        self._loops.close_all()
        return super().records()

    @contextmanager
    def journal(self) -> Iterator[None]:
        """Around the work: where it was done, how long it took and its notes are kept,
        however it ends.
        """
        self._journal.write(self.notes)
        try:
            yield
        finally:
            self._journal.write(self.notes)

    def _draft(self, trial: Trial) -> Draft:
        return self._loops.draft(self._place(trial))

    def _layers(self) -> list[Drafts]:
        return self._loops.layers()

    def _progress(self, progress: Any) -> None:
        speed, loss = progress.replica_steps_per_second, progress.train_loss
        self._show(
            progress.step,
            progress.steps,
            rate=speed,
            loss=loss,
            replicas=len(self._drafts),
        )

    def _own_progress(self, step: int, steps: int, rate: float) -> None:
        self._show(step, steps, rate=rate, loss=None, replicas=1)

    def _show(
        self, step: int, steps: int, *, rate: float, loss: float | None, replicas: int
    ) -> None:
        """Write how far the part in work is, for whoever watches."""
        self._journal.tick(self.notes)
        now = time.monotonic()
        if now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        content = {
            "condition": dict(self._trials.condition),
            "replicas": replicas,
            "part": self._loops.begun,
            "step": step,
            "steps": steps,
            "rate": rate,
            "loss": loss,
            "time": time.time(),
        }
        self._folder.write_json(
            str(
                self._folder.progress_path(self._trials.condition).relative_to(
                    self._folder.path
                )
            ),
            content,
            durable=False,
        )


@dataclass
class Estimate:
    """What a rehearsal found.

    Attributes:
        seconds: Expected time of the condition with the given seeds.
        engine: The engine that was chosen; "own loop" or "library's loop" where no
            training is.
        steps: Steps of all trainings (per replica) and loops, if none ends early.
        may_end_early: A stopping rule, or a library's loop of at most so many turns,
            may end early.
        run_in_full: Nothing could be shortened, so that the whole condition was run and
            thrown away.
    """

    seconds: float = 0.0
    engine: str = ""
    steps: int = 0
    may_end_early: bool = False
    run_in_full: bool = False


def _short(recipe: Recipe, steps: int, samples: int) -> Recipe:
    """The recipe for a few steps and small evaluations, which were measured already.

    A schedule is made for all the steps, and a warm-up may be longer than these few.
    """
    from nablab.training import Constant

    return dataclasses.replace(
        recipe,
        steps=steps,
        epochs=None,
        schedule=Constant(),
        held_out={name: _few(data, samples) for name, data in recipe.held_out.items()},
        train_samples=samples
        if recipe.train_samples is None
        else min(samples, recipe.train_samples),
    )


def _few(data: Any, samples: int) -> Any:
    """The first of some held-out samples."""
    import torch

    from nablab.training import OwnLabels, PerTrial, Subset

    if isinstance(data, PerTrial):
        return PerTrial(tuple(_few(own, samples) for own in data.sets))
    if isinstance(data, tuple):
        x, y = data
        return x[:samples], OwnLabels(y.values[:, :samples]) if isinstance(
            y, OwnLabels
        ) else y[:samples]
    if isinstance(data, Mapping):
        return {name: tensor[:samples] for name, tensor in data.items()}
    return Subset(data, torch.arange(min(samples, len(data))))


def _stretched(result: Training, steps: int) -> Training:
    """As long as the whole training, so that the code after it meets the shapes that it
    expects.
    """
    import numpy as np

    missing = steps - result.train_loss.shape[1]
    losses = np.pad(result.train_loss, ((0, 0), (0, missing)), mode="edge")
    return dataclasses.replace(result, train_loss=losses)


@contextmanager
def _more_often(probes: Sequence[Probe], times: int) -> Iterator[None]:
    """Let probes look so many times as often.

    What follows needs as many points from a short training.
    """
    usual = {probe: probe.every for probe in probes if "every" in vars(probe)}
    for probe, every in usual.items():
        probe.every = max(1, every // times)
    try:
        yield
    finally:
        for probe, every in usual.items():
            probe.every = every


class Rehearsal(Notebook):
    """The lab of a dry run.

    Takes a few measured steps instead of all, and adds up what all would cost.
    """

    # enough for the code after training to have something to work on
    STEPS, SAMPLES = (20, 256)

    def __init__(
        self,
        experiment: Experiment,
        trials: Trials,
        *,
        device: str,
        replicas: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(experiment, trials)
        self._device = device
        self._replicas = replicas
        self.estimate = Estimate()
        self._clock = clock
        self._spent = 0.0  # on what is in the estimate already
        self._shortened = Shortened(clock, self._now, self._add)

    def train(
        self,
        learner: Learner | Supervised,
        data: Any,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
    ) -> Training:
        """Measure the speed of a few steps, then train for a few."""
        from nablab import training

        self._shortened.end_call()
        begin = self._clock()
        where: Mapping[str, Any] = {
            "seeds": seeds,
            "device": self._device,
            "replicas": self._replicas,
        }
        speed = training.measure_speed(learner, data, recipe, **where)
        check_history(len(seeds), speed.steps)
        with _more_often(recipe.probes, max(1, speed.steps // self.STEPS)):
            short = _short(recipe, min(speed.steps, self.STEPS), self.SAMPLES)
            result = training.train(learner, data, short, on_note=self.note, **where)
        evaluations = 2 + speed.steps // speed.eval_every
        self.estimate.seconds += (
            speed.setup_seconds + speed.seconds_per_step * speed.steps
        )
        self.estimate.seconds += speed.seconds_per_evaluation * evaluations
        self.estimate.engine = speed.engine
        self.estimate.steps += speed.steps
        self.estimate.may_end_early |= bool(recipe.stop)
        self._spent += self._clock() - begin
        return _stretched(result, speed.steps)

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """Take a few steps of a loop and measure them.

        The others are reckoned to last as long.
        """
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        self.estimate.engine = self.estimate.engine or "own loop"
        self.estimate.steps += check_total(total)
        return self._shortened.steps(check_total(total))

    def budget(self, amount: int) -> int:
        """A small share; what lasts until something is kept, or a loop goes on, is
        reckoned for the whole.
        """
        self.estimate.engine = self.estimate.engine or "library's loop"
        # no library is bound to use up its budget
        self.estimate.may_end_early |= check_amount(amount) > 1
        return self._shortened.budget(check_amount(amount))

    def rehearse(self) -> Estimate:
        """Run the trials in small and return the estimate of the whole."""
        begin = self._now()
        self._experiment.run(self._trials, self)
        self._shortened.end_call()
        self.estimate.seconds = self._now() - begin
        self.estimate.run_in_full = not self.estimate.engine
        return self.estimate

    def _now(self) -> float:
        """The time as if all that was cut short had been done."""
        return self._clock() + self.estimate.seconds - self._spent

    def _add(self, seconds: float) -> None:
        self.estimate.seconds += seconds

    def _draft(self, trial: Trial) -> Draft:
        self._shortened.end_call()  # something is kept: the library's work is over
        return super()._draft(trial)
