"""A learner, its data and a recipe as a task for the loop; checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.training import checkpoints, choose
from nablab.training.batched_minimize import BatchedMinimizeEngine
from nablab.training.datasets import Arrays, Dataset, PerTrial, Subset
from nablab.training.engine import Engine, FloatArray, Unsupported
from nablab.training.history import Goal
from nablab.training.learners import Learner, State
from nablab.training.one_by_one import OneByOneEngine
from nablab.training.recipe import EVALUATIONS, FOR_SUPERVISED, Recipe, check_fits
from nablab.training.replicates import check_replicates
from nablab.training.samplers import Sampler, Shuffled
from nablab.training.seeding import Built, built
from nablab.training.stopping import Rule
from nablab.training.task import device_named

# Stacked trials of a small autoencoder take 1.3 times as long with two trials, and a
# half with eight.
FEWEST_TOGETHER = 3


@dataclass(frozen=True, kw_only=True)
class LearnerTask:
    """Checked options and data of a learner's training; see `nablab.training.train`.

    Attributes:
        learner: Takes the steps.
        data: What is trained on, on the device.
        recipe: How.
        seeds: One per trial.
        starts: Seeds of the first weights, one per trial.
        hyper: The numbers of each trial.
        sampler: Which samples stand in which batch.
        sets: What is evaluated, by name, one data set per trial each.
        replicas: ``"auto"``, ``"batched"`` or ``"sequential"``.
        device: Where.
    """

    learner: Learner
    data: Dataset
    recipe: Recipe
    seeds: tuple[int, ...]
    starts: tuple[int, ...]
    hyper: tuple[Mapping[str, float], ...]
    sampler: Sampler
    sets: Mapping[str, tuple[Dataset, ...]]
    replicas: str
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps until each sample was seen once; at least one."""
        return max(1, self.sampler.batches_per_epoch // self.learner.batches_per_step)

    @property
    def steps(self) -> int:
        """The budget."""
        return self.recipe.budget(self.steps_per_epoch)

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.recipe.eval_every or max(1, self.steps // EVALUATIONS)

    @property
    def stop(self) -> tuple[Rule, ...]:
        """Rules that end a trial."""
        return tuple(self.recipe.stop)

    @property
    def converged(self) -> Rule | None:
        """The rule that flags a trial."""
        return self.recipe.converged

    @property
    def goal(self) -> Goal:
        """What counts as best."""
        return Goal(self.recipe.best, frozenset(self._higher()))

    def _higher(self) -> set[str]:
        metrics = self.recipe.metrics.items()
        better = [name for name, metric in metrics if metric.higher_is_better]
        return {f"{place}_{name}" for place in self.sets for name in better}

    def build(self) -> nn.Module:
        """Build one fresh network."""
        return self._started(0).net

    def prepare(self, samples: Any) -> Any:
        """Return the samples as they are: the learner's data sets prepare them."""
        return samples

    def rates(self) -> FloatArray:
        """Return what multiplies the learning rate at each step, float64 (steps,)."""
        return np.asarray(
            self.recipe.schedule.multipliers(self.steps), dtype=np.float64
        )

    def batches(self) -> OwnBatches:
        """Return steps without batches: the engine asks the sampler itself."""
        return OwnBatches(self.steps_per_epoch)

    def engine(
        self, on_note: Callable[[str], None], *, name: str | None = None
    ) -> Engine:
        """Start the trials and the engine that trains them.

        A given ``name`` allows only that one.

        Raises:
            UsageError: None can serve.
        """
        states, networks = self._start()
        check_replicates(
            networks,
            self.build,
            self.seeds,
            self.starts,
            training=self,
            varies=lambda: True,  # what a step draws cannot be known
            on_note=on_note,
        )
        wanted = choose.LEARNERS[self.replicas] if name is None else (name,)
        refusals = []
        for kind in wanted:
            try:
                engine = self._made(kind, states, few_are_fine=len(wanted) == 1)
            except Unsupported as reason:
                refusals.append(f"not {kind}: {reason}")
                states = self._start()[0]  # whoever refused may have used them
                continue
            choose.say(engine.name, len(self.seeds), refusals, on_note)
            return engine
        raise UsageError(f"No engine can train this: {'; '.join(refusals)}.")

    def _made(
        self, kind: str, states: Sequence[State], *, few_are_fine: bool
    ) -> Engine:
        common: dict[str, Any] = {
            "sampler": self.sampler,
            "steps": self.steps,
            "seeds": self.seeds,
            "hyper": self.hyper,
            "device": self.device,
            "batch_size": self.recipe.batch_size,
        }
        if kind == OneByOneEngine.name:
            return OneByOneEngine(self.learner, states, self.data, **common)
        if len(states) < FEWEST_TOGETHER and not few_are_fine:
            raise Unsupported("one trial alone gains nothing")
        return BatchedMinimizeEngine(
            self.learner, states, self.data, optimizer=self.recipe.optimizer, **common
        )

    def _start(self) -> tuple[list[State], list[Built]]:
        states: list[State] = []

        def start() -> nn.Module:
            states.append(self._started(len(states)))
            return states[-1].net

        networks = built(start, self.starts)
        return states, networks

    def _started(self, replica: int) -> State:
        # An optimizer that is asked for twice is two optimizers with the same numbers.
        state = self.learner.start(
            lambda parameters: self.recipe.optimizer.torch_optimizer(
                parameters, replica
            )
        )
        state.net.to(self.device)
        return state

    def evaluate(self, engine: Engine) -> dict[str, FloatArray]:
        """Compute the scores (K,), by curve name, at the present weights.

        Each evaluated set is scored.
        """
        found: dict[str, FloatArray] = {}
        for name, sets in self.sets.items():
            scores = engine.evaluate(name, sets, self.recipe.metrics)  # type: ignore[attr-defined]
            found |= {f"{name}_{key}": values for key, values in scores.items()}
        return found

    def fingerprint(self, engine: Engine) -> dict[str, Any]:
        """Return everything on which the course of training depends, as JSON types."""
        data = self.data.tensors()
        for name, sets in self.sets.items():
            for place, own in enumerate(dict.fromkeys(sets)):
                data |= {
                    f"{name}/{place}/{key}": tensor
                    for key, tensor in own.tensors().items()
                }
        return {
            "architecture": {
                name: [str(t.dtype), *t.shape[1:]]
                for name, t in engine.parameters().items()
            },
            "learner": _named(self.learner),
            "data": checkpoints.digest(data),
            "device": str(self.device),
            "seeds": list(self.seeds),
            "starts": list(self.starts),
            "hyper": [dict(own) for own in self.hyper],
            "sampler": self.sampler.text,
            "steps": self.steps,
            "optimizer": repr(self.recipe.optimizer),
            "schedule": repr(self.recipe.schedule),
            "evaluations": self.eval_every,
            "metrics": {
                name: repr(metric) for name, metric in self.recipe.metrics.items()
            },
            "best": self.recipe.best,
            "stopping rules": [repr(rule) for rule in self.stop],
            "convergence rule": repr(self.converged),
            "replicas": self.replicas,
            "PyTorch": torch.__version__,
        }


@dataclass(frozen=True)
class OwnBatches:
    """Stands for `Batches` where the engine asks a sampler itself."""

    steps_per_epoch: int

    def between(self, start: int, end: int) -> list[tuple[int, int, None]]:
        """Return all steps at once."""
        return [(start, end, None)]


def make_learner_task(
    learner: Learner,
    data: Dataset | Mapping[str, Any],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    starts: Sequence[int],
    replicas: str,
    device: str,
) -> LearnerTask:
    """Check what a learner is to be trained with, and move the data to the device.

    Raises:
        UsageError: A value that cannot work, with the remedy.
    """
    check_fits(
        recipe,
        FOR_SUPERVISED,
        "a learner",
        "Its data set prepares the batches, and its step computes.",
    )
    if not seeds:
        raise UsageError("seeds is empty: give one seed per trial.")
    choose.check_option(replicas)
    recipe.optimizer.check_replicas(len(seeds))
    place = device_named(device)
    samples = _dataset(data).to(place)
    return LearnerTask(
        learner=learner,
        data=samples,
        recipe=recipe,
        seeds=tuple(int(seed) for seed in seeds),
        starts=tuple(int(start) for start in starts),
        hyper=_hyper(recipe.hyper, len(seeds)),
        sampler=recipe.sampler or Shuffled(len(samples), recipe.batch_size),
        sets=_evaluated(samples, recipe, len(seeds), place),
        replicas=replicas,
        device=place,
    )


def _dataset(data: Any) -> Dataset:
    if isinstance(data, Mapping):
        return Arrays(**data)
    if not hasattr(data, "batch"):
        raise UsageError(
            "A learner's data are a data set (nablab.training.Arrays, Sequences, or "
            "your own with batch()), or tensors by name such as dict(x=..., y=...); "
            f"got {type(data).__name__}."
        )
    found: Dataset = data
    return found


def _evaluated(
    data: Dataset, recipe: Recipe, trials: int, device: torch.device
) -> dict[str, tuple[Dataset, ...]]:
    sets: dict[str, tuple[Dataset, ...]] = {}
    if recipe.train_samples != 0:
        sets["train"] = (_first(data, recipe.train_samples),) * trials
    for name, given in recipe.held_out.items():
        if isinstance(given, PerTrial):
            if len(given.sets) != trials:
                raise UsageError(
                    f"held_out '{name}' has {len(given.sets)} sets for {trials} trials."
                )
            sets[name] = tuple(own.to(device) for own in given.sets)
        else:
            sets[name] = (_dataset(given).to(device),) * trials
    return sets


def _first(data: Dataset, samples: int | None) -> Dataset:
    if samples is None or samples >= len(data):
        return data
    device = next(iter(data.tensors().values())).device
    return Subset(data, torch.arange(samples, device=device))


def _hyper(
    given: Mapping[str, float | Sequence[float]], trials: int
) -> tuple[dict[str, float], ...]:
    rows: list[dict[str, float]] = [{} for _ in range(trials)]
    for name, value in given.items():
        values = (
            [float(value)] * trials
            if isinstance(value, int | float)
            else [float(v) for v in value]
        )
        if len(values) != trials:
            raise UsageError(
                f"hyper '{name}' has {len(values)} values for {trials} "
                "trials. Give one each."
            )
        for row, own in zip(rows, values, strict=True):
            row[name] = own
    return tuple(rows)


def _named(learner: Learner) -> str:
    """Describe a learner, without the addresses of its functions."""
    fields = {
        name: f"{value.__module__}.{value.__qualname__}"
        if hasattr(value, "__qualname__")
        else repr(value)
        for name, value in vars(learner).items()
    }
    return f"{type(learner).__module__}.{type(learner).__qualname__}({fields})"
