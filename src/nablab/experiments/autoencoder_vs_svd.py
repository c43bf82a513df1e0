"""Autoencoders beside the singular value decomposition, at equal sizes of the code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from nablab import baselines, data, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Record,
    Records,
    Reported,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.errors import UsageError
from nablab.models.fields import OwnModelField
from nablab.settings import (
    Distinct,
    Epochs,
    Ge,
    Le,
    Lt,
    NotNegative,
    Pixels,
    Positive,
    Rising,
    Samples,
    Steps,
)
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.baselines import CenteredImages

Method = Literal[
    "svd",
    "alternating",
    "preconditioned",
    "adam",
    "penalized",
    "sigmoid",
    "deep",
    "convolutional",
]
METHODS: tuple[Method, ...] = get_args(Method)
(SVD, ALTERNATING, PRECONDITIONED, ADAM, PENALIZED, SIGMOID, DEEP, CONVOLUTIONAL) = (
    METHODS
)
# Those that have an encoder and a decoder of one matrix each.
LINEAR = (ALTERNATING, PRECONDITIONED, ADAM, PENALIZED)
SAID = {
    SVD: "SVD",
    ALTERNATING: "alternating",
    PRECONDITIONED: "preconditioned",
    ADAM: "linear, Adam",
    PENALIZED: "linear, Adam, L2",
    SIGMOID: "sigmoid code",
    DEEP: "deep",
    CONVOLUTIONAL: "convolutional",
    YOURS: "your network",
}
RATE = 0.8  # of a preconditioned step; at 1 both layers jump at once and overshoot
SHOWN, WATCHED, CURVE = 8, 1_000, 20
SCALE = "mean squared error per pixel, on a scale from 0 to 1"

Size = Annotated[int, Ge(1), Le(100_000)]


@dataclass(frozen=True)
class AutoencoderVsSvd(Experiment):
    """Does an autoencoder compress images better than SVD?

    An autoencoder squeezes an image through a code of k numbers and is trained to give
    the image back. If encoder and decoder are linear, E and D, it minimizes the mean of
    |x - D E x|². The best that any linear code can do is known: project on the k
    directions of largest variance, which the singular value decomposition (SVD) of the
    centered images gives (Eckart and Young 1936). What is lost is the sum of the other
    variances. With variances 4, 2, 1 and k = 1 that is 3; no linear autoencoder loses
    less. It has no other minima either, only saddles (Baldi and Hornik 1989). So one
    that does worse than SVD was not trained to its optimum.

    Why is it often not? A direction of small variance has a small gradient: where the
    variances of pixels span four powers of ten, plain gradient steps take ten thousand
    times as long for the last direction as for the first. Three ways are compared.
    Alternating least squares sets the decoder to the best one for the encoder, then
    the encoder for the decoder. A preconditioned step divides each gradient by its own
    curvature. And Adam does what it can.

    The optimum is a plane, not a basis: with any invertible matrix A, D A and A⁻¹ E are
    as good. An L2 penalty on both layers chooses. Its optimum is known in closed
    form too (Kunin et al. 2019): each principal direction i keeps a share of 1 - λ /
    variance_i, none if that is negative, and the decoder's singular vectors are the
    principal directions.

    What is not linear may do better than SVD: with a sigmoid on the code, with hidden
    layers, with convolutions. On images that it did not see? Both are fitted to training
    images and scored on test images here.

    What to look for. Which networks lie below the line of SVD, at which code sizes? How
    long does Adam take for the last thousandth?

    What to expect. There is no reference run yet. On digits (quick) Adam ends 0.00001
    to 0.00006 above SVD's error, alternating least squares within rounding; a deep
    network loses half of what SVD loses with 4 numbers and 0.78 of it with 16, a
    sigmoid code 1 to 5 % more than SVD.

    Attributes:
        data: cifar10, mnist, digits, or yours: a folder or a file.npz; cifar10@10000
            for fewer training images.
        channels: 1 for gray, 3 for color.
        size: Height and width in pixels to which images are brought.
        codes: Numbers in a code.
        methods: What is compared.
        model: Your own network as a further condition: package.module:factory or
            path/to/file.py:factory. It takes images (N, channels, size, size), minus
            the mean image, and gives the same shape; its encoder, net.encoder, gives
            codes (N, k), and stands beside SVD with k components.
        hidden: Units of the deep network's layers, from the image to the code.
        filters: Of the first convolution; the second one has twice as many.
        penalty: Weight λ of the L2 penalty, as a share of the smallest variance that
            the code could keep.
        epochs: Passes over the training images.
        linear_epochs: The same of linear networks, which saddles hold up.
        batch_size: Images per step.
        learning_rate: Of Adam; it rises over a tenth of the steps and falls to zero.
        solver_steps: Steps of alternating least squares and of preconditioned steps, at
            most.
    """

    topic: ClassVar[str] = "codes"

    data: ImagesField = "cifar10@10000"
    channels: Literal[1, 3] = 1
    size: Pixels = 32
    codes: Annotated[tuple[Size, ...], Rising()] = (16, 64)
    methods: Annotated[tuple[Method, ...], Distinct(least=0)] = METHODS
    model: OwnModelField = None
    hidden: tuple[Size, ...] = (512, 256)
    filters: Annotated[int, Ge(1), Le(4_096)] = 16
    penalty: Annotated[NotNegative, Lt(1)] = 0.3
    epochs: Epochs = 30
    linear_epochs: Epochs = 150
    batch_size: Samples = 128
    learning_rate: Positive = 2e-3
    solver_steps: Steps = 1_000

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "size": 8,
            "codes": (4, 16),
            "hidden": (64, 32),
            # Without convolutions, which take minutes to beat SVD on so few pixels.
            "methods": METHODS[:-1],
            "epochs": 100,
            "linear_epochs": 400,
            "batch_size": 64,
            "learning_rate": 1e-2,
            "seeds": 9,
        },
        "standard": {"seeds": 9},
        "paper": {
            "data": "cifar10",
            "channels": 3,
            "epochs": 50,
            "codes": (64, 256),
            "linear_epochs": 100,
            "seeds": 9,
        },
        # Gray CIFAR-10; how long each network trained is not known but for the linear
        # one, which took 991 s.
        "course-d": {
            "data": "cifar10",
            "codes": (64, 128, 256),
            "methods": (SVD, ADAM, SIGMOID, DEEP),
            "linear_epochs": 30,
            "seeds": 9,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most(
            "excess",
            1e-3,
            where={"method": ADAM},
            within="code",
            scale="log10",
            quantity="training error beyond that of SVD, as a share of it",
            sentence="Adam brings a linear autoencoder to a thousandth of SVD's error",
            answer=Answer(
                supported="a linear autoencoder is as good as SVD if it is trained to "
                "its optimum",
                refuted="Adam does not bring a linear autoencoder to its optimum",
                open="whether Adam brings a linear autoencoder to its optimum",
            ),
        ),
        *(
            Claim.at_most(
                "excess",
                1e-8,
                where={"method": method},
                scale="log10",
                quantity="training error beyond that of SVD, as a share of it",
                sentence=f"{words} SVD's error to 0.000001 percent",
            )
            for method, words in (
                (ALTERNATING, "Alternating least squares reaches"),
                (PRECONDITIONED, "Preconditioned steps reach"),
            )
        ),
        *(
            Claim.at_most(
                "test_ratio",
                1.0,
                where={"method": method},
                within="code",
                scale="log10",
                smallest_effect=0.01,
                quantity="test error over that of SVD with equally many numbers",
                sentence=f"On test images {words} loses no more than SVD",
                answer=Answer(
                    supported=f"{words} compresses test images better than SVD",
                    refuted=f"{words} compresses test images worse than SVD",
                    open=f"whether {words} compresses better than SVD",
                ),
            )
            for method, words in (
                (DEEP, "a deep network"),
                (CONVOLUTIONAL, "a convolutional network"),
            )
        ),
        Claim.at_least(
            "test_ratio",
            1.0,
            where={"method": SIGMOID},
            scale="log10",
            smallest_effect=0.002,
            quantity="test error over that of SVD with equally many numbers",
            sentence="With a sigmoid on the code a network loses at least what SVD loses",
        ),
        Claim.greater(
            "axes_found",
            PENALIZED,
            ADAM,
            by="method",
            smallest_effect=0.05,
            quantity="mean cosine of the decoder's singular vectors with the principal "
            "directions",
            sentence="With an L2 penalty the decoder finds the principal directions, "
            "without it only their plane",
        ),
        Claim.at_most(
            "distance_to_closed_form",
            0.02,
            where={"method": PENALIZED},
            scale="log10",
            quantity="distance of D E from the closed form, relative to its length",
            sentence="The penalized autoencoder ends where the closed form says",
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            who="course D",
            setting=setting,
            seeds=1,
            quantity=f"test {SCALE}",
            value=value,
            metric="test_mse",
            where={"method": method, "code": code},
            fields={"data": "cifar10", "channels": 1, "size": 32},
        )
        for setting, value, method, code in (
            ("SVD", 0.00353, SVD, 128),
            ("linear, 991 s", 0.00901, ADAM, 256),
            ("sigmoid", 0.00689, SIGMOID, 256),
            ("deep", 0.01523, DEEP, 64),
        )
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Course D's linear autoencoder with 256 numbers lost .00901, its SVD with 128 "
        "numbers .00353. Why is that a contradiction, if both were right?",
        "Prove that D A and A⁻¹ E lose as much as D and E. Which A does the L2 "
        "penalty choose?",
        "Set methods=adam and linear_epochs=2, 20, 200. How does the excess fall? "
        "Compare it with the variances of the last directions.",
        "A code of 64 floats is not 64 numbers of information. How would you compare the "
        "methods at an equal number of bits?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Eckart and Young, The approximation of one matrix by another of lower rank, "
        "Psychometrika 1, 1936.",
        "Baldi and Hornik, Neural networks and principal component analysis: learning "
        "from examples without local minima, Neural Networks 2, 1989.",
        "Hinton and Salakhutdinov, Reducing the dimensionality of data with neural "
        "networks, Science 313, 2006.",
        "Kunin et al., Loss landscapes of regularized linear autoencoders, ICML 2019, "
        "arXiv:1901.08168.",
        "Tong, Ma, Chi, Accelerating ill-conditioned low-rank matrix estimation via "
        "scaled gradient descent, JMLR 22, 2021, arXiv:2005.08898.",
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.size, self.size

    def validate(self) -> None:
        """Check that codes are smaller than images, and that networks can be built."""
        inputs = prod(self.shape)
        baselines.check_coordinates(inputs)
        if self.codes[-1] >= inputs:
            raise UsageError(
                f"codes={self.codes[-1]:,} is no compression: an image of "
                f"{self.channels} x {self.size} x {self.size} pixels has {inputs:,} "
                "numbers. Ask for fewer."
            )
        if not self.conditions():
            raise UsageError("There is nothing to compare: name one of methods.")
        if not self.hidden:
            raise UsageError("The deep network has no layers: give widths in hidden.")
        task = data.image_task(self.data, size=self.size, channels=self.channels)
        data.check_color(self.data, self.channels)
        if self.codes[-1] >= task.train_samples:
            raise UsageError(
                f"codes={self.codes[-1]:,} needs more than that many training images; "
                f"{self.data} has {task.train_samples:,}."
            )
        if CONVOLUTIONAL in self.methods:
            models.convolutional_autoencoder(self.channels, self.size, 1, filters=1)

    def conditions(self) -> list[Condition]:
        """List every method with every size of the code."""
        found = [
            Condition(method=method, code=code)
            for method in self.methods
            for code in self.codes
        ]
        if self.model is not None:
            found.append(Condition(method=YOURS, code=self._own_code()))
        return found

    def _own_code(self) -> int:
        """Return the size of the code of the user's network.

        Raises:
            UsageError: It gives no image back, or has no encoder that gives codes.
        """
        import torch

        net = models.load_factory(str(self.model))().eval()
        x = torch.zeros(2, *self.shape)
        models.check_output(net, x, (2, *self.shape))
        encoder = getattr(net, "encoder", None)
        if encoder is None:
            raise UsageError(
                f"The network of {self.model} has no part named encoder: SVD gets as "
                "many components as its codes have numbers, and net.encoder(x) tells."
            )
        with torch.no_grad():
            codes = encoder(x)
        if codes.ndim != 2 or len(codes) != 2:
            raise UsageError(
                f"The encoder of {self.model} gives {tuple(codes.shape)} for two "
                "images; it must give codes (2, k)."
            )
        return int(codes.shape[1])

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the claims whose methods are run."""
        return tuple(
            claim
            for claim in super().active_claims()
            if claim.where.get("method", ADAM) in self.methods
        )

    def builder(self, condition: Condition) -> Callable[[], nn.Module]:
        """Return what makes a fresh network."""
        method, code = str(condition["method"]), int(condition["code"])
        if method == YOURS:
            return models.load_factory(str(self.model))
        if method == CONVOLUTIONAL:
            return lambda: models.convolutional_autoencoder(
                self.channels, self.size, code, filters=self.filters
            )
        if method == DEEP:
            return lambda: models.dense_autoencoder(
                prod(self.shape), code, hidden=self.hidden, activation="relu"
            )
        bent: Any = "sigmoid" if method == SIGMOID else None
        return lambda: models.dense_autoencoder(
            prod(self.shape), code, code_activation=bent, bias=method not in LINEAR
        )

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(condition)()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Fit one method with one size of the code."""
        images = baselines.centered_images(
            self.data, size=self.size, channels=self.channels
        )
        lab.note(*images.notes)
        method = trials.condition["method"]
        if method == SVD:
            for trial in trials:
                self._svd(trial, lab, images)
        elif method in (ALTERNATING, PRECONDITIONED):
            for trial in lab.each(trials):
                self._solve(trial, lab, images)
        else:
            self._train(trials, lab, images)

    def _svd(self, trial: Trial, lab: Lab, images: CenteredImages) -> None:
        """Score the projection on the first components."""
        code = int(trial.condition["code"])
        components = images.leading(code)
        lab.record(
            trial,
            train_mse=images.best(code),
            seconds=images.seconds,
            excess=0.0,
            **_scored(lambda x: components.reconstruct(x, code), images, code),
        )
        _show(lab, trial, images, lambda x: components.reconstruct(x, code))

    def _solve(self, trial: Trial, lab: Lab, images: CenteredImages) -> None:
        """Find a linear autoencoder from the covariance alone."""
        code = int(trial.condition["code"])
        covariance, best = images.moments.covariance, images.best(code)
        net = baselines.LinearAutoencoder.start(
            images.inputs, code, lab.rng(trial, "weights", by=("code",))
        )
        alternating = trial.condition["method"] == ALTERNATING
        began, latest = time.perf_counter(), Lost()
        for step in lab.steps(self.solver_steps, state={"net": net, "lost": latest}):
            if alternating:
                net.alternate(covariance)
            else:
                net.preconditioned_step(covariance, RATE)
            before, latest.value = latest.value, net.lost(covariance)
            # Nothing is gained any more that float64 could hold.
            ended = 0 <= before - latest.value < 1e-15 * latest.value
            if ended or (step + 1) % max(1, step // CURVE) == 0:
                excess = latest.value / images.inputs / best - 1
                lab.log(trial, step + 1, excess=max(excess, 1e-16))
            if ended:
                break
        lab.record(trial, seconds=time.perf_counter() - began)
        self._record_linear(trial, lab, images, net)

    def _train(self, trials: Trials, lab: Lab, images: CenteredImages) -> None:
        """Train a network per seed by Adam."""
        condition = trials.condition
        method, code = str(condition["method"]), int(condition["code"])
        build = self.builder(condition)
        weight = 0.0
        if method == PENALIZED:
            smallest = float(images.leading(code).variances[code - 1])
            weight = self.penalty * smallest
        whole = method in (CONVOLUTIONAL, YOURS)  # the others take rows of pixels
        train, test = (
            part if whole else part.flatten(1)
            for part in (images.train, images.test[:WATCHED])
        )
        epochs = self.linear_epochs if method in LINEAR else self.epochs
        steps = epochs * -(-len(train) // self.batch_size)
        result = lab.train(
            training.Supervised(build, "mse"),
            (train, train),
            training.Recipe(
                epochs=epochs,
                batch_size=self.batch_size,
                # Adam's gradient of (w/2) |weights|^2, of an error per pixel.
                optimizer=training.Adam(
                    learning_rate=self.learning_rate,
                    weight_decay=2 * weight / images.inputs,
                ),
                schedule=training.Linear(warmup_steps=steps // 10),
                train_samples=WATCHED,
                held_out={"test": (test, test)},
                eval_every=max(1, steps // CURVE),
            ),
            seeds=[lab.seed(trial, "weights", by=("code",)) for trial in trials],
        )
        seconds = float(result.seconds[-1]) / len(trials)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            net = outcome.module().eval()
            lab.curve(trial, "test_mse", outcome.steps, outcome.curves["test_loss"])
            lab.record(
                trial,
                seconds=seconds,
                parameters=sum(part.numel() for part in net.parameters()),
                stop_reason=outcome.stop_reason,
            )
            if method in LINEAR:
                linear = baselines.LinearAutoencoder.of(net)
                self._record_linear(trial, lab, images, linear, weight)
                continue
            forward = baselines.on_rows(net, self.shape if whole else (images.inputs,))
            train_mse = baselines.squared_error(forward, images.train)
            lab.record(
                trial,
                train_mse=train_mse,
                excess=train_mse / images.best(code) - 1,
                **_scored(forward, images, code),
            )
            _show(lab, trial, images, forward)

    def _record_linear(
        self,
        trial: Trial,
        lab: Lab,
        images: CenteredImages,
        net: baselines.LinearAutoencoder,
        penalty: float = 0.0,
    ) -> None:
        """Record how far a linear autoencoder is from what is known to be best."""
        import torch

        code = int(trial.condition["code"])
        components = images.leading(code)
        train_mse = net.lost(images.moments.covariance) / images.inputs

        def forward(x: Tensor) -> Tensor:
            both = net.encoder.to(x.dtype), net.decoder.to(x.dtype)
            return x @ both[0].T @ both[1].T

        # Singular vectors come in the order of their singular values.
        left = torch.linalg.svd(net.decoder, full_matrices=False)[0]
        cosines = (left * components.axes.T).sum(0).abs()
        lab.record(
            trial,
            train_mse=train_mse,
            # Rounding may put it a hair below the optimum.
            excess=max(train_mse / images.best(code) - 1, 1e-16),
            largest_angle=baselines.largest_angle(net.decoder, components.axes.T),
            axes_found=float(cosines.mean()),
            **_scored(forward, images, code),
        )
        if penalty:
            wanted = baselines.regularized_optimum(components, penalty)
            target = wanted.decoder @ wanted.encoder
            distance = (net.decoder @ net.encoder - target).norm() / target.norm()
            lab.record(trial, distance_to_closed_form=float(distance))
        _show(lab, trial, images, forward)

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw errors by code size, the way to the optimum, cost, reconstructions."""
        bent = [r for r in records if r.condition["method"] not in (SVD, *LINEAR)]
        plain = [r for r in records if r.condition["method"] in (SVD, ADAM)]
        figures = {
            "error": plots.trend(
                _named([*plain, *bent]),
                "test_mse",
                x="code",
                color_by="method",
                log_y=True,
                x_label="numbers in the code",
                y_label="test MSE per pixel",
                title="What is lost on test images",
                caption="No linear network can lose less than SVD on the images that "
                "both were fitted to. Here are others.",
            ),
        }
        if bent:
            figures["ratio"] = plots.dots(
                _named(bent),
                "test_ratio",
                by="method",
                panel_by="numbers",
                log_y=True,
                same_y=True,
                baselines={"SVD": 1.0},
                y_label="test error over that of SVD",
                title="Networks that are not linear, beside SVD",
                caption="Below the line a network loses less than SVD with equally many "
                "numbers.",
            )
        linear = [r for r in records if r.condition["method"] in LINEAR]
        if linear:
            figures["excess"] = plots.trend(
                _named(linear),
                "excess",
                x="code",
                color_by="method",
                log_y=True,
                x_label="numbers in the code",
                y_label="excess over SVD's error",
                title="How near linear autoencoders come to SVD",
                caption="The excess is the training error minus SVD's, as a share of "
                "SVD's. At 1e-16 nothing is left that float64 could show. The L2 penalty "
                "moves the optimum.",
            )
            figures["way"] = plots.curves(
                _named(r for r in linear if "excess" in r.curves),
                "excess",
                color_by="method",
                panel_by="numbers",
                x_label="steps",
                y_label="excess over SVD's error",
                title="The way to the optimum",
                caption="Both solvers see the covariance alone; a step costs the same "
                "for any number of images.",
            )
        figures |= _reconstructions(records)
        return figures


@dataclass
class Lost:
    """What a solver lost at its latest step, kept when its loop is taken up again."""

    value: float = inf


def _scored(
    forward: Callable[[Tensor], Tensor], images: CenteredImages, code: int
) -> dict[str, float]:
    """Return the test error, and its ratio to that of SVD."""
    components = images.leading(code)
    found = baselines.squared_error(forward, images.test)
    svd = baselines.squared_error(
        lambda x: components.reconstruct(x, code), images.test
    )
    return {"test_mse": found, "test_ratio": found / svd}


def _show(
    lab: Lab, trial: Trial, images: CenteredImages, forward: Callable[[Tensor], Tensor]
) -> None:
    """Keep what becomes of the first test images, uint8 (SHOWN, C, H, W)."""
    x = images.test[:SHOWN]
    rebuilt = forward(x.flatten(1)).reshape(x.shape)
    lab.array(trial, "original", images.pixels(x))
    lab.array(trial, "rebuilt", images.pixels(rebuilt))


def _named(records: Any) -> Records:
    """Call methods by the words of figures."""
    return Records(
        Record(
            Condition(
                method=SAID[str(record.condition["method"])],
                code=record.condition["code"],
                numbers=f"{record.condition['code']} numbers",
            ),
            record.seed,
            record.scalars,
            curves=record.curves,
        )
        for record in records
    )


def _reconstructions(records: Records) -> dict[str, Figure]:
    """Show test images beside what each method makes of them, at one size of the code."""
    codes = [int(code) for code in records.levels("code") if code is not None]
    if not codes:
        return {}
    middle = codes[len(codes) // 2]
    rows: dict[str | int | float | bool, list[Any]] = {}
    for record in records.where(code=middle):
        name = SAID[str(record.condition["method"])]
        if name in rows or "rebuilt" not in record.arrays:
            continue
        if not rows:
            rows["test images"] = [(image, "") for image in record.arrays["original"]]
        rows[name] = [(image, "") for image in record.arrays["rebuilt"]]
    if not rows:
        return {}
    return {
        "reconstructions": plots.image_rows(
            rows,
            title=f"Test images through {middle} numbers",
            caption="The first row is what went in. What does each method keep, what "
            "does it blur?",
        )
    }
