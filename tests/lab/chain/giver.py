"""An experiment that leaves weights for another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Condition, Experiment, Figure, Lab, Records, Trials


@dataclass(frozen=True)
class Giver(Experiment):
    """What do powers leave behind?

    Attributes:
        exponent: The power that is taken.
    """

    exponent: int = 2
    presets: ClassVar = {"quick": {"seeds": 2}, "standard": {"seeds": 3}}

    def conditions(self) -> list[Condition]:
        return [
            Condition(base=base, data=data) for base in (2, 3) for data in ("x", "y")
        ]

    def figures(self, records: Records) -> dict[str, Figure]:
        return {}  # drawing takes longer than all the rest

    def run(self, trials: Trials, lab: Lab) -> None:
        import numpy as np

        for trial in trials:
            power = float(int(trial.condition["base"]) ** self.exponent)
            offset = 0.5 if trial.condition["data"] == "y" else 0.0
            lab.record(trial, power=power)
            values = np.array([power + offset, trial.seed], dtype=np.float32)
            lab.weights(trial, "powers", {"power": values})
