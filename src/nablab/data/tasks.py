"""What there is to learn, in one form.

A function of one variable, or a set of labeled images.

Experiments on optimization ask the same questions of both, and take either by its
name::

    sinc, x*sin(x)@-3..3@400    a function, as `nablab.data.target` reads it
    mnist, digits, ./my-images  labeled images, as `nablab.data.load` reads them
    mnist@10000                 10,000 of its training images, drawn once and for all

Of functions the loss is the mean squared error, of images the cross-entropy.

Making a `Task` reads nothing but a user's own images, and does not import torch for the
rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nablab import data
from nablab.data import names
from nablab.data.functions.targets import TARGETS, Target, target
from nablab.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from nablab.data.images.image_set import ImageSet

    Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A problem: inputs and targets to learn, others for tests, and the loss.

    Attributes:
        name: What the user wrote.
        loss: ``"mse"`` or ``"cross_entropy"``, as `nablab.training.fit` takes it.
        shape: Of one input: (1,) for a function, (C, H, W) for images.
        outputs: What a network must give for it: 1, or one logit per class.
        data_set: The name or path of the images, for `Experiment.data_sets`; empty for
            a function.
        samples: How many training images are drawn; None for all.
    """

    name: str
    loss: Literal["mse", "cross_entropy"]
    shape: tuple[int, ...]
    outputs: int
    data_set: str = ""
    samples: int | None = None

    def train(self) -> Pair:
        """Return the training set as stored.

        X and y float32 (N, 1), or uint8 (N, C, H, W) and int64 (N,).
        """
        return (
            (self._images.images, self._images.labels)
            if self.data_set
            else self._function.train()
        )

    def held_out(self) -> Pair:
        """Return samples that are not trained on.

        They are the points between those of a function, or the test split.
        """
        if not self.data_set:
            return self._function.held_out()
        test = self._load("test")
        return test.images, test.labels

    def images(self, split: str = "train") -> ImageSet:
        """Return the images of a task of images.

        Those of ``"train"`` that are drawn, or of ``"test"``, with class names.

        Args:
            split: ``"train"`` or ``"test"``.
        """
        return self._images if split == "train" else self._load(split)

    @property
    def train_samples(self) -> int:
        """How many samples there are to train on.

        Of a set that is known by name no byte is read.
        """
        if self.samples is not None:
            return self.samples
        if not self.data_set:
            return len(self._function.train()[0])
        return names.train_samples(self.data_set) or len(self._images)

    @property
    def held_out_name(self) -> str:
        """What to call them: ``"held_out"`` or ``"test"``."""
        return "test" if self.data_set else "held_out"

    @property
    def prepare(self) -> Callable[[Tensor], Tensor] | None:
        """Makes the network's input of stored samples; None where they are it.

        `fit` takes it as it is.
        """
        return self._images.normalize if self.data_set else None

    def prepared(self, samples: int | None = None, *, held_out: bool = False) -> Pair:
        """Return inputs as a bare network takes them, float32, and their targets.

        Instruments take them.

        Args:
            samples: Number of samples, from the first on; None for all. 60,000 images
                of 28 x 28 take 188 MB.
            held_out: Those of `held_out` instead of the training set.
        """
        x, y = (
            part[:samples] for part in (self.held_out() if held_out else self.train())
        )
        return (self.prepare(x) if self.prepare else x), y

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user, to be passed to `Lab.note`."""
        return self._images.notes if self.data_set else ()

    @property
    def loss_name(self) -> str:
        """The loss in words that an axis can hold."""
        return {"mse": "MSE", "cross_entropy": "cross-entropy"}[self.loss]

    def constant_loss(self) -> float:
        """Compute the training loss of the best constant.

        It is the variance of y, or the entropy of the classes (nats).
        """
        y = self.train()[1]
        if self.loss == "mse":
            return float(y.double().var(correction=0))
        shares = y.bincount().double() / len(y)
        return float(
            -sum(share * math.log(share) for share in shares.tolist() if share)
        )

    @cached_property
    def _function(self) -> Target:
        return target(self.name)

    @cached_property
    def _images(self) -> ImageSet:
        images = self._load("train")
        if self.samples is None:
            return images
        if self.samples > len(images):
            raise UsageError(
                f"'{self.name}' asks for {self.samples:,} training images, but "
                f"{self.data_set} has {len(images):,}. Ask for fewer, or write "
                f"{self.data_set} for all."
            )
        return _shuffled(images).first(self.samples)

    def _load(self, split: str) -> ImageSet:
        channels, size, _ = self.shape
        images = data.load(self.data_set, split=split, size=size, channels=channels)
        # A user's images come sorted by class, and the first ones of a task must stand
        # for all.
        return _shuffled(images) if names.is_path(self.data_set) else images


def _shuffled(images: ImageSet) -> ImageSet:
    """Shuffle images in an order that is drawn once and for all."""
    import torch

    return images.take(
        torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    )


def task(spec: str, *, size: int = 28, channels: int = 1) -> Task:
    """Return the task that ``spec`` names, checked.

    No set that is known by name is read; a user's own is.

    Args:
        spec: A target such as ``sinc``, or an image set such as ``mnist``; see the
            module's text.
        size: Height and width to which images are brought.
        channels: Channels to which images are brought, 1 or 3.

    Raises:
        UsageError: Neither a target nor an image set, or a number of samples below 1.

    >>> task("sinc").shape, task("digits").shape, task("digits@200").train()[0].shape
    ((1,), (1, 28, 28), torch.Size([200, 1, 28, 28]))
    """
    check_task(spec)
    name, samples = _parts(spec)
    if not _means_images(name):
        return Task(name=spec, loss="mse", shape=(1,), outputs=1)
    return Task(
        name=spec,
        loss="cross_entropy",
        shape=(channels, size, size),
        outputs=_classes(name, size, channels),
        data_set=name,
        samples=samples,
    )


def image_task(spec: str, *, size: int = 28, channels: int = 1) -> Task:
    """Return the task of images that ``spec`` names, as `task` does.

    Raises:
        UsageError: As `task`, and for a function.

    >>> image_task("digits@200").images().classes[:3]
    ('0', '1', '2')
    """
    check_images(spec)
    return task(spec, size=size, channels=channels)


def check_task(spec: str) -> None:
    """Raise `UsageError` unless ``spec`` names a task; no data are read."""
    name, samples = _parts(spec)
    if not _means_images(name) and not names.holds_no_images(name):
        _check_target(spec)
        return
    names.check_image_set(name)
    _check_meaning(spec)
    if samples is not None and samples < 1:
        raise UsageError(
            f"'{spec}' asks for no images: write a number from 1, or {name} for all."
        )


def check_images(spec: str) -> None:
    """Raise `UsageError` unless ``spec`` names labeled images; no data are read."""
    check_task(spec)
    if not _means_images(_parts(spec)[0]):
        sets = ", ".join(names.image_set_names())
        raise UsageError(
            f"data={spec} is a function and has no labels. Choices: {sets}, a folder "
            "of images or a file.npz."
        )


def evenly_spaced(total: int, count: int) -> Tensor:
    """Return int64 places at equal distances; samples may come sorted by class.

    Args:
        total: Number of samples.
        count: How many places to give at most.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(2, 5).tolist()
    ([0, 2, 5, 7], [0, 1])
    """
    import torch

    count = min(count, total)
    return torch.arange(count) * total // count


def check_batches(spec: str, samples: int | None, sizes: Iterable[int]) -> None:
    """Raise `UsageError` for a batch that exceeds the training images.

    Args:
        spec: The images, for the message.
        samples: How many there are; None where that is not known before they are read.
        sizes: Samples per batch.

    >>> check_batches("digits@100", 100, [64, 128])
    Traceback (most recent call last):
    nablab.errors.UsageError: A batch of 128 exceeds the 100 training images of \
digits@100: take smaller batches or more images.
    """
    largest = max(sizes)
    if samples is not None and largest > samples:
        raise UsageError(
            f"A batch of {largest:,} exceeds the {samples:,} training images of "
            f"{spec}: take smaller batches or more images."
        )


def check_color(spec: str, channels: int) -> None:
    """Raise `UsageError` where color is asked of images that are all gray.

    Three equal channels hold no more than one, at three times the cost. A user's own
    images are read, those of a set that is known by name are not.

    Args:
        spec: The images, as `image_task` takes them.
        channels: That are asked for, 1 or 3.

    >>> check_color("digits", 3)
    Traceback (most recent call last):
    nablab.errors.UsageError: The images of digits are gray: with channels=3 their \
channels would be equal. Take channels=1, or images in color.
    """
    if channels == 1:
        return
    depth = names.stored_channels(data_set_of(spec))
    if depth is None:
        images = image_task(spec, channels=channels).images().images
        depth = 1 if bool((images[:, :-1] == images[:, 1:]).all()) else channels
    if depth == 1:
        raise UsageError(
            f"The images of {spec} are gray: with channels={channels} their channels "
            "would be equal. Take channels=1, or images in color."
        )


def image_sets(specs: Iterable[str]) -> tuple[str, ...]:
    """Select the image sets among tasks, as they are written.

    `Experiment.data_sets` gives them.

    >>> image_sets(["sinc", "mnist", "digits@200", "x*sin(x)@-3..3@50"])
    ('mnist', 'digits@200')
    """
    return tuple(spec for spec in specs if _means_images(data_set_of(spec)))


def data_set_of(spec: str) -> str:
    """Return the name or path of an image set, without the number of images meant.

    >>> data_set_of("mnist@10000"), data_set_of("./flowers")
    ('mnist', './flowers')
    """
    return _parts(spec)[0]


def _parts(spec: str) -> tuple[str, int | None]:
    """Split a text into the name and the number after the last ``@``, if there is one.

    What is on the disk as it is written is a name as a whole.
    """
    found = re.fullmatch(r"(.+)@(\d[\d_]{0,9})", spec)
    if not found or (
        found[1] not in names.image_set_names() and Path(spec).expanduser().exists()
    ):
        return spec, None
    return found[1], int(found[2])


def _check_meaning(spec: str) -> None:
    """Refuse ``./d@12`` where there are both such a folder and another one ``./d``.

    12 images of the second may be meant.
    """
    part, _, number = spec.rpartition("@")
    if (
        _parts(spec)[0] == spec
        and number.isdigit()
        and part
        and Path(part).expanduser().exists()
    ):
        raise UsageError(
            f"'{spec}' may mean the folder of this name or {number} images of {part}: "
            f"both are there. Write {spec}/ for the first or {part}/@{number} for the "
            "second."
        )


def _means_images(name: str) -> bool:
    """Tell whether a name is an image set, or looks more like one than like a target.

    ``x/2`` has a slash as a path has, so a path that is not there must look like one in
    other ways, too.
    """
    if name.startswith(("/", "./", "../", "~")) or name.endswith(".npz"):
        return True
    return name not in ("x", "pi", "e", *TARGETS) and names.is_image_set(name)


def _check_target(spec: str) -> None:
    word = spec.partition("@")[0].strip()
    if re.fullmatch(r"[A-Za-z_]\w*", word) and word not in ("x", "pi", "e", *TARGETS):
        remedy = (
            "Or write an expression of x, such as x*sin(x)@-3..3@300, or a "
            "folder of images."
        )
        raise unknown(
            "target or image set",
            word,
            [*TARGETS, *names.image_set_names()],
            remedy=remedy,
        )
    target(spec)


def _classes(name: str, size: int, channels: int) -> int:
    known = names.known_set(name)
    if known:
        return len(known.classes)
    from nablab.data.user.load import count_classes

    return count_classes(Path(name).expanduser(), size=size, channels=channels)
