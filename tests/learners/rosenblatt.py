"""A loop of the experiment's own, with NumPy alone: Rosenblatt's perceptron.

It imports no torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nablab.contract import Claim, Condition, Experiment, Lab, Records, Trials
from nablab.plots import Figure

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Neuron:
    """One neuron that learns by Rosenblatt's rule.

    Attributes:
        weights: (dimensions,), float64.
        mistakes: Samples that it had on the wrong side.
    """

    weights: np.ndarray
    mistakes: int = 0

    def see(self, x: np.ndarray, y: int) -> None:
        """Turn the weights towards a sample that lies on the wrong side."""
        if y * (self.weights @ x) <= 0:
            self.weights = self.weights + y * x
            self.mistakes += 1


@dataclass(frozen=True)
class Rosenblatt(Experiment):
    """Does the perceptron make at most as many mistakes as Novikoff's bound allows?

    Rosenblatt's rule adds a sample to the weights, with its sign, whenever they have it
    on the wrong side. If some unit vector separates the samples with the margin m, and
    none is longer than R, it makes at most (R / m)^2 mistakes, however often it sees
    them (Novikoff 1962).

    Attributes:
        dimensions: Of the samples.
        samples: How many are drawn; those closer to the plane than 0.1 are left out.
        steps: Samples that the neuron sees.
        pause: Seconds that a step lasts longer.
    """

    dimensions: tuple[int, ...] = (2, 10)
    samples: int = 200
    steps: int = 4_000
    pause: float = 0.0
    presets = {"quick": {"steps": 1_000, "seeds": 3}, "standard": {}, "paper": {}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (Claim.at_most("mistakes_over_bound", 1.0),)

    def conditions(self) -> list[Condition]:
        return [Condition(dimensions=dimensions) for dimensions in self.dimensions]

    def figures(self, records: Records) -> dict[str, Figure]:
        from nablab import plots

        return {
            "mistakes": plots.curves(
                records, "mistakes", color_by="dimensions", panel_by="", log_y=False
            )
        }

    def run(self, trials: Trials, lab: Lab) -> None:
        import numpy as np

        dimensions = int(trials.condition["dimensions"])
        for trial in trials:
            x, y, margin = separable(self.samples, dimensions, lab.rng(trial, "data"))
            order = lab.rng(trial, "order")
            neuron = Neuron(np.zeros(dimensions))
            state = {"neuron": neuron, "order": order}
            for step in lab.steps(self.steps, state=state, name=f"seed {trial.seed}"):
                sample = order.integers(len(x))
                neuron.see(x[sample], y[sample])
                lab.log(trial, step + 1, mistakes=neuron.mistakes)
                if self.pause:
                    time.sleep(self.pause)
            bound = float((np.linalg.norm(x, axis=1).max() / margin) ** 2)
            lab.record(
                trial,
                mistakes=neuron.mistakes,
                mistakes_over_bound=neuron.mistakes / bound,
            )
            lab.array(trial, "weights", neuron.weights)


def separable(
    samples: int, dimensions: int, rng: np.random.Generator
) -> tuple[Any, Any, float]:
    """Samples (N, dimensions), their sides (N,) of a plane through 0, and the least
    distance to it.
    """
    import numpy as np

    normal = rng.normal(size=dimensions)
    x = rng.normal(size=(samples, dimensions))
    side = x @ normal / np.linalg.norm(normal)
    far = abs(side) > 0.1
    return x[far], np.sign(side[far]).astype(int), float(abs(side[far]).min())
