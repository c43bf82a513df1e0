"""Networks written in NumPy alone, from the gradient to the convolution, read digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from nablab import data, metrics, models, plots
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
from nablab.models.images import check_image_network
from nablab.settings import Distinct, Epochs, Ge, Gt, Le, Lt, Pixels, Positive, Samples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.baselines import TorchLearner
    from nablab.data import ImageSet, Task
    from nablab.from_scratch.dense import Array
    from nablab.from_scratch.learner import Batches, Learner

DENSE: Final = "dense"
CNN: Final = "cnn"
NUMPY: Final = "numpy"
TORCH: Final = "torch"
SINGLE: Final = "float32"
DOUBLE: Final = "float64"
NAMES = {
    (NUMPY, SINGLE): "NumPy",
    (TORCH, SINGLE): "PyTorch",
    (NUMPY, DOUBLE): "NumPy, float64",
}
# By way of computing, the metric that holds the milliseconds of a step.
STEPS = {
    (NUMPY, SINGLE): "milliseconds_numpy",
    (TORCH, SINGLE): "milliseconds_torch",
    (NUMPY, DOUBLE): "milliseconds_float64",
}
# The test accuracies whose first crossing is timed.
THRESHOLDS = (0.97, 0.98, 0.99)
# Training images that are scored, and images that a figure shows.
TRAIN_SAMPLES, SHOWN = 10_000, 10
# Steps after which the weights of both libraries are compared, and timed steps.
COMPARED_STEPS, RACED_STEPS = 10, 40
PLAIN: Mapping[str, Any] = {"library": NUMPY, "precision": SINGLE}
Units = Annotated[int, Ge(0), Le(100_000)]
Filters = Annotated[int, Gt(0), Le(10_000)]


@dataclass(frozen=True)
class NumpyDigits(Experiment):
    """Does a network written in NumPy alone read digits as well as PyTorch's?

    A network is arithmetic. A layer multiplies a matrix of weights by a column of
    pixels and adds a bias, z = W x + b. Negative values become 0. The ten outputs
    become probabilities, and the loss is -log p of the right digit: a network that
    gives it 0.7 pays 0.36. Backpropagation carries the slope of the loss back, layer by
    layer, and each weight takes a small step down. Nothing else is needed, and
    ``nablab.from_scratch`` writes it out: a dense network with one hidden layer, and a
    convolutional one. There each window of 5 x 5 pixels becomes a column of 25 numbers
    (im2col), so that a convolution is one product of matrices, too.

    PyTorch does the same with derivatives that it finds itself. Here both start from
    the same weights and see the same batches. Their numbers still differ in the last
    digit, since sums are added up in another order, and training lets such differences
    grow. So the weights are compared after ten steps, and the accuracies at the end.

    Two traps. First, the score on the training images, which course D reported, is of
    images that the network has learned: the test images tell how it reads new ones.
    Second, float64. Where NumPy's arrays come from ``rng.normal`` or a division by 255
    they have 64 bits, and nobody notices: the answers stay right. The condition float64
    shows what it costs and what it gains.

    What to look for. How soon are the test images read, and how far above lies the
    score on the training images? Which digits are left, and would you read them?
    ``seconds`` are those of training one network on one thread of the CPU, without
    evaluations, on the machine at hand. ``float64_cost`` and ``numpy_cost`` are ratios
    of the fastest of many steps that all ways of computing took by turns: what else the
    machine did matters little.

    What to expect (standard). The dense network reads 98.3 % of the test images and
    99.8 % of its training images, the convolutional one 99.3 and 99.9 %. After ten
    steps the weights of both libraries are 0.00000004 of their length apart (dense) and
    0.000001 (convolutional). float64 takes 1.8 to 1.9 times as long and reads no image
    more. On one thread a step of the convolutional network takes 0.9 of PyTorch's time,
    one of the dense network 0.5: nearly all of it goes into products of matrices, which
    neither computes in Python, and around small products NumPy has less to do. The
    dense network reads 97 % after one second and 98 % after three, the convolutional
    one 99 % after 25.

    Settings were chosen on 10,000 images held out of MNIST's training split, where
    learning rates of 0.06 and 0.1 lost up to half a point. Standard takes half an hour
    on one core, and half of that on two.

    Attributes:
        data: mnist, fashion-mnist, digits, or yours: a folder or a file.npz;
            mnist@10000 for fewer.
        networks: dense, cnn or both.
        libraries: numpy, torch or both.
        precisions: float32, float64 or both. float64 trains the dense network in NumPy
            alone; what it costs is measured in both networks.
        size: Height and width in pixels to which images are brought.
        channels: 1 for gray, 3 for color.
        hidden_units: Of the dense network; 0 leaves the hidden layer out, which is
            softmax regression.
        filters: Of the two convolutions.
        kernel: Pixels of a side of a filter.
        cnn_units: Units of a dense layer after the convolutions; 0 leaves it out.
        activation: relu or sigmoid.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Learning rate of the first step.
        decay: linear: the learning rate falls in a line to 0; none: it stays.
        momentum: How much of the last step is kept in the next.
        evaluations: How often both splits are scored.
        equal_margin: The relative difference of two accuracies that counts as equal.
    """

    topic: ClassVar[str] = "from scratch"

    data: ImagesField = "mnist"
    networks: Annotated[tuple[Literal["dense", "cnn"], ...], Distinct()] = (DENSE, CNN)
    libraries: Annotated[tuple[Literal["numpy", "torch"], ...], Distinct()] = (
        NUMPY,
        TORCH,
    )
    precisions: Annotated[tuple[Literal["float32", "float64"], ...], Distinct()] = (
        SINGLE,
        DOUBLE,
    )
    size: Pixels = 28
    channels: Literal[1, 3] = 1
    hidden_units: Units = 256
    filters: tuple[Filters, Filters] = (8, 32)
    kernel: Annotated[int, Gt(0), Le(64)] = 5
    cnn_units: Units = 100
    activation: Literal["relu", "sigmoid"] = "relu"
    epochs: Epochs = 6
    batch_size: Samples = 64
    learning_rate: Positive = 0.03
    decay: Literal["linear", "none"] = "linear"
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    evaluations: Annotated[int, Gt(0), Le(1_000)] = 12
    equal_margin: Positive = 0.003

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "size": 20,
            "epochs": 8,
            "evaluations": 8,
            "equal_margin": 0.01,
            "seeds": 9,
        },
        "standard": {"seeds": 9},
        # As Nielsen 2015, chapter 6: 50,000 images, sigmoid units, batches of 10, no
        # momentum. His weights start larger than these.
        "paper": {
            "data": "mnist@50000",
            "libraries": (NUMPY,),
            "precisions": (SINGLE,),
            "hidden_units": 100,
            "filters": (20, 40),
            "activation": "sigmoid",
            "epochs": 60,
            "batch_size": 10,
            "learning_rate": 0.1,
            "decay": "none",
            "momentum": 0.0,
            "evaluations": 60,
            "seeds": 8,
        },
        # 8 x 8 pixels and ten outputs: 650 parameters. How course D trained is not
        # known; 200 epochs reach its score.
        "course-d": {
            "data": "digits",
            "networks": (DENSE,),
            "size": 8,
            "hidden_units": 0,
            "epochs": 200,
            "evaluations": 50,
            "equal_margin": 0.01,
            "seeds": 8,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.equal(
            "test_accuracy",
            by="library",
            margin=0.003,
            within="network",
            where={"precision": SINGLE},
            sentence="NumPy and PyTorch read test images equally well",
            answer=Answer(
                supported="in NumPy a network reads as well as in PyTorch",
                refuted="in NumPy a network does not read as well as in PyTorch",
                open="whether NumPy and PyTorch read equally well",
            ),
        ),
        Claim.at_most(
            "weight_distance",
            1e-5,
            within="network",
            where=PLAIN,
            scale="log10",
            quantity="distance of the weights, relative to their length",
            sentence=f"After {COMPARED_STEPS} steps the weights of NumPy and PyTorch "
            "are 0.00001 of their length apart at most",
        ),
        Claim.greater(
            "test_accuracy",
            CNN,
            DENSE,
            by="network",
            where=PLAIN,
            smallest_effect=0.002,
            published=Published(0.9906 - 0.9780, "Nielsen 2015, sigmoid units"),
            sentence="The convolutional network reads test images better than the "
            "dense one",
            answer=Answer(
                supported="convolutions read better than a dense layer",
                refuted="convolutions do not read better than a dense layer",
                open="whether convolutions read better",
            ),
        ),
        Claim.at_least(
            "overstated",
            0.0,
            within="network",
            where=PLAIN,
            smallest_effect=0.001,
            quantity="training minus test accuracy",
            sentence="The training accuracy promises more than the test accuracy keeps "
            "(course D reported it)",
            answer=Answer(
                supported="the training accuracy overstates what a network reads",
                refuted="the training accuracy does not overstate",
                open="whether the training accuracy overstates",
            ),
        ),
        Claim.at_least(
            "float64_cost",
            1.3,
            within="network",
            where=PLAIN,
            scale="log10",
            quantity="time of a step in float64 over that in float32",
            sentence="A step in float64 takes at least 1.3 times as long as in float32",
            answer=Answer(
                supported="float64 costs time",
                refuted="float64 costs hardly any time",
                open="whether float64 costs time",
            ),
        ),
        Claim.at_most(
            "numpy_cost",
            2.0,
            within="network",
            where=PLAIN,
            scale="log10",
            quantity="time of a step in NumPy over that in PyTorch",
            sentence="On one thread a step in NumPy takes at most twice as long as in "
            "PyTorch",
        ),
        Claim.equal(
            "test_accuracy",
            by="precision",
            margin=0.003,
            where={"library": NUMPY, "network": DENSE},
            sentence="float64 reads test images no better and no worse than float32",
        ),
        *(
            Claim.at_least(
                "test_accuracy",
                accuracy,
                where={"network": network, **PLAIN},
                sentence=f"In NumPy {words} reads {accuracy:.0%} of the test images",
            )
            for network, accuracy, words in (
                (DENSE, 0.98, "the dense network"),
                (CNN, 0.99, "the convolutional network"),
            )
        ),
        *(
            Claim.at_most(
                f"seconds_to_{100 * accuracy:.0f}",
                seconds,
                where={"network": network, **PLAIN},
                scale="ranks",
                sentence=f"{words} in NumPy reads {accuracy:.0%} within {seconds} "
                "seconds of training",
            )
            for network, accuracy, seconds, words in (
                (DENSE, 0.97, 4, "The dense network"),
                (DENSE, 0.98, 8, "The dense network"),
                (CNN, 0.99, 90, "The convolutional network"),
            )
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="8 x 8 digits, 650 parameters; the images it was trained on",
            quantity="training accuracy",
            value=0.9978,
            metric="train_accuracy",
            where={"network": DENSE, **PLAIN},
            fields={"data": "digits", "size": 8, "hidden_units": 0},
        ),
        *(
            Reported(
                who="Nielsen 2015",
                source=f"chapter {chapter}",
                setting=setting,
                quantity=f"{split} accuracy",
                value=value,
                seeds=3,
            )
            for chapter, setting, split, value in (
                (1, "MNIST, 784-30-10, squared error, best epoch", "test", 0.9542),
                (1, "MNIST, 784-100-10, squared error, best epoch", "test", 0.9659),
            )
        ),
        Reported(
            who="Nielsen 2015",
            source="chapter 3",
            setting="MNIST, 784-100-10, cross-entropy, L2 penalty, 60 epochs",
            quantity="validation accuracy",
            value=0.9804,
        ),
        *(
            Reported(
                who="Nielsen 2015",
                source="chapter 6",
                setting=f"MNIST, {setting}, sigmoid, softmax, 60 epochs, epoch of the "
                "best validation accuracy",
                quantity="test accuracy",
                value=value,
                seeds=3,
                metric="test_accuracy",
                where={"network": network, **PLAIN},
                fields={
                    "data": "mnist@50000",
                    "activation": "sigmoid",
                    "batch_size": 10,
                    "epochs": 60,
                },
            )
            for network, setting, value in (
                (DENSE, "784-100-10", 0.9780),
                (CNN, "convolutions of 20 and 40 filters, 100 units", 0.9906),
            )
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Derive the slope of the loss by the logits, p minus 1 at the right class. "
        "Where does the exponential go?",
        "Count the columns that im2col makes of one image, and the numbers in them. "
        "How many times the image is that?",
        "Set hidden_units=0. Which digits does softmax regression confuse, and what do "
        "its ten rows of weights look like?",
        "Set batch_size=8 and batch_size=512. Which is faster for an epoch, and which "
        "reaches 97 % first?",
        "Write a dropout layer for nablab.from_scratch. What must its backward pass "
        "remember?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Nielsen, Neural Networks and Deep Learning, Determination Press, 2015.",
        "Rumelhart, Hinton, Williams, Learning representations by back-propagating "
        "errors, Nature 1986.",
        "Chellapilla, Puri, Simard, High performance convolutional neural networks for "
        "document processing, 2006.",
    )

    def validate(self) -> None:
        """Check that something is run, that layers leave pixels, and batches fit."""
        if not self.conditions():
            raise UsageError(
                "There is nothing to train: float64 is for the dense network in NumPy "
                "alone. Add float32 to precisions."
            )
        task = self.task
        for name in self.networks:
            check_image_network(
                self._layers(name),
                channels=self.channels,
                size=self.size,
                classes=task.outputs,
            )
        data.check_batches(self.data, task.train_samples, [self.batch_size])

    def conditions(self) -> list[Condition]:
        """Combine networks, libraries and precisions; see `precisions`."""
        return [
            Condition(network=network, library=library, precision=precision)
            for network in self.networks
            for library, precision in NAMES
            if library in self.libraries
            and precision in self.precisions
            and (network, precision) != (CNN, DOUBLE)
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Select the claims of what is run; times and scores are claimed of MNIST."""
        mnist = data.data_set_of(self.data) == "mnist"
        return tuple(
            replace(
                claim,
                margin=self.equal_margin if claim.kind == "equality" else 0.0,
                published=claim.published if mnist else None,
            )
            for claim in super().active_claims()
            if self._makes(claim)
        )

    def _makes(self, claim: Claim) -> bool:
        """Tell whether there are two levels to be equal, and scores that are claimed."""
        if claim.kind == "equality":
            found = [c for c in self.conditions() if c.matches(claim.where)]
            return len({c[claim.by] for c in found}) > 1
        claims_score = claim.kind == "bound" and "network" in claim.where
        return not claims_score or bool(self._timed)

    @property
    def _timed(self) -> tuple[float, ...]:
        """The test accuracies that are claimed and timed: of all of MNIST, with ReLU."""
        claimed = self.data == "mnist" and self.activation == "relu"
        return THRESHOLDS if claimed else ()

    @property
    def task(self) -> Task:
        """The images in their form."""
        return data.image_task(self.data, size=self.size, channels=self.channels)

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`: the network as PyTorch has it."""
        return models.image_network(
            self._layers(str(condition["network"])),
            channels=self.channels,
            size=self.size,
            classes=self.task.outputs,
            activation=self.activation,
        )

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`."""
        train = self.task.images()
        return "cross_entropy", (train.normalize(train.images), train.labels)

    def _layers(self, name: str) -> str:
        """Write a network as `nablab.models.image_network` takes it."""
        first, second = self.filters
        size = self.kernel
        convolutions = f"conv{first}k{size}-pool-conv{second}k{size}-pool"
        front, units = {
            DENSE: ("flatten", self.hidden_units),
            CNN: (convolutions, self.cnn_units),
        }[name]
        return f"{front}-{units}" if units else front

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train a network per seed, step by step, and score it as it learns."""
        import numpy as np

        train, test = self.task.images(), self.task.images("test")
        lab.note(*train.notes, *test.notes)
        constant = metrics.constant_accuracy(train.labels, test.labels)
        for trial in trials:
            # A training that diverges is told by its loss, not by NumPy's warnings.
            with np.errstate(over="ignore", invalid="ignore"):
                self._read(trial, lab, train, test)
            lab.record(trial, constant_accuracy=constant)

    def _read(self, trial: Trial, lab: Lab, train: ImageSet, test: ImageSet) -> None:
        """Train one network, and keep what it says and what it is."""
        import torch

        library = str(trial.condition["library"])
        precision = str(trial.condition["precision"])
        reader, untrained = (
            self._reader(library, precision, trial, lab, train) for _ in range(2)
        )
        self._train(trial, lab, reader, train, test)
        weights = reader.weights()
        lab.weights(trial, "final", weights)
        lab.record(trial, parameters=sum(array.size for array in weights.values()))
        first = next(iter(weights))
        change = weights[first] - untrained.weights()[first]
        lab.array(trial, "patterns", self._patterns(change))
        logits = torch.from_numpy(reader.logits(test.images.numpy()))
        places, answers = metrics.most_confident_errors(logits, test.labels, most=SHOWN)
        for name, array in plots.mistake_arrays(test, places, answers).items():
            lab.array(trial, name, array)
        if trial.condition.matches(PLAIN):
            lab.record(trial, **self._apart(trial, lab, train))
            lab.record(trial, **self._race(trial, lab, train))

    def _train(
        self,
        trial: Trial,
        lab: Lab,
        reader: Learner | TorchLearner,
        train: ImageSet,
        test: ImageSet,
    ) -> None:
        """Train a network, and record its scores and the time that its steps took."""
        batches, clock = self._batches(trial, lab, len(train)), Clock()
        total, scored = self.epochs * batches.per_epoch, train.first(TRAIN_SAMPLES)
        due = {-(-total * k // self.evaluations) for k in range(self.evaluations + 1)}
        images, labels = train.images.numpy(), train.labels.numpy()
        for step in lab.steps(total, state={"reader": reader, "clock": clock}):
            began = perf_counter()
            here = batches.at(step)
            reader.step(images[here], labels[here], self._rate(step, total))
            clock.seconds += perf_counter() - began
            if step + 1 not in due:
                continue
            scores = {
                f"{split}_{name}": value
                for split, seen in (("train", scored), ("test", test))
                for name, value in _scores(reader, seen).items()
            }
            clock.look(scores["test_accuracy"])
            lab.log(trial, step + 1, seconds=clock.seconds, **scores)
            overstated = scores["train_accuracy"] - scores["test_accuracy"]
            lab.record(trial, overstated=overstated, **scores)
            lab.record(trial, **clock.facts(self._timed))
            if not isfinite(scores["train_loss"]):
                lab.note(
                    f"{trial.condition}, seed {trial.seed}: diverged. Take a smaller "
                    "learning rate."
                )
                break

    def _reader(
        self, library: str, precision: str, trial: Trial, lab: Lab, train: ImageSet
    ) -> Learner | TorchLearner:
        """Make what trains, from the first weights of a trial.

        Libraries and precisions share them.
        """
        from nablab.baselines import TorchLearner
        from nablab.from_scratch.convolution import convolutional_network
        from nablab.from_scratch.dense import dense_network
        from nablab.from_scratch.learner import Learner

        rng = lab.rng(trial, "weights", by=("network",))
        classes = len(train.classes)
        shared: dict[str, Any] = {"activation": self.activation, "dtype": precision}
        if trial.condition["network"] == DENSE:
            pixels = self.channels * self.size**2
            network = dense_network(pixels, self.hidden_units, classes, rng, **shared)
        else:
            network = convolutional_network(
                self.channels,
                self.size,
                self.filters,
                self.cnn_units,
                classes,
                rng,
                kernel=self.kernel,
                **shared,
            )
        if library == NUMPY:
            return Learner(
                network,
                momentum=self.momentum,
                mean=train.mean,
                std=train.std,
                dtype=precision,
            )
        module = self.network_of(trial.condition)
        return TorchLearner(
            module, network.state_dict(), train.normalize, self.momentum
        )

    def _batches(self, trial: Trial, lab: Lab, samples: int) -> Batches:
        """Deal the training images out; all conditions of a seed share the batches."""
        from nablab.from_scratch.learner import Batches

        return Batches(samples, self.batch_size, lab.seed(trial, "batches", by=()))

    def _rate(self, step: int, total: int) -> float:
        """Compute the learning rate of a step."""
        left = 1 - step / total if self.decay == "linear" else 1.0
        return self.learning_rate * left

    def _apart(self, trial: Trial, lab: Lab, train: ImageSet) -> dict[str, float]:
        """Take a few steps in both libraries, and compare their weights."""
        import numpy as np

        batches = self._batches(trial, lab, len(train))
        total = self.epochs * batches.per_epoch
        readers = [
            self._reader(library, SINGLE, trial, lab, train)
            for library in (NUMPY, TORCH)
        ]
        images, labels = train.images.numpy(), train.labels.numpy()
        for step in range(min(COMPARED_STEPS, total)):
            here, rate = batches.at(step), self._rate(step, total)
            for reader in readers:
                reader.step(images[here], labels[here], rate)
        own, other = (
            np.concatenate([array.ravel() for array in reader.weights().values()])
            for reader in readers
        )
        return {
            "weight_distance": float(np.linalg.norm(own - other) / np.linalg.norm(own)),
            "largest_weight_difference": float(np.abs(own - other).max()),
        }

    def _race(self, trial: Trial, lab: Lab, train: ImageSet) -> dict[str, float]:
        """Time the same step in all ways by turns: what disturbs one disturbs all."""
        here = self._batches(trial, lab, len(train)).at(0)
        images, labels = train.images.numpy()[here], train.labels.numpy()[here]
        readers = {way: self._reader(*way, trial, lab, train) for way in NAMES}
        fastest = dict.fromkeys(NAMES, inf)
        for _ in range(RACED_STEPS):
            for way, reader in readers.items():
                began = perf_counter()
                reader.step(images, labels, self.learning_rate)
                fastest[way] = min(fastest[way], perf_counter() - began)
        single = fastest[NUMPY, SINGLE]
        return {
            "float64_cost": fastest[NUMPY, DOUBLE] / single,
            "numpy_cost": single / fastest[TORCH, SINGLE],
            **{STEPS[way]: 1_000 * seconds for way, seconds in fastest.items()},
        }

    def _patterns(self, change: Array) -> Array:
        """Turn what the first layer learned into images: gray is 0, white the largest.

        Of the units or filters that changed most, uint8 (M, C, H, W).
        """
        import numpy as np

        side = self.size if change.ndim == 2 else self.kernel
        patterns = change.reshape(len(change), self.channels, side, side)
        largest = np.abs(patterns).max(axis=(1, 2, 3), keepdims=True)
        most = np.sort(np.argsort(-largest.ravel(), kind="stable")[:SHOWN])
        shares = np.nan_to_num(patterns[most] / np.maximum(largest[most], 1e-30))
        images: Array = (127.5 + 127.5 * shares).round().astype(np.uint8)
        return images

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Score always saying the most frequent class of the training images."""
        scores = records.values("constant_accuracy")
        if not scores:
            return {}
        return {"test_accuracy": {"always the most frequent class": scores[0]}}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw accuracy against time, time, both splits, first weights, mistakes."""
        named = Records(
            replace(
                record,
                condition=Condition(
                    network=record.condition["network"],
                    computed=NAMES[
                        str(record.condition["library"]),
                        str(record.condition["precision"]),
                    ],
                ),
            )
            for record in records
        )
        plain = Records(record for record in records if record.condition.matches(PLAIN))
        rows: dict[Any, Any] = {
            network: [(pattern, "") for pattern in here[0].arrays["patterns"]]
            for network in self.networks
            if (here := plain.where(network=network))
        }
        return {
            "accuracy": _against_seconds(named),
            "time": _from_zero(
                plots.dots(
                    plots.metrics_side_by_side(
                        plain,
                        {NAMES[way]: metric for way, metric in STEPS.items()},
                        metric="milliseconds",
                        factor="computed",
                    ),
                    "milliseconds",
                    by="computed",
                    panel_by="network",
                    log_y=False,
                    x_label=" ",
                    y_label="milliseconds",
                    title="Time of one step",
                    caption=f"A batch of {self.batch_size} images, on one thread: the "
                    f"fastest of {RACED_STEPS} steps that all three took by turns.",
                )
            ),
            "splits": plots.dots(
                plots.metrics_side_by_side(
                    plain,
                    {
                        "training images": "train_accuracy",
                        "test images": "test_accuracy",
                    },
                    metric="accuracy",
                    factor="images",
                ),
                "accuracy",
                by="images",
                panel_by="network",
                log_y=False,
                x_label=" ",
                title="Training accuracy overstates",
                caption="NumPy in float32, after the last epoch.",
            ),
            "weights": plots.image_rows(
                rows,
                title="What the first layer learned",
                caption="Weights minus those before training, of the units or filters "
                "that changed most. White: a bright pixel came to speak for the "
                "pattern; black: against it; gray: no change. One seed.",
            ),
            "mistakes": plots.mistakes(
                plain,
                by="network",
                title="The hardest digits",
                caption=f"Up to {SHOWN} test images per network, of one seed, the surest "
                "wrong answer first.",
            ),
        }


def _against_seconds(records: Records) -> Figure:
    """Draw the test accuracy against the time of training."""
    panels = []
    for network in records.levels("network"):
        series: dict[Any, Any] = {}
        for name in records.levels("computed"):
            curves = [
                (
                    record.seed,
                    record.curves["seconds"].values,
                    record.curves["test_accuracy"].values,
                )
                for record in records.where(network=network, computed=name)
                if "seconds" in record.curves
            ]
            longest = max((len(x) for _, x, _ in curves), default=0)
            whole = [curve for curve in curves if len(curve[1]) == longest]
            if whole:
                # Seeds take the same steps, not the same time: they share its mean.
                seconds = sum(x for _, x, _ in whole) / len(whole)
                series[name] = {seed: (seconds, y) for seed, _, y in whole}
        panels.append(
            plots.LinePanel(str(network), "test accuracy", series, limits=(0, 1))
        )
    figure = plots.line_panels(
        panels,
        ends=(),
        x_label="seconds of training",
        title="Test accuracy against time",
        caption="One thread; without the time of evaluations. A seed's times are the "
        "mean over seeds. The axis leaves out what is far below the final scores.",
    )
    worst = min([0.99, *records.values("test_accuracy")])
    for axes in figure.figure.axes:
        # Four times the worst error is room enough to see the best ones apart.
        axes.set_ylim(bottom=max(0, 1 - 4 * (1 - worst)), top=1)
    return figure


def _from_zero(figure: Figure) -> Figure:
    """Let the vertical axes begin at 0: heights can be compared as times."""
    for axes in figure.figure.axes:
        axes.set_ylim(bottom=0)
    return figure


@dataclass
class Clock:
    """The time that the steps of a training took, on the machine at hand.

    Attributes:
        seconds: Of all of them.
        first: By accuracy in percent: the seconds after which the test images were
            first read so well.
    """

    seconds: float = 0.0
    first: dict[str, float] = field(default_factory=dict)

    def look(self, accuracy: float) -> None:
        """Take down which accuracies are reached."""
        for threshold in THRESHOLDS:
            if accuracy >= threshold:
                self.first.setdefault(f"{100 * threshold:.0f}", self.seconds)

    def facts(self, thresholds: Sequence[float]) -> dict[str, float]:
        """Return what is recorded: the time of all, and until each of some scores."""
        names = [f"{100 * threshold:.0f}" for threshold in thresholds]
        times = {f"seconds_to_{name}": self.first.get(name, inf) for name in names}
        return {"seconds": self.seconds, **times}


def _scores(reader: Learner | TorchLearner, images: ImageSet) -> dict[str, float]:
    """Compute loss and accuracy on images."""
    from nablab.from_scratch.dense import softmax_cross_entropy

    logits, labels = reader.logits(images.images.numpy()), images.labels.numpy()
    loss, _ = softmax_cross_entropy(logits.T.astype("float64"), labels)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return {"loss": loss, "accuracy": accuracy}
