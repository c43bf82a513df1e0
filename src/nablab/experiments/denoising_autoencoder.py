"""Denoising autoencoders beside the best linear filter of their size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
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
from nablab.settings import Distinct, Epochs, Ge, Le, Pixels, Positive, Rising, Samples
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.baselines import CenteredImages
    from nablab.training import Moment

Network = Literal["linear", "deep", "convolutional"]
NETWORKS: tuple[Network, ...] = get_args(Network)
LINEAR, DEEP, CONVOLUTIONAL = NETWORKS
SHOWN, WATCHED, CURVE = 8, 1_000, 20
FILTER = "best linear filter"

Noise = Annotated[float, Ge(0), Le(10)]
Size = Annotated[int, Ge(1), Le(100_000)]


@dataclass(frozen=True)
class DenoisingAutoencoder(Experiment):
    """Does a network remove noise better than the best linear filter?

    A denoising autoencoder gets an image with noise, x + σ e, and is trained to give x.
    It cannot copy its input, so it must know what images look like (Vincent et al.
    2008).

    How good is good? Among linear networks with k numbers in the code the optimum is
    known. Along each principal direction of the images, with variance v, the noise adds
    σ². The best estimate keeps a share v / (v + σ²) of what it sees, and what it gains
    there is v² / (v + σ²). So it takes the k directions of largest variance, shrunk, and
    loses the total variance minus the sum of v² / (v + σ²). With v = 1 and σ = 0.5 the
    share is 0.8, and 0.2 is lost. This is the Wiener filter of rank k. A network that
    loses more than it has learned nothing that needs a network.

    The filter depends on σ. So does a network: trained at one noise it expects that
    noise. At a larger one it lets noise through, at none it blurs for nothing. Course D
    trained at σ = 0.3 and drew its figure at another noise; here every network is tested
    at every noise, and the figure shows the noise that was trained.

    What to look for. In which rows of the first figure is the smallest error at the
    noise that was trained? What does a network trained without noise do to a noisy
    image?

    What to expect. There is no reference run yet. On digits (quick) a linear network
    ends within a percent of the filter. A deep one loses 0.8 of what the filter loses at
    noise 0.3, and 0.9 of it without noise. Trained without noise, it loses twice as
    much at noise 0.3 as trained there.

    Attributes:
        data: cifar10, mnist, digits, or yours: a folder or a file.npz; cifar10@10000
            for fewer training images.
        channels: 1 for gray, 3 for color.
        size: Height and width in pixels to which images are brought.
        code: Numbers in the code.
        noises: Standard deviations σ of the noise, for pixels from 0 to 1. Each network
            is trained at each of them, and tested at all and halfway between.
        networks: What is compared.
        model: Your own network as a further one: package.module:factory or
            path/to/file.py:factory. It takes images (N, channels, size, size), minus
            the mean image and with noise, and gives the same shape.
        hidden: Units of the deep network's layers, from the image to the code.
        filters: Of the first convolution; the second one has twice as many.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Of Adam; it rises over a tenth of the steps and falls to zero.
    """

    topic: ClassVar[str] = "codes"

    data: ImagesField = "cifar10@10000"
    channels: Literal[1, 3] = 1
    size: Pixels = 32
    code: Size = 64
    noises: Annotated[tuple[Noise, ...], Rising()] = (0.0, 0.1, 0.3, 0.5)
    networks: Annotated[tuple[Network, ...], Distinct(least=0)] = NETWORKS
    model: OwnModelField = None
    hidden: tuple[Size, ...] = (512, 256)
    filters: Annotated[int, Ge(1), Le(4_096)] = 16
    epochs: Epochs = 30
    batch_size: Samples = 128
    learning_rate: Positive = 2e-3

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "size": 8,
            "code": 16,
            "noises": (0.0, 0.3),
            # Without convolutions, which say little on so few pixels.
            "networks": (LINEAR, DEEP),
            "hidden": (64, 32),
            "epochs": 60,
            "batch_size": 64,
            "learning_rate": 1e-2,
            "seeds": 9,
        },
        "standard": {"seeds": 9},
        "paper": {
            "data": "mnist",
            "size": 28,
            "noises": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
            "epochs": 50,
            "seeds": 9,
        },
        "course-d": {
            "data": "cifar10",
            "code": 256,
            "noises": (0.3,),
            "networks": (LINEAR, DEEP),
            "seeds": 9,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_most(
            "ratio_at_own_noise",
            1.0,
            where={"network": DEEP},
            within="noise",
            scale="log10",
            smallest_effect=0.01,
            quantity="test error over that of the best linear filter of equal size",
            sentence="At the noise that it was trained at a deep network loses no more "
            "than the best linear filter",
            answer=Answer(
                supported="a deep network removes noise better than the best linear "
                "filter",
                refuted="a deep network removes noise worse than the best linear filter",
                open="whether a deep network removes noise better than the best linear "
                "filter",
            ),
        ),
        Claim.at_most(
            "ratio_at_own_noise",
            1.0,
            where={"network": CONVOLUTIONAL},
            within="noise",
            scale="log10",
            smallest_effect=0.01,
            quantity="test error over that of the best linear filter of equal size",
            sentence="At the noise that it was trained at a convolutional network loses "
            "no more than the best linear filter",
        ),
        Claim.at_most(
            "excess",
            0.02,
            where={"network": LINEAR},
            within="noise",
            scale="log10",
            quantity="training error beyond that of the best linear filter, as a share",
            sentence="A linear network comes within two percent of the best linear "
            "filter",
            answer=Answer(
                supported="a linear network finds the best linear filter",
                refuted="a linear network does not find the best linear filter",
                open="whether a linear network finds the best linear filter",
            ),
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = (
        Reported(
            who="course D",
            setting="noise of 0.3; its figure was made at another noise",
            seeds=1,
            quantity="test mean squared error per pixel",
            value=0.01246,
            metric="mse_at_own_noise",
            where={"network": DEEP, "noise": 0.3},
            fields={"data": "cifar10", "channels": 1, "size": 32},
        ),
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Derive the share v / (v + σ²): which multiple a of y = x + σ e has the smallest "
        "mean of (x - a y)²?",
        "At which σ is the k-th direction better left out than kept unshrunk?",
        "Train at noises=0,0.3 and test at 0.1. Which of the two would you use, and "
        "would training on noises drawn anew for each image beat both?",
        "Give model a convolutional network without a code (U-Net). Why may it lose less "
        "than any filter of rank 64?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Wiener, Extrapolation, interpolation, and smoothing of stationary time series, "
        "MIT Press, 1949.",
        "Vincent et al., Extracting and composing robust features with denoising "
        "autoencoders, ICML 2008.",
        "Alain and Bengio, What regularized auto-encoders learn from the data-generating "
        "distribution, JMLR 15, 2014, arXiv:1211.4246.",
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.size, self.size

    @property
    def tested(self) -> list[float]:
        """Noises of test images: those of training, and halfway between."""
        between = [(low + high) / 2 for low, high in pairwise(self.noises)]
        return sorted({*self.noises, *between})

    def validate(self) -> None:
        """Check that the code is smaller than an image, and the user's network."""
        inputs = prod(self.shape)
        baselines.check_coordinates(inputs)
        if self.code >= inputs:
            raise UsageError(
                f"code={self.code:,} is no compression: an image of {self.channels} x "
                f"{self.size} x {self.size} pixels has {inputs:,} numbers. Ask for "
                "fewer."
            )
        if not self.conditions():
            raise UsageError("There is no network to train: name one in networks.")
        if not self.hidden:
            raise UsageError("The deep network has no layers: give widths in hidden.")
        data.image_task(self.data, size=self.size, channels=self.channels)
        data.check_color(self.data, self.channels)
        if CONVOLUTIONAL in self.networks:
            models.convolutional_autoencoder(self.channels, self.size, 1, filters=1)
        if self.model is not None:
            import torch

            net = models.load_factory(self.model)().eval()
            models.check_output(net, torch.zeros(2, *self.shape), (2, *self.shape))

    def conditions(self) -> list[Condition]:
        """List every network with every noise that it is trained at."""
        names = [*self.networks, *([YOURS] if self.model else [])]
        return [
            Condition(network=name, noise=noise)
            for name in names
            for noise in self.noises
        ]

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the claims whose networks are run, and one on the wrong noise."""
        found = [
            claim
            for claim in super().active_claims()
            if claim.where["network"] in self.networks
        ]
        if len(self.noises) > 1 and DEEP in self.networks:
            first, last = self.noises[0], self.noises[-1]
            found.append(
                Claim.greater(
                    f"mse_at_{last:g}",
                    first,
                    last,
                    by="noise",
                    where={"network": DEEP},
                    scale="log10",
                    smallest_effect=0.05,
                    quantity=f"test error at noise {last:g}",
                    sentence=f"At noise {last:g} a deep network that was trained at "
                    f"{first:g} loses more than one that was trained at {last:g}",
                    answer=Answer(
                        supported="a network must be trained at the noise that it is "
                        "to remove",
                        refuted="a network need not be trained at the noise that it is "
                        "to remove",
                        open="whether a network must be trained at the noise that it "
                        "is to remove",
                    ),
                )
            )
        return tuple(found)

    def builder(self, name: str) -> Callable[[], nn.Module]:
        """Return what makes a fresh network, from images or from rows of pixels."""
        if name == YOURS:
            return models.load_factory(str(self.model))
        if name == CONVOLUTIONAL:
            return lambda: models.convolutional_autoencoder(
                self.channels, self.size, self.code, filters=self.filters
            )
        hidden = self.hidden if name == DEEP else ()
        return lambda: models.dense_autoencoder(
            prod(self.shape),
            self.code,
            hidden=hidden,
            activation="relu" if hidden else None,
            bias=name != LINEAR,
        )

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(str(condition["network"]))()

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one network at one noise per seed, and test it at all."""
        images = baselines.centered_images(
            self.data, size=self.size, channels=self.channels
        )
        lab.note(*images.notes)
        name, noise = str(trials.condition["network"]), float(trials.condition["noise"])
        whole = name in (CONVOLUTIONAL, YOURS)  # the others take rows of pixels
        train, test = (
            part if whole else part.flatten(1)
            for part in (images.train, images.test[:WATCHED])
        )
        steps = self.epochs * -(-len(train) // self.batch_size)
        result = lab.train(
            training.Minimize(self.builder(name), Denoising(noise)),
            {"x": train},
            training.Recipe(
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=training.Adam(learning_rate=self.learning_rate),
                schedule=training.Linear(warmup_steps=steps // 10),
                train_samples=0,
                held_out={"test": training.Arrays(x=test)},
                eval_every=max(1, steps // CURVE),
                best="test_loss",
            ),
            seeds=[lab.seed(trial, "weights", by=("network",)) for trial in trials],
        )
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            net = outcome.module().eval()
            lab.curve(trial, "test_mse", outcome.steps, outcome.curves["test_loss"])
            lab.record(
                trial,
                parameters=sum(part.numel() for part in net.parameters()),
                stop_reason=outcome.stop_reason,
            )
            shape = self.shape if whole else (images.inputs,)
            self._test(trial, lab, images, baselines.on_rows(net, shape))
            if name == LINEAR:
                lab.record(trial, excess=self._excess(net, images, noise))

    def _test(
        self,
        trial: Trial,
        lab: Lab,
        images: CenteredImages,
        forward: Callable[[Tensor], Tensor],
    ) -> None:
        """Score a network at every noise, beside the filter that is best there."""
        own = float(trial.condition["noise"])
        for noise in self.tested:
            # The same noise for all networks of a seed.
            draw = training.generator(lab.seed(trial, f"noise {noise:g}", by=()))
            noisy = _with_noise(images.test, noise, draw)
            error = baselines.squared_error(forward, images.test, noisy)
            filtered = _filter(images, self.code, noise)
            best = baselines.squared_error(filtered, images.test, noisy)
            lab.record(
                trial, **{f"mse_at_{noise:g}": error, f"filter_at_{noise:g}": best}
            )
            if noise != own:
                continue
            lab.record(trial, mse_at_own_noise=error, ratio_at_own_noise=error / best)
            shown = noisy[:SHOWN]
            for key, pixels in (
                ("original", images.test[:SHOWN]),
                ("noisy", shown),
                ("filtered", filtered(shown.flatten(1)).reshape(shown.shape)),
                ("rebuilt", forward(shown.flatten(1)).reshape(shown.shape)),
            ):
                lab.array(trial, key, images.pixels(pixels))

    def _excess(self, net: Any, images: CenteredImages, noise: float) -> float:
        """Return the expected training error beyond the filter's, as a share of it."""
        linear = baselines.LinearAutoencoder.of(net)
        # Noise passes through both matrices and is independent of the image.
        passed = noise**2 * float((linear.decoder @ linear.encoder).square().sum())
        lost = linear.lost(images.moments.covariance) + passed
        best = baselines.filtered_error(images.leading(self.code), noise)
        return max(lost / best - 1, 1e-16)

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Leave the noise in, at each noise: its variance."""
        return {
            f"mse_at_{noise:g}": {"the noise left in": noise**2}
            for noise in self.tested
            if noise
        }

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw errors at every noise, the ratio to the filter, and images."""
        figures = {
            "noises": plots.trend(
                self._by_noise(records),
                "error",
                x="tested",
                color_by="trained",
                panel_by="network",
                log_x=False,
                log_y=True,
                x_label="noise of the test images",
                y_label="test MSE per pixel",
                title="Trained at one noise, tested at all",
                caption=f"{FILTER.capitalize()}: the one of {self.code} numbers that is "
                "best at each noise.",
            ),
            "ratio": plots.dots(
                Records(
                    dataclasses.replace(
                        record,
                        condition=Condition(
                            network=record.condition["network"],
                            noise=f"noise {record.condition['noise']:g}",
                        ),
                    )
                    for record in records
                ),
                "ratio_at_own_noise",
                by="network",
                panel_by="noise",
                log_y=True,
                same_y=True,
                baselines={FILTER: 1.0},
                y_label="test error over the filter's",
                title="Networks beside the best linear filter, at the trained noise",
                caption="Below the line a network loses less than the filter.",
            ),
        }
        return figures | self._images(records)

    def _by_noise(self, records: Records) -> Records:
        """Give each test noise a record of its own, and the filter a line."""
        found = {}
        for kind in ("mse", "filter"):
            for record in records:
                trained = f"trained at {record.condition['noise']:g}"
                for noise in self.tested:
                    where = Condition(
                        network=record.condition["network"],
                        trained=trained if kind == "mse" else FILTER,
                        tested=noise,
                    )
                    scalars = {"error": record.scalars[f"{kind}_at_{noise:g}"]}
                    # The filter is the same whatever a network was trained at.
                    found[where, record.seed] = Record(where, record.seed, scalars)
        return Records(found.values())

    def _images(self, records: Records) -> dict[str, Figure]:
        """Show test images at the largest noise that was trained."""
        noise = self.noises[-1]
        rows: dict[str | int | float | bool, list[Any]] = {}
        for record in records.where(noise=noise):
            if "rebuilt" not in record.arrays:
                continue
            given = {
                "test images": "original",
                f"with noise of {noise:g}": "noisy",
                FILTER: "filtered",
                str(record.condition["network"]): "rebuilt",
            }
            for name, key in given.items():
                if name not in rows:
                    rows[name] = [(image, "") for image in record.arrays[key]]
        if not rows:
            return {}
        return {
            "images": plots.image_rows(
                rows,
                title=f"What becomes of noise of {noise:g}",
                caption="Each network was trained at this noise.",
            )
        }


@dataclass(frozen=True)
class Denoising:
    """The squared error of a batch with noise, as `nablab.training.Minimize` takes it.

    Attributes:
        noise: Standard deviation.
    """

    noise: float

    def __call__(
        self, net: nn.Module, batch: Mapping[str, Tensor], moment: Moment
    ) -> dict[str, Tensor]:
        """Compute the mean over samples and pixels."""
        x = batch["x"]
        noisy = x + self.noise * moment.normal(*x.shape) if self.noise else x
        return {"loss": (net(noisy) - x).square().mean()}


def _with_noise(images: Tensor, noise: float, draw: Any) -> Tensor:
    """Add normal noise; it is not cut at 0 and 1, as the filter expects."""
    import torch

    return images + noise * torch.randn(images.shape, generator=draw)


def _filter(
    images: CenteredImages, code: int, noise: float
) -> Callable[[Tensor], Tensor]:
    """Return the best linear filter of the training images, on rows of pixels."""
    matrix = baselines.wiener_filter(images.leading(code), noise).float()
    return lambda x: x @ matrix
