"""Networks of growing size learn images: what happens to the test error, also through
double descent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log10
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Le

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Lab,
    Published,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.errors import UsageError
from nablab.settings.bounds import Epochs, Samples

if TYPE_CHECKING:
    from torch import Tensor, nn

ONE, DESCENT, FEATURES = "one hidden layer", "trained networks", "random features"
MANY = "above 10,000"
WIDTHS = ("50", "100", "200", "300", "500", "750", "1000", "1250", "1500", "2000")
# From 4,079 to 491,360 parameters in course C, of which it names the two ends.
PAIRS = ("5-9", "10-20", "20-40", "50-90", "120-200", "350-600")
TAPERED = tuple(f"{2 * i}-{i}" for i in range(1, 12))
# of a side, for every data set: 784 inputs, so that the counts are those of the courses
PIXELS = 28
# for double descent: 150 passes then fit all labels where the network can
BATCH, RATE = (100, 3e-3)

NOISY: Mapping[str, Any] = {"by": "ratio", "where": {"part": DESCENT, "noise": 0.2}}
SOLVED = {"part": FEATURES, "noise": 0.2}
TWIN: Mapping[str, Any] = {
    "by": "ratio",
    "where": SOLVED,
    "scale": "log10",
    "smallest_effect": log10(2),
}
LARGEST: Mapping[str, Any] = {"by": "hidden", "where": {"part": ONE}}
GROWN: Mapping[str, Any] = {**LARGEST, "scale": "log10", "smallest_effect": log10(1.1)}


@dataclass(frozen=True)
class ParametersVsGeneralization(Experiment):
    """Do more parameters generalize worse?

    Classical statistics expects a U: too few parameters cannot fit, too many fit the
    noise as well. But a dense network with h hidden units for 784 pixels and ten
    classes has 795 h + 10 parameters, so 76 units have more than MNIST has images. What
    the images leave open, the optimizer decides.

    The first part trains networks of many sizes for equal epochs on all images. Equal
    epochs are not convergence: look at ``train_accuracy`` and ``converged``, and take
    --preset converged to go on.

    The second is double descent (Belkin et al. 2019; Nakkiran et al. 2020): few images,
    shrunk so that layers are wide before parameters are many; a share of the labels
    drawn anew; training until all is learned. N images with K classes give N K numbers
    to fit. Below P = N K a network cannot fit all, and the more it can, the more noise
    it fits. Above, many solutions fit and the test error falls again.

    The third is its analytic twin on the same images and labels: D random ReLU features
    with a least-squares output, of smallest norm where many fit. It fits P = D K
    parameters, so the threshold is D = N. There the smallest singular value of the
    features is nearest to 0, the noise is divided by it, and the error peaks.
    Cross-entropy divides by nothing: the peak of trained networks is lower and wider.

    What to expect on the digits (quick, 5 seeds): trained networks err on 13 % of the
    test at a tenth of N K, on 17 to 18 % from half to twice, on 14 % at eight times;
    random features on 11 % at a quarter, 86 % at P = N K, 17 % at eight times. On MNIST
    (standard, 5 seeds, 7 minutes on two busy cores): 96.6 % with 50 hidden units to
    98.3 % with 2,000. Trials of one seed share the noisy labels, never the weights. The
    claims on trained networks were chosen on digits; MNIST is the fresh test.

    Attributes:
        data: The images: mnist, fashion-mnist, cifar10 (as gray images), digits, or
            your folder or .npz file.
        hidden: Hidden layers of the networks of the first part, such as 500 or 350-600;
            none: leave it out.
        epochs: Passes over the training set in the first part.
        batch_size: Samples per step in the first part.
        learning_rate: Of Adam, in the first part.
        ratios: P / (N K) of the networks and of the random features of parts two and
            three; none: neither.
        noise: Shares of the labels that are drawn anew in these parts.
        samples: Training images N of these parts.
        pixels: To how many pixels a side their images are shrunk.
        descent_epochs: Passes over these images.
    """

    topic: ClassVar[str] = "generalization"

    data: str = "mnist"
    hidden: tuple[str, ...] = (*WIDTHS, *PAIRS)
    epochs: Epochs = 10
    batch_size: Samples = 600
    learning_rate: float = 1e-3
    ratios: tuple[float, ...] = (
        0.05,
        0.1,
        0.2,
        0.35,
        0.5,
        0.75,
        1.0,
        1.5,
        2.0,
        4.0,
        8.0,
    )
    noise: tuple[float, ...] = (0.0, 0.2)
    samples: Samples = 1_000
    pixels: Annotated[int, Le(512)] = 8
    descent_epochs: Epochs = 150

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"data": "digits", "hidden": ("3", "10", "20", "50", "100", "200"), "batch_size": 100,
                  "epochs": 15, "ratios": (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 8.0), "noise": (0.2,),
                  "samples": 500, "seeds": 5},
        "standard": {"seeds": 5},
        "paper": {"hidden": (*WIDTHS, *PAIRS, *TAPERED), "samples": 2_000, "noise": (0.0, 0.1, 0.2),
                  "descent_epochs": 500, "seeds": 10},
        "converged": {"hidden": ("12", "50", "200", "500", "2000"), "epochs": 100, "ratios": (), "seeds": 5},
    }  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.rises("accuracy_gap", by="parameters", within="part", where={"size": MANY},
                    sentence="The gap between training and test accuracy widens with "
                             "parameters (a course)"),
        Claim.equal("test_accuracy", by="parameters", margin=0.005, within="part", where={"size": MANY},
                    sentence="Beyond 10,000 parameters nothing is gained: equal within "
                             "0.5 % (a course)"),
        # These levels stand for the largest, middle and smallest network of a
        # configuration.
        Claim.greater("test_accuracy", "2000", "50", **LARGEST, smallest_effect=0.005,
                      published=Published(0.9816, "one course, one seed; 50 units: "
                                                  "0.9523", of="metric"),
                      sentence="The largest network has a higher test accuracy than "
                               "the smallest",
                      answer=Answer(supported="no, the largest network reads test "
                                              "images better than the smallest",
                                    refuted="the largest network does not read test "
                                            "images better than the smallest",
                                    open="whether the largest network generalizes "
                                         "better than the smallest")),
        Claim.less("train_loss", "2000", "500", **GROWN,
                   sentence="From the middle to the largest network the training loss "
                            "falls by a tenth"),
        Claim.less("test_loss", "2000", "500", **GROWN,
                   sentence="From the middle to the largest network the test loss "
                            "falls by a tenth as well"),
        Claim.greater("test_mse", 1.0, 0.5, **TWIN,
                      sentence="Random features: the error at P = N K is over twice "
                               "that at half of it"),
        Claim.greater("test_mse", 1.0, 2.0, **TWIN,
                      sentence="Random features: the error at P = N K is over twice "
                               "that at double of it"),
        Claim.greater("test_error", 0.5, 0.1, **NOISY,
                      sentence="Trained with label noise, the test error rises towards "
                               "the threshold"),
        # A claim is told in its own direction: from the threshold onward the error
        # falls.
        Claim.less("test_error", 8.0, 0.5, **NOISY,
                   sentence="Trained with label noise, the test error falls again "
                            "beyond the threshold",
                   answer=Answer(supported="with noisy labels the test error falls "
                                           "again once there are more parameters than "
                                           "labels to fit",
                                 refuted="with noisy labels the test error does not "
                                         "fall again beyond the threshold",
                                 open="whether with noisy labels the error falls again "
                                      "after its peak")),
        Claim.greater("test_error", 1.0, 0.5, **NOISY,
                      sentence="The peak of trained networks stands at P = N K, like "
                               "that of their twin"),
    )  # fmt: skip
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(who="one course", setting=f"MNIST, {hidden:,} hidden units, one run",
                 quantity="test accuracy", value=accuracy, seeds=1, metric="test_accuracy",
                 where={"part": ONE, "hidden": str(hidden)},
                 fields={"data": "mnist", "epochs": 10})
        for hidden, accuracy in ((50, 0.9523), (2_000, 0.9816))
    )  # fmt: skip
    exercises: ClassVar[tuple[str, ...]] = (
        "Set noise=0. What remains of the peak of the trained networks, and what of "
        "that of their twin?",
        "Why does the peak of the random features stand at D = N and not at D = N K?",
        "Stop double descent after descent_epochs=20. Where did the peak go, and what "
        "does that say?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Belkin et al., Reconciling modern machine-learning practice and the "
        "bias-variance trade-off, 2019.",
        "Nakkiran et al., Deep double descent, ICLR 2020, arXiv:1912.02292.",
        "Belkin, Hsu, Xu, Two models of double descent for weak features, 2020, "
        "arXiv:1903.07571.",
    )

    def validate(self) -> None:
        """Check every number, every network and the name of the data, before any work."""
        data.check_image_set(self.data)
        for key in (
            "epochs",
            "batch_size",
            "learning_rate",
            "samples",
            "pixels",
            "descent_epochs",
        ):
            if not 0 < getattr(self, key) < float("inf"):
                raise UsageError(
                    f"{key}={getattr(self, key)} is impossible: it must "
                    "be above 0 and finite."
                )
        if not (self.hidden or (self.ratios and self.noise)):
            raise UsageError(
                "There is nothing to run: give hidden, or ratios and "
                "noise, or all of them."
            )
        for key in ("ratios", "noise", "hidden"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise UsageError(
                    f"{key} names each value once; one of them is given twice."
                )
        if not all(0 < r <= 100 for r in self.ratios) or not all(
            0 <= n <= 1 for n in self.noise
        ):
            raise UsageError(
                "ratios must be above 0 and at most 100, and noise from 0 to 1."
            )
        for hidden in self.hidden:
            models.parse_widths(f"{PIXELS**2}-{hidden}-10")

    def conditions(self) -> list[Condition]:
        """Networks by size, then trained networks and random features through the
        threshold.
        """
        # they have ten classes; those of your data are counted
        known = self.data in data.image_set_names()
        classes = 10 if known or not self.hidden else len(data.load(self.data).classes)
        sizes = {
            h: models.parameter_count(f"{PIXELS**2}-{h}-{classes}") for h in self.hidden
        }
        found = []
        for hidden, size in sorted(
            sizes.items(), key=lambda item: (item[0].count("-"), item[1])
        ):
            part = (
                ONE if hidden.isdecimal() else f"{hidden.count('-') + 1} hidden layers"
            )
            large = MANY if size > 10_000 else "up to 10,000"
            found.append(
                Condition(part=part, hidden=hidden, parameters=size, size=large)
            )
        for part in (DESCENT, FEATURES):
            found += [
                Condition(part=part, noise=n, ratio=ratio)
                for n in self.noise
                for ratio in self.ratios
            ]
        return found

    def data_sets(self) -> tuple[str, ...]:
        """The images."""
        return (self.data,)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        if condition["part"] == FEATURES:
            raise UsageError(
                f"No network is trained where part={FEATURES}: random "
                "features are solved for."
            )
        train = self._images(condition, "train")
        hidden = condition.get("hidden") or self._units(condition, len(train.classes))
        return _network(str(hidden), train).build()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        train = self._images(trial.condition, "train")
        if "hidden" in trial.condition:
            return "cross_entropy", (train.normalize(train.images), train.labels)
        chosen = self._chosen(train, lab)
        return "cross_entropy", (
            chosen.normalize(chosen.images),
            self._labels(chosen, trial, lab),
        )

    def _images(self, condition: Condition, split: str) -> Any:
        side = PIXELS if "hidden" in condition else self.pixels
        return data.load(self.data, split=split, size=side, channels=1)

    def _chosen(self, train: Any, lab: Seeds) -> Any:
        """One choice of images for all seeds and sizes, so that replicas can share
        them.
        """
        if self.samples >= len(train):
            raise UsageError(
                f"samples={self.samples} is too many: {self.data} has "
                f"{len(train):,} images."
            )
        return train.hold_out(self.samples, seed=lab.shared_seed("samples"))[1]

    def _labels(self, train: Any, trial: Trial, lab: Seeds) -> Any:
        """The labels of one seed, a share of them drawn anew."""
        seed = lab.seed(trial, "labels", by=("noise",))
        share = float(trial.condition["noise"])
        return data.corrupt(
            train.labels, share, classes=len(train.classes), seed=seed
        ).labels

    def _units(self, condition: Condition, classes: int) -> int:
        """How wide one hidden layer is for the condition's ratio."""
        inputs = self.pixels**2
        wanted = (
            float(condition["ratio"]) * self.samples * classes / (inputs + 1 + classes)
        )
        return max(1, round(wanted))

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one network on all images, or one on few with noisy labels, or solve
        for random features.
        """
        condition = trials.condition
        train, test = (self._images(condition, split) for split in ("train", "test"))
        for note in (*train.notes, *test.notes):
            lab.note(note)
        if "hidden" in condition:
            self._grow(condition, train, test, trials, lab)
            return
        train = self._chosen(train, lab)
        labels = [self._labels(train, trial, lab) for trial in trials]
        part = self._descend if condition["part"] == DESCENT else self._solve
        part(condition, (train, test), labels, trials, lab)

    def _grow(
        self, condition: Condition, train: Any, test: Any, trials: Trials, lab: Lab
    ) -> None:
        """Train one size on all images."""
        result = lab.train(
            _network(str(condition["hidden"]), train),
            (train.images, train.labels),
            training.Recipe(
                optimizer=training.Adam(learning_rate=self.learning_rate),
                precision="auto",
                **_options(train, test, self.epochs, self.batch_size, evaluations=5),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        for k, trial in enumerate(trials):
            scores = {
                name: float(values[k, -1])
                for name, values in result.evaluations.items()
            }
            gap = scores["train_accuracy"] - scores["test_accuracy"]
            lab.record(
                trial, **scores, accuracy_gap=gap, converged=bool(result.converged[k])
            )

    def _descend(
        self, condition: Condition, sets: Any, labels: Any, trials: Trials, lab: Lab
    ) -> None:
        """Train one hidden layer on few images, as wide as the ratio says, to the end."""
        import torch

        train, test = sets
        inputs, classes = self.pixels**2, len(train.classes)
        units = self._units(condition, classes)
        result = lab.train(
            _network(str(units), train),
            (train.images, torch.stack(labels)),
            training.Recipe(
                optimizer=training.Adam(learning_rate=RATE),
                own_labels=True,
                **_options(train, test, self.descent_epochs, BATCH, evaluations=1),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        size = models.parameter_count(f"{inputs}-{units}-{classes}")
        for k, trial in enumerate(trials):
            scores = {
                name: float(values[k, -1])
                for name, values in result.evaluations.items()
            }
            lab.record(
                trial,
                **{
                    f"{s}_error": 1 - scores.pop(f"{s}_accuracy")
                    for s in ("train", "test")
                },
            )
            lab.record(trial, **scores, fitted_parameters=size)

    def _solve(
        self, condition: Condition, sets: Any, labels: Any, trials: Trials, lab: Lab
    ) -> None:
        """Fit random features by least squares."""
        from torch.nn.functional import one_hot

        train, test = sets
        count, classes = (
            max(1, round(float(condition["ratio"]) * len(train))),
            len(train.classes),
        )
        x, x_test = train.normalize(train.images), train.normalize(test.images)
        for trial, own in zip(trials, labels, strict=True):
            # The mean is taken off, so that the features need not carry it.
            goal, truth = (
                one_hot(y, classes).double() - 1 / classes for y in (own, test.labels)
            )
            generator = training.generator(lab.seed(trial, "directions"))
            model = models.RandomFeatures.fit(
                x, goal, features=count, generator=generator
            )
            for name, images, y, wanted in (
                ("train", x, own, goal),
                ("test", x_test, test.labels, truth),
            ):
                outputs = model(images)
                lab.record(
                    trial,
                    **{
                        f"{name}_error": float((outputs.argmax(1) != y).double().mean())
                    },
                )
                lab.record(
                    trial, **{f"{name}_mse": float((outputs - wanted).square().mean())}
                )
            lab.record(trial, fitted_parameters=count * classes)

    def active_claims(self) -> tuple[Claim, ...]:
        """The claims whose sizes, ratios and noise occur; published values where the
        setting is theirs.
        """
        widths = sorted(int(hidden) for hidden in self.hidden if hidden.isdecimal())
        theirs = (
            self.data == "mnist" and self.epochs == 10 and {50, 2000} <= set(widths)
        )
        places = {"50": 0, "500": (len(widths) - 1) // 2, "2000": -1}
        found = []
        for claim, levels in (
            (claim, [claim.first, claim.second]) for claim in self.claims
        ):
            if claim.by == "hidden" and len(widths) > 2:
                first, second = (str(widths[places[str(level)]]) for level in levels)
                said = claim.published if theirs else None
                found.append(replace(claim, first=first, second=second, published=said))
            elif claim.by == "parameters" or (
                set(levels) <= {*self.ratios} and 0.2 in self.noise
            ):
                found.append(claim)
        return tuple(found)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Saying the most frequent class of the training labels; for losses, saying the
        classes' shares.
        """
        import torch

        train, test = (data.load(self.data, split=split) for split in ("train", "test"))
        shares = torch.bincount(
            train.labels, minlength=len(train.classes)
        ).double() / len(train)
        hit, blind = (
            float((test.labels == shares.argmax()).double().mean()),
            -shares[test.labels].log(),
        )
        mse = float(
            (shares.square().sum() - 2 * shares[test.labels] + 1).mean() / len(shares)
        )
        scores = {"test_accuracy": hit, "test_error": 1 - hit}
        scores |= {"test_loss": float(blind.mean()), "test_mse": mse}
        return {
            metric: {"the classes' shares": score} for metric, score in scores.items()
        }

    def figures(self, records: Records) -> dict[str, plots.Figure]:
        """Accuracy, loss and gap against parameters; the test error through the
        interpolation threshold.
        """
        sizes = Records(record for record in records if "hidden" in record.condition)
        through = Records(record for record in records if "ratio" in record.condition)
        names = {
            f"{s}_{kind}": s
            for s in ("train", "test")
            for kind in ("accuracy", "loss", "error")
        }
        found, both = {}, {k: [f"train_{k}", f"test_{k}"] for k in ("accuracy", "loss")}
        if self.hidden:
            found["sizes"] = plots.trend(
                sizes, both, color_by="part", names=names, title="Training and test against parameters",
                caption="Equal epochs for all, which is not convergence. See where "
                        "each line levels off.",
            )  # fmt: skip
            found["gap"] = plots.trend(
                sizes, "accuracy_gap", color_by="part", horizontal={"no gap": 0.0},
                y_label="training less test accuracy", title="The gap between training "
                                                             "and test",
            )  # fmt: skip
        if self.ratios and self.noise:
            axis: Any = {
                "x": "ratio",
                "color_by": "noise",
                "vertical": {"P = N K": 1.0},
            }
            found["descent"] = plots.trend(
                through, ["train_error", "test_error"], **axis, panel_by="part", names=names,
                x_label="parameters / (samples x classes)", y_label="share of errors",
                title="Errors through the interpolation threshold",
                caption="Test errors count against the true labels, training errors "
                        "against the noisy ones.",
            )  # fmt: skip
            found["twin"] = plots.trend(
                through.where(part=FEATURES), "test_mse", **axis, log_y=True, y_label="test error (MSE)",
                x_label="random features / samples", title="The analytic twin: random "
                                                           "features",
            )  # fmt: skip
        return found


def _network(hidden: str, train: Any) -> training.Supervised:
    """A dense network with these hidden layers for these images."""
    size, classes = train.images.shape[-1], len(train.classes)
    layers = f"{size**2}-{hidden}-{classes}"
    return training.Supervised(
        lambda: models.image_network(layers, size=size, classes=classes),
        "cross_entropy",
    )


def _options(
    train: Any, test: Any, epochs: int, batch_size: int, *, evaluations: int
) -> dict[str, Any]:
    """What both parts train with."""
    steps = epochs * -(-len(train) // batch_size)
    return {
        "prepare": train.normalize,
        "held_out": {"test": (test.images, test.labels)},
        "steps": steps,
        "batch_size": min(batch_size, len(train)),
        "converged": training.Plateau(window_steps=max(1, steps // 5)),
        "eval_every": max(1, steps // evaluations),
    }
