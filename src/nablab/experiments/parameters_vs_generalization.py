"""Networks of growing size learn images.

What happens to the test error, also through double descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log10
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nablab import data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Published,
    Records,
    Reported,
    Seeds,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.errors import UsageError
from nablab.settings import Distinct, Epochs, Gt, Le, Pixels, Positive, Samples, Share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.data import ImageSet
    from nablab.training import Outcome, Training

ONE, DESCENT, FEATURES = "one hidden layer", "trained networks", "random features"
MANY = "above 10,000"
WIDTHS = ("50", "100", "200", "300", "500", "750", "1000", "1250", "1500", "2000")
# From 4,079 to 491,360 parameters in course C, of which it names the two ends.
PAIRS = ("5-9", "10-20", "20-40", "50-90", "120-200", "350-600")
TAPERED = tuple(f"{2 * i}-{i}" for i in range(1, 12))
# Of a side, for every data set: 784 inputs give the numbers of the courses.
PIXELS = 28
# For double descent: 150 passes then fit all labels where the network can.
BATCH, RATE = 100, 3e-3
Ratio = Annotated[float, Gt(0), Le(100)]
# Denser around 1, where parameters just suffice to fit every label.
RATIOS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
# The metrics that saying what the labels alone say is scored in.
TRIVIAL = ("test_accuracy", "test_error", "test_loss", "test_mse")
SPLIT_OF = {
    f"{split}_{kind}": split
    for split in ("train", "test")
    for kind in ("accuracy", "loss", "error")
}

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

    data: ImagesField = "mnist"
    hidden: Annotated[tuple[str, ...], Distinct(least=0)] = (*WIDTHS, *PAIRS)
    epochs: Epochs = 10
    batch_size: Samples = 600
    learning_rate: Positive = 1e-3
    ratios: Annotated[tuple[Ratio, ...], Distinct(least=0)] = RATIOS
    noise: Annotated[tuple[Share, ...], Distinct(least=0)] = (0.0, 0.2)
    samples: Samples = 1_000
    pixels: Pixels = 8
    descent_epochs: Epochs = 150

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "hidden": ("3", "10", "20", "50", "100", "200"),
            "batch_size": 100,
            "epochs": 15,
            "ratios": (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 8.0),
            "noise": (0.2,),
            "samples": 500,
            "seeds": 5,
        },
        "standard": {"seeds": 5},
        "paper": {
            "hidden": (*WIDTHS, *PAIRS, *TAPERED),
            "samples": 2_000,
            "noise": (0.0, 0.1, 0.2),
            "descent_epochs": 500,
            "seeds": 10,
        },
        "converged": {
            "hidden": ("12", "50", "200", "500", "2000"),
            "epochs": 100,
            "ratios": (),
            "seeds": 5,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.rises(
            "accuracy_gap",
            by="parameters",
            within="part",
            where={"size": MANY},
            sentence="The gap between training and test accuracy widens with "
            "parameters (a course)",
        ),
        Claim.equal(
            "test_accuracy",
            by="parameters",
            margin=0.005,
            within="part",
            where={"size": MANY},
            sentence="Beyond 10,000 parameters nothing is gained: equal within 0.5 % "
            "(a course)",
        ),
        # These levels stand for the largest, middle and smallest network of a
        # configuration.
        Claim.greater(
            "test_accuracy",
            "2000",
            "50",
            **LARGEST,
            smallest_effect=0.005,
            published=Published(
                0.9816, "one course, one seed; 50 units: 0.9523", of="metric"
            ),
            sentence="The largest network has a higher test accuracy than the smallest",
            answer=Answer(
                supported="no, the largest network reads test images better than the "
                "smallest",
                refuted="the largest network does not read test images better than the "
                "smallest",
                open="whether the largest network generalizes better than the smallest",
            ),
        ),
        Claim.less(
            "train_loss",
            "2000",
            "500",
            **GROWN,
            sentence="From the middle to the largest network the training loss falls "
            "by a tenth",
        ),
        Claim.less(
            "test_loss",
            "2000",
            "500",
            **GROWN,
            sentence="From the middle to the largest network the test loss falls by a "
            "tenth as well",
        ),
        Claim.greater(
            "test_mse",
            1.0,
            0.5,
            **TWIN,
            sentence="Random features: the error at P = N K is over twice that at half "
            "of it",
        ),
        Claim.greater(
            "test_mse",
            1.0,
            2.0,
            **TWIN,
            sentence="Random features: the error at P = N K is over twice that at "
            "double of it",
        ),
        Claim.greater(
            "test_error",
            0.5,
            0.1,
            **NOISY,
            sentence="Trained with label noise, the test error rises towards the "
            "threshold",
        ),
        # A claim is told in its own direction: from the threshold onward the error
        # falls.
        Claim.less(
            "test_error",
            8.0,
            0.5,
            **NOISY,
            sentence="Trained with label noise, the test error falls again beyond the "
            "threshold",
            answer=Answer(
                supported="with noisy labels the test error falls again once there are "
                "more parameters than labels to fit",
                refuted="with noisy labels the test error does not fall again beyond "
                "the threshold",
                open="whether with noisy labels the error falls again after its peak",
            ),
        ),
        Claim.greater(
            "test_error",
            1.0,
            0.5,
            **NOISY,
            sentence="The peak of trained networks stands at P = N K, like that of "
            "their twin",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            who="one course",
            setting=f"MNIST, {hidden:,} hidden units, one run",
            quantity="test accuracy",
            value=accuracy,
            seeds=1,
            metric="test_accuracy",
            where={"part": ONE, "hidden": str(hidden)},
            fields={"data": "mnist", "epochs": 10},
        )
        for hidden, accuracy in ((50, 0.9523), (2_000, 0.9816))
    )
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
        """Check that there is something to run, and the networks' layers."""
        if not (self.hidden or (self.ratios and self.noise)):
            raise UsageError(
                "There is nothing to run: give hidden, or ratios and noise, or all of "
                "them."
            )
        for hidden in self.hidden:
            models.parse_widths(f"{PIXELS**2}-{hidden}-10")

    def conditions(self) -> list[Condition]:
        """List networks by size, then two kinds of models through the threshold."""
        through = [
            Condition(part=part, noise=noise, ratio=ratio)
            for part in (DESCENT, FEATURES)
            for noise in self.noise
            for ratio in self.ratios
        ]
        return [*self._sizes(), *through]

    def _sizes(self) -> list[Condition]:
        """List the networks, those of one hidden layer first, from small to large."""
        # Known sets have ten classes; those of your own data are counted.
        known = self.data in data.image_set_names()
        classes = 10 if known or not self.hidden else len(data.load(self.data).classes)
        sizes = {
            hidden: models.parameter_count(f"{PIXELS**2}-{hidden}-{classes}")
            for hidden in self.hidden
        }
        conditions = []
        for hidden in sorted(self.hidden, key=lambda h: (h.count("-"), sizes[h])):
            layers = hidden.count("-") + 1
            conditions.append(
                Condition(
                    part=ONE if hidden.isdecimal() else f"{layers} hidden layers",
                    hidden=hidden,
                    parameters=sizes[hidden],
                    size=MANY if sizes[hidden] > 10_000 else "up to 10,000",
                )
            )
        return conditions

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        if condition["part"] == FEATURES:
            raise UsageError(
                f"No network is trained where part={FEATURES}: random features are "
                "solved for."
            )
        train = self._images(condition, "train")
        hidden = condition.get("hidden") or self._units(condition, len(train.classes))
        return _network(str(hidden), train).build()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        train = self._images(trial.condition, "train")
        labels = train.labels
        if "hidden" not in trial.condition:
            train = self._chosen(train, lab)
            labels = self._labels(train, trial, lab)
        return "cross_entropy", (train.normalize(train.images), labels)

    def _images(self, condition: Condition, split: str) -> ImageSet:
        side = PIXELS if "hidden" in condition else self.pixels
        return data.load(self.data, split=split, size=side, channels=1)

    def _chosen(self, train: ImageSet, lab: Seeds) -> ImageSet:
        """Choose the few images of all seeds and sizes, so that replicas share them."""
        if self.samples >= len(train):
            raise UsageError(
                f"samples={self.samples} is too many: {self.data} has {len(train):,} "
                "images."
            )
        return train.hold_out(self.samples, seed=lab.shared_seed("samples"))[1]

    def _labels(self, train: ImageSet, trial: Trial, lab: Seeds) -> Tensor:
        """Return the labels of one seed, a share of them redrawn."""
        share = float(trial.condition["noise"])
        seed = lab.seed(trial, "labels", by=("noise",))
        classes = len(train.classes)
        return data.corrupt(train.labels, share, classes=classes, seed=seed).labels

    def _units(self, condition: Condition, classes: int) -> int:
        """Compute how wide one hidden layer is for the condition's ratio."""
        wanted = float(condition["ratio"]) * self.samples * classes
        return max(1, round(wanted / (self.pixels**2 + 1 + classes)))

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network on all images or on few, or solve for random features."""
        condition = trials.condition
        train, test = (self._images(condition, split) for split in ("train", "test"))
        lab.note(*train.notes, *test.notes)
        trivial = _trivial_scores(train.labels, test.labels, len(train.classes))
        for trial in trials:
            lab.array(trial, "trivial", list(trivial.values()))
        if "hidden" in condition:
            self._grow(train, test, trials, lab)
        elif condition["part"] == DESCENT:
            self._descend(self._chosen(train, lab), test, trials, lab)
        else:
            self._solve(self._chosen(train, lab), test, trials, lab)

    def _grow(self, train: ImageSet, test: ImageSet, trials: Trials, lab: Lab) -> None:
        """Train one size on all images."""
        result = lab.train(
            _network(str(trials.condition["hidden"]), train),
            (train.images, train.labels),
            training.Recipe(
                optimizer=training.Adam(learning_rate=self.learning_rate),
                precision="auto",
                **_options(train, test, self.epochs, self.batch_size, evaluations=5),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        for trial, scores, outcome in _scored(trials, result):
            gap = scores["train_accuracy"] - scores["test_accuracy"]
            lab.record(trial, **scores, accuracy_gap=gap, converged=outcome.converged)

    def _descend(
        self, train: ImageSet, test: ImageSet, trials: Trials, lab: Lab
    ) -> None:
        """Train one hidden layer on few images, as wide as the ratio says."""
        import torch

        inputs, classes = self.pixels**2, len(train.classes)
        units = self._units(trials.condition, classes)
        labels = torch.stack([self._labels(train, trial, lab) for trial in trials])
        result = lab.train(
            _network(str(units), train),
            (train.images, labels),
            training.Recipe(
                optimizer=training.Adam(learning_rate=RATE),
                per_replica_targets=True,
                **_options(train, test, self.descent_epochs, BATCH, evaluations=1),
            ),
            seeds=[lab.seed(trial, "weights") for trial in trials],
        )
        size = models.parameter_count(f"{inputs}-{units}-{classes}")
        for trial, scores, _ in _scored(trials, result):
            lab.record(
                trial,
                train_error=1 - scores.pop("train_accuracy"),
                test_error=1 - scores.pop("test_accuracy"),
            )
            lab.record(trial, **scores, fitted_parameters=size)

    def _solve(self, train: ImageSet, test: ImageSet, trials: Trials, lab: Lab) -> None:
        """Fit random features by least squares."""
        from torch.nn.functional import one_hot

        classes = len(train.classes)
        count = max(1, round(float(trials.condition["ratio"]) * len(train)))
        x, x_test = train.normalize(train.images), train.normalize(test.images)
        for trial in lab.each(trials):
            own = self._labels(train, trial, lab)
            # The mean is taken off, so that the features need not carry it.
            goal, truth = (
                one_hot(y, classes).double() - 1 / classes for y in (own, test.labels)
            )
            generator = training.generator(lab.seed(trial, "directions"))
            model = models.RandomFeatures.fit(
                x, goal, features=count, generator=generator
            )
            for name, images, labels, wanted in (
                ("train", x, own, goal),
                ("test", x_test, test.labels, truth),
            ):
                outputs = model(images)
                wrong = (outputs.argmax(1) != labels).double().mean()
                squared = (outputs - wanted).square().mean()
                lab.record(trial, **{f"{name}_error": float(wrong)})
                lab.record(trial, **{f"{name}_mse": float(squared)})
            lab.record(trial, fitted_parameters=count * classes)

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims whose sizes, ratios and noise are run.

        Claims on widths are made of the widths that there are; what is published stands
        beside its own setting only.
        """
        widths = sorted(int(hidden) for hidden in self.hidden if hidden.isdecimal())
        published = {50, 2000} <= set(widths) and self.epochs == 10
        places = {"50": 0, "500": (len(widths) - 1) // 2, "2000": -1}
        claims = []
        for claim in self.claims:
            levels = claim.first, claim.second
            if claim.by == "hidden" and len(widths) > 2:
                first, second = (str(widths[places[str(level)]]) for level in levels)
                theirs = published and self.data == "mnist"
                said = claim.published if theirs else None
                claim = replace(claim, first=first, second=second, published=said)
                claims.append(claim)
            elif claim.by == "parameters" or (
                {*levels} <= {*self.ratios} and 0.2 in self.noise
            ):
                claims.append(claim)
        return tuple(claims)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score saying the most frequent class.

        For losses it is the shares of the classes that are said.
        """
        trivial = records.shared_array("trivial")
        if trivial is None:
            return {}
        scores = zip(TRIVIAL, map(float, trivial), strict=True)
        return {metric: {"the classes' shares": score} for metric, score in scores}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw scores against parameters, and errors through the threshold.

        It is the interpolation threshold.
        """
        sizes = Records(record for record in records if "hidden" in record.condition)
        through = Records(record for record in records if "ratio" in record.condition)
        figures = _figures_of_sizes(sizes) if self.hidden else {}
        if self.ratios and self.noise:
            figures |= _figures_of_descent(through)
        return figures


def _figures_of_sizes(records: Records) -> dict[str, Figure]:
    """Draw accuracy, loss and gap against parameters."""
    return {
        "sizes": plots.trend(
            records,
            {
                "accuracy": ["train_accuracy", "test_accuracy"],
                "loss": ["train_loss", "test_loss"],
            },
            color_by="part",
            names=SPLIT_OF,
            title="Training and test against parameters",
            caption="Equal epochs for all, which is not convergence. See where each "
            "line levels off.",
        ),
        "gap": plots.trend(
            records,
            "accuracy_gap",
            color_by="part",
            horizontal={"no gap": 0.0},
            y_label="training less test accuracy",
            title="The gap between training and test",
        ),
    }


def _figures_of_descent(records: Records) -> dict[str, Figure]:
    """Draw the errors through the interpolation threshold.

    Their analytic twin is drawn beside.
    """
    threshold = {"P = N K": 1.0}
    return {
        "descent": plots.trend(
            records,
            ["train_error", "test_error"],
            x="ratio",
            color_by="noise",
            vertical=threshold,
            panel_by="part",
            names=SPLIT_OF,
            x_label="parameters / (samples x classes)",
            y_label="share of errors",
            title="Errors through the interpolation threshold",
            caption="Test errors count against the true labels, training errors "
            "against the noisy ones.",
        ),
        "twin": plots.trend(
            records.where(part=FEATURES),
            "test_mse",
            x="ratio",
            color_by="noise",
            vertical=threshold,
            log_y=True,
            y_label="test error (MSE)",
            x_label="random features / samples",
            title="The analytic twin: random features",
        ),
    }


def _network(hidden: str, train: ImageSet) -> training.Supervised:
    """Build a dense network with these hidden layers for these images."""
    size, classes = train.images.shape[-1], len(train.classes)
    layers = f"{size**2}-{hidden}-{classes}"
    return training.Supervised(
        lambda: models.image_network(layers, size=size, classes=classes),
        "cross_entropy",
    )


def _scored(
    trials: Trials, result: Training
) -> Iterator[tuple[Trial, dict[str, float], Outcome]]:
    """Give each trial its scores at the last evaluation, NaN if it diverged before."""
    for place, (trial, outcome) in enumerate(zip(trials, result, strict=True)):
        scores = {
            name: float(values[place, -1])
            for name, values in result.evaluations.items()
        }
        yield trial, scores, outcome


def _trivial_scores(train: Tensor, test: Tensor, classes: int) -> dict[str, float]:
    """Compute, by metric, the scores of saying what the training labels alone say."""
    import torch

    shares = torch.bincount(train, minlength=classes).double() / len(train)
    hit = float((test == shares.argmax()).double().mean())
    squared = shares.square().sum() - 2 * shares[test] + 1
    values = (
        hit,
        1 - hit,
        float(-shares[test].log().mean()),
        float(squared.mean() / classes),
    )
    return dict(zip(TRIVIAL, values, strict=True))


def _options(
    train: ImageSet,
    test: ImageSet,
    epochs: int,
    batch_size: int,
    *,
    evaluations: int,
) -> dict[str, Any]:
    """Return the options that both parts train with."""
    steps = epochs * training.steps_per_epoch(len(train), batch_size)
    return {
        "prepare": train.normalize,
        "held_out": {"test": (test.images, test.labels)},
        "steps": steps,
        "batch_size": min(batch_size, len(train)),
        "converged": training.Plateau(window_steps=max(1, steps // 5)),
        "eval_every": max(1, steps // evaluations),
    }
