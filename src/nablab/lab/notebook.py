"""The part of a lab that keeps what an experiment tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nablab import seeding
from nablab.contract import (
    Curve,
    Experiment,
    Needs,
    Record,
    Scalar,
    Trial,
    Trials,
)
from nablab.errors import UsageError
from nablab.lab.drafts import Draft, Drafts, Log, last_step
from nablab.lab.kept_weights import check_name, pack
from nablab.lab.source_runs import SourceRun

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from nablab.training import Learner, Recipe, Supervised, Training

Item = TypeVar("Item")


def check_amount(amount: Any) -> int:
    """Check the amount of work for a library's own loop and return it.

    Raises:
        UsageError: It is not a whole number above 0.
    """
    if isinstance(amount, bool) or not hasattr(amount, "__index__") or amount < 1:
        raise UsageError(
            f"lab.budget takes a whole number of 1 or more, not {amount!r}."
        )
    return int(amount)


class Notebook:
    """The part of a lab that keeps what an experiment tells it; needs no store.

    It is a lab in memory: it runs loops and trainings as they are, saves nothing, and
    `records` gives what was left.

    Args:
        experiment: The configured experiment.
        trials: What it is asked to run.
        sources: The runs that it may take weights from, by their experiments.
    """

    def __init__(
        self,
        experiment: Experiment,
        trials: Trials,
        *,
        sources: Mapping[str, SourceRun] | None = None,
    ) -> None:
        self._experiment = experiment
        self._trials = trials
        self._sources = sources or {}
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

    def train(
        self,
        learner: Learner | Supervised,
        data: Any,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
        starts: Sequence[int] | None = None,
    ) -> Training:
        """See `nablab.contract.Lab.train`."""
        from nablab import training

        return training.train(
            learner, data, recipe, seeds=seeds, starts=starts, on_note=self.note
        )

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.contract.Lab.steps`."""
        from nablab.lab.loop_files import check_state, check_total

        check_state(state)
        return iter(range(check_total(total)))

    def each(self, items: Iterable[Item], *, name: str = "") -> Iterator[Item]:
        """See `nablab.contract.Lab.each`."""
        found = list(items)
        for place in self.steps(len(found), state={}, name=name):
            yield found[place]

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

    def weights_of(self, needed: Needs, trial: Trial) -> Mapping[str, Tensor]:
        """See `nablab.contract.Lab.weights_of`."""
        name = self._experiment.name
        if needed not in self._experiment.active_needs():
            raise UsageError(
                f"lab.weights_of: {name} does not list {needed} among its needs, so "
                "nobody settled which run to take."
            )
        source = self._sources.get(needed.experiment)
        if source is None:
            raise UsageError(
                f"lab.weights_of: this lab was given no run of {needed.experiment}."
            )
        self.note(
            f"The weights of {needed.experiment} are those of its run {source.run_id}."
        )
        return source.weights(needed, trial)

    def note(self, *texts: str) -> None:
        """See `nablab.contract.Lab.note`."""
        self.notes += [text for text in dict.fromkeys(texts) if text not in self.notes]

    def records(self) -> list[Record]:
        """Return the finished records, in the order of the trials.

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
        """Return where to keep what is said of a trial now."""
        return self._drafts[self._place(trial)]

    def _place(self, trial: Trial) -> int:
        if trial not in self._places:
            raise ValueError(
                f"{trial} was not asked for; this call has {list(self._places)}"
            )
        return self._places[trial]

    def _layers(self) -> list[Drafts]:
        """Return everything that was said so far, the latest last."""
        return [self._drafts]
