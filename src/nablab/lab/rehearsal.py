"""What an experiment gets as ``lab`` in a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nablab.contract import Experiment, Trial, Trials
from nablab.lab.drafts import Draft
from nablab.lab.memory import check_losses
from nablab.lab.notebook import Notebook, check_amount
from nablab.lab.shortening import Shortened
from nablab.lab.source_runs import SourceRun

if TYPE_CHECKING:
    from nablab.training import Learner, Recipe, Supervised, Training

Item = TypeVar("Item")


@dataclass
class Estimate:
    """What a rehearsal found.

    Attributes:
        seconds: Expected time of the condition with the given seeds.
        engine: The engine that was chosen; "own loop" or "library's loop" where no
            training is.
        steps: Steps of all trainings (per replica) and loops, if none ends early.
        may_end_early: Whether a stopping rule, or a library's loop that need not use up
            its budget, may end early.
        run_in_full: Whether nothing could be shortened, so that the whole condition was
            run and thrown away.
    """

    seconds: float = 0.0
    engine: str = ""
    steps: int = 0
    may_end_early: bool = False
    run_in_full: bool = False


class Rehearsal(Notebook):
    """The lab of a dry run.

    It takes a few measured steps instead of all, and adds up what all would cost.

    Args:
        experiment: See `Notebook`.
        trials: See `Notebook`.
        device: Where to train.
        replicas: How to train replicas.
        sources: See `Notebook`.
        warm: The loops of `each` that ran for earlier conditions, by their names and
            places among these loops; it is added to.
        clock: Seconds.
    """

    # Steps of a training, once its speed is known: enough for the code after it to have
    # something to work on, and no more than a tenth of a second if steps are slow.
    MOST_STEPS, FEWEST_STEPS, SECONDS = 20, 4, 0.1

    def __init__(
        self,
        experiment: Experiment,
        trials: Trials,
        *,
        device: str,
        replicas: str,
        sources: Mapping[str, SourceRun] | None = None,
        warm: set[tuple[str, int]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(experiment, trials, sources=sources)
        self._device = device
        self._replicas = replicas
        self.estimate = Estimate()
        self._clock = clock
        self._warm = set() if warm is None else warm
        self._loops_of_items = 0
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
        from nablab.lab.short_training import more_often, shortened, stretched

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
        few = int(self.SECONDS / max(speed.seconds_per_step, 1e-9))
        few = max(self.FEWEST_STEPS, min(self.MOST_STEPS, few))
        few = min(speed.steps, few)
        with more_often(recipe.probes, short=few, whole=speed.steps) as looks:
            short = shortened(recipe, few)
            result = training.train(learner, data, short, on_note=self.note, **where)
        evaluations = 2 + speed.steps // speed.eval_every
        self.estimate.seconds += (
            speed.setup_seconds + speed.seconds_per_step * speed.steps
        )
        self.estimate.seconds += speed.seconds_per_evaluation * evaluations
        self.estimate.seconds += looks.seconds
        self.estimate.engine = speed.engine
        self.estimate.steps += speed.steps
        self.estimate.may_end_early |= bool(recipe.stop)
        self._spent += self._clock() - begin
        return stretched(result, speed.steps, self._add)

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """Take a few steps of a loop and measure them.

        The others are estimated to last as long.
        """
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        self.estimate.engine = self.estimate.engine or "own loop"
        self.estimate.steps += check_total(total)
        return self._shortened.steps(check_total(total))

    def each(self, items: Iterable[Item], *, name: str = "") -> Iterator[Item]:
        """Take the first item or two; the others are estimated to last as long.

        The first may have to import and set up what the others find: it is measured by
        itself, unless the same loop ran for an earlier condition.
        """
        found = list(items)
        self.estimate.engine = self.estimate.engine or "own loop"
        loop = name, self._loops_of_items
        self._loops_of_items += 1
        enough = 1 if loop in self._warm else 2
        self._warm.add(loop)
        for place in self._shortened.items(len(found), enough):
            yield found[place]

    def budget(self, amount: int) -> int:
        """Return a small share of the amount, and measure the work with it.

        The time until something is kept, or a loop goes on, is extrapolated to the
        whole amount.
        """
        self.estimate.engine = self.estimate.engine or "library's loop"
        # a library need not use up its budget
        self.estimate.may_end_early |= check_amount(amount) > 1
        return self._shortened.budget(check_amount(amount))

    def rehearse(self) -> Estimate:
        """Run a small part of the trials and return the estimate of the whole."""
        begin = self._now()
        self._experiment.run(self._trials, self)
        self._shortened.end_call()
        self.estimate.seconds = self._now() - begin
        self.estimate.run_in_full = not self.estimate.engine
        return self.estimate

    def _now(self) -> float:
        """Return the time as if all that was cut short had been done."""
        return self._clock() + self.estimate.seconds - self._spent

    def _add(self, seconds: float) -> None:
        self.estimate.seconds += seconds

    def _draft(self, trial: Trial) -> Draft:
        self._shortened.end_call()  # something is kept: the library's work is over
        return super()._draft(trial)
