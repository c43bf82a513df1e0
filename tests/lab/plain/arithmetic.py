"""An experiment without training, for tests of the store that need many runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Claim, Condition, Experiment, Figure, Lab, Records, Trials


@dataclass(frozen=True)
class Arithmetic(Experiment):
    """Has a larger number a larger square?

    Attributes:
        numbers: What is squared.
        noise: How much the seeds differ.
    """

    numbers: tuple[int, ...] = (2, 3)
    noise: float = 0.125
    presets = {"standard": {}, "quick": {"seeds": 5}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater("square", 3, 2, by="number"),
        Claim.at_most("square", 4.0),
    )

    def conditions(self) -> list[Condition]:
        return [Condition(number=number) for number in self.numbers]

    def figures(self, records: Records) -> dict[str, Figure]:
        return {}  # drawing takes longer than all the rest

    def run(self, trials: Trials, lab: Lab) -> None:
        condition = trials.condition
        number = int(condition["number"])
        import numpy as np

        for trial in trials:
            lab.record(
                trial,
                square=number**2 + self.noise * trial.seed,
                parity="odd" if number % 2 else "even",
            )
            lab.curve(
                trial, "powers", range(4), [float(number**power) for power in range(4)]
            )
            lab.array(trial, "number", [number])
            lab.weights(trial, "squares", {"square": np.array([number**2])})
        lab.note("Numbers are small.")
