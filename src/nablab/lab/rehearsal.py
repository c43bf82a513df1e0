"""What an experiment gets as ``lab`` in a dry run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Experiment, Trial, Trials
from nablab.lab.drafts import Draft
from nablab.lab.memory import check_losses
from nablab.lab.notebook import Notebook, check_amount
from nablab.lab.shortening import Shortened

if TYPE_CHECKING:
    from nablab.training import Learner, Probe, Recipe, Supervised, Training


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

    from nablab.training import PerReplicaTargets, PerTrial, Subset

    if isinstance(data, PerTrial):
        return PerTrial(tuple(_few(own, samples) for own in data.sets))
    if isinstance(data, tuple):
        x, y = data
        return x[:samples], PerReplicaTargets(y.values[:, :samples]) if isinstance(
            y, PerReplicaTargets
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
        starts: Sequence[int] | None = None,
    ) -> Training:
        """Measure the speed of a few steps, then train for a few."""
        from nablab import training

        self._shortened.end_call()
        begin = self._clock()
        where: Mapping[str, Any] = {
            "seeds": seeds,
            "starts": starts,
            "device": self._device,
            "replicas": self._replicas,
        }
        speed = training.measure_speed(learner, data, recipe, **where)
        check_losses(len(seeds), speed.steps)
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
