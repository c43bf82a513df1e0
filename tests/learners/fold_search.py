"""A loop that a library owns: scikit-learn's grid search over the settings of a small
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nablab.contract import Claim, Condition, Experiment, Lab, Trials


@dataclass(frozen=True)
class FoldSearch(Experiment):
    """Does a grid search with three folds find a network that tells handwritten digits
    apart?

    Attributes:
        widths: Hidden units that are tried.
        penalties: Sizes of the penalty on the weights that are tried.
        epochs: Passes over the data of each fit, at most.
        samples: Images that are searched on.
    """

    widths: tuple[int, ...] = (8, 16)
    penalties: tuple[float, ...] = (1e-4, 1.0)
    epochs: int = 160
    samples: int = 300
    presets = {"quick": {"epochs": 20, "seeds": 2}, "standard": {}, "paper": {}}  # noqa: RUF012
    claims: ClassVar[tuple[Claim, ...]] = (Claim.at_least("test_accuracy", 0.5),)

    def conditions(self) -> list[Condition]:
        return [Condition(folds=folds) for folds in (2, 3)]

    def run(self, trials: Trials, lab: Lab) -> None:
        import warnings

        from sklearn.datasets import load_digits
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import GridSearchCV
        from sklearn.neural_network import MLPClassifier

        x, y = load_digits(return_X_y=True)
        x = x / 16
        for trial in trials:
            order = lab.rng(trial, "split", by=()).permutation(len(x))
            train, test = order[: self.samples], order[self.samples : 2 * self.samples]
            network = MLPClassifier(
                max_iter=lab.budget(self.epochs),
                n_iter_no_change=self.epochs,
                random_state=lab.seed(trial, "weights", by=()) % 2**32,
            )
            grid = {
                "hidden_layer_sizes": [(width,) for width in self.widths],
                "alpha": self.penalties,
            }
            with warnings.catch_warnings():
                # the epochs are a budget
                warnings.simplefilter("ignore", ConvergenceWarning)
                search = GridSearchCV(
                    network, grid, cv=int(trials.condition["folds"])
                ).fit(x[train], y[train])
            lab.array(
                trial, "validation_accuracy", search.cv_results_["mean_test_score"]
            )
            lab.record(
                trial,
                validation_accuracy=search.best_score_,
                test_accuracy=search.score(x[test], y[test]),
            )
