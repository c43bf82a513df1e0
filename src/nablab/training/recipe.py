"""How to train: every option of a training, named once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nablab.errors import UsageError
from nablab.training.arguments import check_optimizer
from nablab.training.inputs import Augment, Precision, Prepare
from nablab.training.metric import Metric
from nablab.training.optimizers import Adam, Specification
from nablab.training.probes import Probe
from nablab.training.samplers import Sampler
from nablab.training.schedules import Constant, Schedule
from nablab.training.stopping import Rule

EVALUATIONS = 100  # of a training whose recipe does not say how often


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """How a learner is trained.

    Attributes:
        steps: Optimizer steps, at most; or give ``epochs``.
        epochs: Passes over the training set, at most.
        batch_size: Samples per batch, drawn without replacement, reshuffled each epoch,
            the last batch of an epoch smaller; None for all samples at each step.
        optimizer: A specification such as `Adam`; each number may be a sequence, one
            per trial.
        schedule: Multiplies the learning rate.
        train_samples: Evaluate on this number of training samples, the first ones;
            None for all, 0 for no evaluation on the training set.
        held_out: Further data by name, evaluated as ``"<name>_loss"`` and so on.
        eval_every: Steps between evaluations; None for about 100 evaluations. The state
            before training and at the end is evaluated too.
        best: The evaluated curve whose best moment's weights are kept.
        stop: Rules that end a trial at an evaluation.
        converged: A rule that only flags, such as `Plateau`.
        probes: Look at training while it runs.
        sampler: Which samples stand in which batch, instead of ``batch_size``.
        hyper: Numbers of each trial by name, or one for all; for learners.
        metrics: Scores over whole sets by name; for learners.
        per_replica_targets: The targets are (K, N, ...), one set per trial; for
            `Supervised`.
        prepare: Makes the network's input of a batch of stored samples; for
            `Supervised`.
        augment: (stored samples, generator) to stored samples, before ``prepare``; for
            `Supervised`.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``; for `Supervised`.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Specification = Adam()  # noqa: RUF009 - immutable
    schedule: Schedule = Constant()  # noqa: RUF009 - immutable
    train_samples: int | None = None
    held_out: Mapping[str, Any] = field(default_factory=dict)
    eval_every: int | None = None
    best: str = "train_loss"
    stop: Sequence[Rule] = ()
    converged: Rule | None = None
    probes: Sequence[Probe] = ()
    sampler: Sampler | None = None
    hyper: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    per_replica_targets: bool = False
    prepare: Prepare | None = None
    augment: Augment | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        if (self.steps is None) == (self.epochs is None):
            raise UsageError("A recipe needs either steps or epochs, one of the two.")
        counts = {
            "steps": self.steps,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }
        for name, value in (counts | {"eval_every": self.eval_every}).items():
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}.")
        if self.train_samples is not None and self.train_samples < 0:
            raise UsageError(
                f"train_samples must be at least 0, got {self.train_samples}."
            )
        if self.sampler is not None and self.batch_size is not None:
            raise UsageError(
                "Give the recipe a sampler or a batch_size; the sampler has its own."
            )

    def budget(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps, at most."""
        return (
            self.steps
            if self.steps is not None
            else (self.epochs or 0) * steps_per_epoch
        )

    def changed(self, names: Sequence[str]) -> list[str]:
        """Return those of these options that are not at their defaults."""
        plain = Recipe(steps=1)
        return [name for name in names if getattr(self, name) != getattr(plain, name)]


FOR_SUPERVISED = ("per_replica_targets", "prepare", "augment", "precision")
FOR_LEARNERS = ("hyper", "metrics")


def check_fits(recipe: Recipe, options: Sequence[str], whom: str, instead: str) -> None:
    """Refuse options that mean nothing to a kind of learner.

    Raises:
        UsageError: One of them is set.
    """
    if found := recipe.changed(options):
        raise UsageError(
            f"{', '.join(found)} of the recipe is not for {whom}. {instead}"
        )
