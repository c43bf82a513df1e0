"""A recurrent classifier on sequences of unequal length, in batches of like lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Claim, Condition, Experiment, Lab, Trials


@dataclass(frozen=True)
class Reading(Experiment):
    """Does a recurrent network count?

    Attributes:
        epochs: Passes over the sequences.
        rates: Learning rates.
    """

    epochs: int = 3
    rates: tuple[float, ...] = (1e-2, 1e-3)

    presets = {"quick": {"seeds": 2}, "standard": {}, "paper": {}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater("accuracy", 1e-2, 1e-3, by="rate"),
    )

    def conditions(self) -> list[Condition]:
        return [Condition(rate=rate) for rate in self.rates]

    def run(self, trials: Trials, lab: Lab) -> None:
        from _recurrent import learner, sequences

        from nablab.training import Accuracy, Adam, Bucketed, Recipe

        train = sequences(200, 0)
        result = lab.train(
            learner(),
            train,
            Recipe(
                epochs=self.epochs,
                sampler=Bucketed(train.lengths, 8),
                optimizer=Adam(learning_rate=float(trials.condition["rate"])),
                held_out={"test": sequences(50, 1)},
                metrics={"accuracy": Accuracy()},
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        for trial, outcome in zip(trials, result, strict=True):
            lab.record(
                trial, accuracy=outcome.last()["test_accuracy"], loss=outcome.final
            )
