"""A small experiment for the tests of the laboratory: fits a parabola with tiny
networks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nablab.contract import (
    Claim,
    Condition,
    Experiment,
    Lab,
    Records,
    Seeds,
    Trial,
    Trials,
)
from nablab.plots import Figure

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Toy(Experiment):
    """Does a wider network fit a parabola better?

    A toy.

    Attributes:
        widths: Hidden units of the networks compared.
        steps: Optimizer steps.
        pause: Seconds to wait before training.
        fail: Raise an error in the condition with this width.
        learning_rate: Step size.
        replicas_of: An unused choice, to test the parsing of literals.
        bad_figure: Raise an error when the figures are drawn.
        caveats: Say something of the trials of each condition.
    """

    widths: tuple[int, ...] = (2, 4)
    steps: int = 200
    pause: float = 0.0
    fail: int | None = None
    learning_rate: float = 0.01
    replicas_of: Literal["one", "two"] = "one"
    bad_figure: bool = False
    caveats: bool = False
    presets = {"quick": {"seeds": 3}, "standard": {}, "paper": {"steps": 400}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.less("train_mse", 4, 2, by="width", scale="log10"),
        Claim.equal("answer", by="width", margin=0.01),
    )

    def figures(self, records: Records) -> dict[str, Figure]:
        if self.bad_figure:
            raise RuntimeError("this figure was asked to fail")
        return {}

    def conditions(self) -> list[Condition]:
        return [Condition(width=width) for width in self.widths]

    def network_of(self, condition: Condition) -> nn.Module:
        from torch import nn

        width = int(condition["width"])
        return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        import torch

        x = torch.linspace(-1, 1, 16)[:, None]
        return "mse", (x, x**2)

    def run(self, trials: Trials, lab: Lab) -> None:
        condition = trials.condition
        import torch

        from nablab import training

        time.sleep(self.pause)
        width = int(condition["width"])
        if width == self.fail:
            raise RuntimeError("this width was asked to fail")
        if self.caveats:
            lab.note(f"width {width}, seeds {list(trials.seeds)}: a caveat")
        x = torch.linspace(-1, 1, 16)[:, None]
        result = lab.train(
            training.Supervised(lambda: self.network_of(condition)),
            (x, x**2),
            training.Recipe(
                steps=self.steps,
                optimizer=training.Adam(learning_rate=self.learning_rate),
                eval_every=50,
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        prediction = result.predict(x)
        for place, trial in enumerate(trials):
            lab.record(
                trial,
                train_mse=float(result.final[place]),
                answer=42,
                never=float("inf"),
                stop_reason=result.stop_reason[place],
            )
            lab.curve(trial, "train_mse", range(self.steps), result.train_loss[place])
            lab.array(trial, "prediction", prediction[place, :, 0])
