"""A variational autoencoder whose weights of the divergence are levels of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Claim, Condition, Experiment, Lab, Trials


@dataclass(frozen=True)
class BetaVae(Experiment):
    """Does a larger weight of the divergence make the code say less?

    Attributes:
        betas: Weights of the divergence.
        epochs: Passes over the images.
        samples: Images.
    """

    betas: tuple[float, ...] = (0.5, 4.0)
    epochs: int = 4
    samples: int = 200

    batch_over: ClassVar[tuple[str, ...]] = ("beta",)
    presets = {"quick": {"seeds": 2}, "standard": {}, "paper": {}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.less("divergence", 4.0, 0.5, by="beta", paired=True),
    )

    def conditions(self) -> list[Condition]:
        return [Condition(data="digits", beta=beta) for beta in self.betas]

    def run(self, trials: Trials, lab: Lab) -> None:
        from _vae import digits, learner

        from nablab.training import Adam, Recipe

        result = lab.train(
            learner(),
            digits(self.samples),
            Recipe(
                epochs=self.epochs,
                batch_size=20,
                optimizer=Adam(learning_rate=3e-3),
                hyper={"beta": trials.each("beta")},
                held_out={"test": digits(50)},
            ),
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )
        for trial, outcome in zip(trials, result, strict=True):
            lab.record(
                trial, divergence=outcome.last()["test_divergence"], loss=outcome.final
            )
            lab.curve(trial, "test_loss", outcome.steps, outcome.curves["test_loss"])
