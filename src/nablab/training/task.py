"""What is to be trained.

The options of `fit`, checked before any work, with the data on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.models.factory import output_of
from nablab.models.last_batch import check_single
from nablab.models.targets import check_targets
from nablab.training import checkpoints, choose
from nablab.training.arguments import check_pair
from nablab.training.batches import Batches, SampledBatches
from nablab.training.engine import (
    CrossEntropy,
    Engine,
    FloatArray,
    Loss,
    accuracy,
    classifies,
    loss_function,
)
from nablab.training.history import Goal
from nablab.training.inputs import Inputs, make_inputs
from nablab.training.learners import Supervised
from nablab.training.optimizers import Specification
from nablab.training.recipe import EVALUATIONS, FOR_LEARNERS, Recipe, check_fits
from nablab.training.replicates import check_replicates, draws_random_numbers
from nablab.training.samplers import Sampler
from nablab.training.schedules import Schedule
from nablab.training.seeding import built
from nablab.training.stopping import Rule, check_metrics

Pair = tuple[Any, Any]
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, eq=False)
class PerReplicaTargets:
    """Targets (K, N, ...) of a held-out set, one set of N per replica."""

    values: Any


@dataclass(frozen=True)
class Evaluated:
    """A data set on which losses are evaluated.

    Attributes:
        x: Stored samples (N, ...).
        y: Targets (N, ...), or (K, N, ...) with per-replica targets.
        per_replica_targets: Whether each replica has its own targets.
    """

    x: Tensor
    y: Tensor
    per_replica_targets: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """Checked options and data; see `fit` for what they mean."""

    build: Callable[[], nn.Module]
    x: Tensor
    y: Tensor
    seeds: tuple[int, ...]
    starts: tuple[int, ...]
    steps: int
    loss: Loss
    optimizer: Specification
    schedule: Schedule
    batch_size: int | None
    sampler: Sampler | None
    per_replica_targets: bool
    inputs: Inputs
    evaluated: dict[str, Evaluated]
    eval_every: int
    stop: tuple[Rule, ...]
    converged: Rule | None
    best: str
    replicas: str

    @property
    def metrics(self) -> list[str]:
        """The names of the evaluated curves."""
        kinds = ("loss", "accuracy") if classifies(self.loss) else ("loss",)
        return [f"{name}_{kind}" for name in self.evaluated for kind in kinds]

    def rates(self) -> FloatArray:
        """Return what multiplies the learning rate at each step, float64 (steps,)."""
        return np.asarray(self.schedule.multipliers(self.steps), dtype=np.float64)

    @property
    def goal(self) -> Goal:
        """What counts as best: the loss on the training set.

        A higher accuracy is a better one.
        """
        higher = frozenset(
            metric for metric in self.metrics if metric.endswith("_accuracy")
        )
        return Goal(self.best, higher)

    def prepare(self, samples: Tensor) -> Tensor:
        """Return the network's input of stored samples."""
        return self.inputs.ready(samples)

    def batches(self) -> Batches | SampledBatches:
        """Return the order in which each replica sees the samples."""
        if self.sampler is not None:
            return SampledBatches(self.sampler, self.seeds, self.x.device)
        return Batches(len(self.x), self.batch_size, self.seeds, self.x.device)

    def engine(
        self, on_note: Callable[[str], None], *, name: str | None = None
    ) -> Engine:
        """Build the replicas and the engine that trains them.

        A given ``name`` allows only that one.
        """
        networks = built(self.build, self.starts)
        modules = [network.module.to(self.x.device) for network in networks]
        self._check_network(modules[0])
        check_replicates(
            networks,
            self.build,
            self.seeds,
            self.starts,
            training=self,
            varies=lambda: self._varies_by_seed(modules[0]),
            on_note=on_note,
        )
        request = choose.Request(
            modules=modules,
            x=self.x,
            y=self.y,
            loss=self.loss,
            optimizer=self.optimizer,
            per_replica_targets=self.per_replica_targets,
            seeds=self.seeds,
            batch_size=self._batch_samples(),
            inputs=self.inputs,
        )
        return choose.choose(
            choose.ORDERS[self.replicas] if name is None else (name,), request, on_note
        )

    def _batch_samples(self) -> int:
        """Return the number of samples in a batch."""
        if self.sampler is not None:
            return len(self.sampler.indices(self.seeds[0], 0))
        return self.batch_size or len(self.x)

    def _varies_by_seed(self, module: nn.Module) -> bool:
        """Tell whether trainings of two seeds differ with equal first weights."""
        shuffled = self.batch_size is not None and self.batch_size < len(self.x)
        if (
            shuffled
            or self.sampler is not None
            or self.per_replica_targets
            or self.inputs.augment
            or self.optimizer.differs_by_replica()
        ):
            return True
        return draws_random_numbers(module, self.inputs.ready(self.x[:2]))

    def _check_network(self, module: nn.Module) -> None:
        """Try the network on one sample, and hold its output against the targets."""
        sample = self.inputs.ready(self.x[:1])
        _check_dtypes(module, sample)
        loss = "cross_entropy" if classifies(self.loss) else self.loss
        if isinstance(loss, str):
            output = output_of(
                module, sample, wanted=f"for {loss} it must return one tensor"
            )
            check_targets(
                loss,
                output,
                self.y.flatten(0, 1) if self.per_replica_targets else self.y,
            )

    def evaluate(self, engine: Engine) -> dict[str, FloatArray]:
        """Compute each of `metrics` (K,), at the present weights, on each set.

        The sets are the training set and each held-out set.
        """
        found: dict[str, FloatArray] = {}
        # sets that share their samples share one prediction
        outputs: dict[int, Tensor] = {}
        for name, data in self.evaluated.items():
            if id(data.x) not in outputs:
                outputs[id(data.x)] = engine.predict(data.x)
            found[f"{name}_loss"] = _scored(
                loss_function(self.loss), outputs[id(data.x)], data
            )
            if classifies(self.loss):
                found[f"{name}_accuracy"] = _scored(accuracy, outputs[id(data.x)], data)
        return found

    def fingerprint(self, engine: Engine) -> dict[str, Any]:
        """Return everything on which the course of training depends, as JSON types."""
        data = {"x": self.x, "y": self.y}
        for name, own in self.evaluated.items():
            data |= {f"{name}/x": own.x, f"{name}/y": own.y}
        return {
            "architecture": {
                name: [str(t.dtype), *t.shape[1:]]
                for name, t in engine.parameters().items()
            },
            "data": checkpoints.digest(data),
            "device": str(self.x.device),
            "seeds": list(self.seeds),
            "starts": list(self.starts),
            "steps": self.steps,
            "loss": self.loss if isinstance(self.loss, str) else _name(self.loss),
            "optimizer": repr(self.optimizer),
            "schedule": repr(self.schedule),
            "batch size": self.sampler.text if self.sampler else self.batch_size,
            "own labels": self.per_replica_targets,
            "inputs": self.inputs.text(),
            "evaluations": self.eval_every,
            "stopping rules": [repr(rule) for rule in self.stop],
            "convergence rule": repr(self.converged),
            "replicas": self.replicas,
            "PyTorch": torch.__version__,
        }


def make_task(
    learner: Supervised,
    data: Pair,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    starts: Sequence[int],
    replicas: str,
    device: str,
) -> Task:
    """Check what a network is to be trained with, and move the data to the device.

    Raises:
        UsageError: A value that cannot work, with the remedy.
    """
    check_fits(
        recipe,
        FOR_LEARNERS,
        "Supervised",
        "Give nablab.training.Minimize or a Learner of your own.",
    )
    if not seeds:
        raise UsageError("seeds is empty: give one seed per replica.")
    choose.check_option(replicas)
    loss_function(learner.loss)
    recipe.optimizer.check_replicas(len(seeds))
    target = device_named(device)
    check_pair(data)
    x, y = (torch.as_tensor(part).to(target) for part in data)
    per_replica_targets = recipe.per_replica_targets
    _check_samples(x, y, len(seeds), per_replica_targets)
    first = recipe.train_samples
    if first == 0:
        raise UsageError("train_samples must be at least 1 for Supervised, got 0.")
    training_set = x if first is None else x[:first]
    labels = y if first is None else y[:, :first] if per_replica_targets else y[:first]
    evaluated = {"train": Evaluated(training_set, labels, per_replica_targets)}
    for name, pair in recipe.held_out.items():
        evaluated[name] = _evaluated(pair, x, training_set, target, len(seeds))
    batch_size = recipe.batch_size
    steps = recipe.budget(
        recipe.sampler.batches_per_epoch
        if recipe.sampler is not None
        else Batches(len(x), batch_size, seeds, target).steps_per_epoch
    )
    task = Task(
        build=learner.build,
        x=x,
        y=y,
        seeds=tuple(int(seed) for seed in seeds),
        starts=tuple(int(start) for start in starts),
        steps=steps,
        loss=learner.loss,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        batch_size=batch_size,
        sampler=recipe.sampler,
        per_replica_targets=per_replica_targets,
        inputs=make_inputs(recipe.prepare, recipe.augment, recipe.precision, target),
        evaluated=evaluated,
        eval_every=recipe.eval_every or max(1, steps // EVALUATIONS),
        stop=tuple(recipe.stop),
        converged=recipe.converged,
        best=recipe.best,
        replicas=replicas,
    )
    # else the last batch of an epoch is not reached, or a sampler says how large it is
    if recipe.sampler is None and steps > len(x) // min(batch_size or len(x), len(x)):
        check_single(
            learner.build, len(x), batch_size, lambda: task.inputs.ready(x[:1]).cpu()
        )
    check_metrics(
        task.stop + (() if task.converged is None else (task.converged,)), task.metrics
    )
    return task


def _evaluated(
    pair: Pair, x: Tensor, training_set: Tensor, device: torch.device, replicas: int
) -> Evaluated:
    """Put a held-out set on the device.

    Samples that are the training set's stay one tensor with it.
    """
    samples, own = pair[0], isinstance(pair[1], PerReplicaTargets)
    labels = torch.as_tensor(
        pair[1].values if isinstance(pair[1], PerReplicaTargets) else pair[1]
    ).to(device)
    stored = torch.as_tensor(samples).to(device)
    if stored.data_ptr() == x.data_ptr() and stored.shape == training_set.shape:
        stored = training_set
    _check_samples(stored, labels, replicas, own)
    return Evaluated(stored, labels, own)


@torch.no_grad()
def _scored(
    function: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, data: Evaluated
) -> FloatArray:
    """Compute a loss or a score of each replica's outputs (K, N, ...), float64 (K,)."""
    values = [
        function(out, data.y[k] if data.per_replica_targets else data.y)
        for k, out in enumerate(outputs)
    ]
    return torch.stack(values).double().cpu().numpy()


def device_named(name: str) -> torch.device:
    """Find a device by name.

    Raises:
        UsageError: There is none of this name, or it is not here.
    """
    if name.split(":")[0] not in DEVICES:
        raise unknown("device", name, DEVICES)
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        available = [known for known, usable in there.items() if usable]
        raise UsageError(
            f"Device '{name}' is not available here. Choices: {', '.join(available)}."
        )
    return device


def _check_samples(
    x: Tensor, y: Tensor, replicas: int, per_replica_targets: bool
) -> None:
    if per_replica_targets and len(y) != replicas:
        raise UsageError(
            f"With per_replica_targets, y needs one set per seed: {replicas} sets, got "
            f"{len(y)}."
        )
    labels = y.shape[1] if per_replica_targets and y.ndim > 1 else len(y)
    if len(x) != labels or not len(x):
        raise UsageError(
            f"Inputs and targets must have the same number of samples, got {len(x)} "
            f"and {labels}."
        )


def _check_dtypes(module: nn.Module, x: Tensor) -> None:
    parameter = next(module.parameters(), None)
    if parameter is None:
        raise UsageError("The network has no parameters, so there is nothing to train.")
    if x.is_floating_point() and x.dtype != parameter.dtype:
        raise UsageError(
            f"The inputs are {x.dtype}, the network's weights {parameter.dtype}. "
            f"Convert the data with x.to({parameter.dtype}), or the network with "
            f".to({x.dtype})."
        )


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, CrossEntropy):
        return repr(function)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}.{name}"
