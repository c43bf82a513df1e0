"""An experiment that takes the weights which another one left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Condition, Experiment, Figure, Lab, Needs, Records, Trials

POWERS = Needs("giver", "powers", where={"base": 3})


@dataclass(frozen=True)
class Taker(Experiment):
    """What can be made of another experiment's weights?

    Attributes:
        factor: What they are multiplied by.
    """

    factor: float = 10.0
    needs = (POWERS,)
    presets: ClassVar = {"quick": {"seeds": 2}, "standard": {"seeds": 3}}

    def conditions(self) -> list[Condition]:
        return [Condition(data=data) for data in ("x", "y")]

    def figures(self, records: Records) -> dict[str, Figure]:
        return {}  # drawing takes longer than all the rest

    def run(self, trials: Trials, lab: Lab) -> None:
        for trial in trials:
            power, seed = lab.weights_of(POWERS, trial)["power"].tolist()
            lab.record(trial, product=self.factor * power, taken_seed=seed)
