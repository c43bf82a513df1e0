"""A GAN on a ring of eight Gaussians: two networks, two optimizers, several critic
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Claim, Condition, Experiment, Lab, Trials


@dataclass(frozen=True)
class RingGan(Experiment):
    """Do more critic steps find more modes?

    Attributes:
        steps: Steps of the generator.
        critic_steps: Steps of the critic for each.
    """

    steps: int = 40
    critic_steps: tuple[int, ...] = (1, 3)

    presets = {"quick": {"seeds": 2}, "standard": {}, "paper": {}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.greater("modes", 3, 1, by="critic_steps"),
    )

    def conditions(self) -> list[Condition]:
        return [Condition(critic_steps=count) for count in self.critic_steps]

    def run(self, trials: Trials, lab: Lab) -> None:
        from _gan import Modes, RingGan, ring

        from nablab.training import Adam, Recipe

        result = lab.train(
            RingGan(critic_steps=int(trials.condition["critic_steps"])),
            {"x": ring(500, lab.shared_seed("data"))},
            Recipe(
                steps=self.steps,
                batch_size=32,
                optimizer=Adam(learning_rate=2e-3),
                train_samples=0,
                held_out={"test": {"x": ring(100, 1)}},
                metrics={"modes": Modes()},
                best="test_modes",
                eval_every=10,
            ),
            seeds=[lab.seed(trial, "weights", by=()) for trial in trials],
        )
        for trial, outcome in zip(trials, result, strict=True):
            lab.record(trial, modes=outcome.best)
            for name, values in outcome.measures.items():
                lab.curve(trial, name, range(len(values)), values)
