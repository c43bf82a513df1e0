"""The images and networks that the image path is raced on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nablab import data, errors, models

MEAN, STD = 0.1307, 0.3081  # MNIST's, on the scale from 0 to 1
CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Training and test images of MNIST's shape, with labels.

    The images are uint8 (N, 1, 28, 28), the labels (N,).

    Attributes:
        name: Which they are.
        train: Images and labels to train on.
        test: Images and labels to evaluate.
        prepare: uint8 to float32 inputs.
        note: What to know about them; empty for MNIST.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    prepare: data.Normalize
    note: str = ""

    def first(self, samples: int) -> Images:
        """Return the same with the first ``samples`` training images only."""
        x, y = self.train
        return Images(
            self.name, (x[:samples], y[:samples]), self.test, self.prepare, self.note
        )


def load(*, quick: bool) -> Images:
    """Load MNIST, or random bytes of its shape where it is not on this machine.

    ``quick`` takes 1,000 images.
    """
    train_size, test_size = (1_000, 200) if quick else (60_000, 10_000)
    try:
        sets = [data.load("mnist", split=split) for split in ("train", "test")]
    except errors.NablabError as error:
        generator = torch.Generator().manual_seed(0)
        pairs = [
            (
                torch.randint(
                    256, (size, 1, 28, 28), dtype=torch.uint8, generator=generator
                ),
                torch.randint(CLASSES, (size,), generator=generator),
            )
            for size in (train_size, test_size)
        ]
        reason = str(error).splitlines()[0]
        note = (
            "Random bytes of MNIST's shape stand for it, since MNIST is not here: "
            f"{reason}"
        )
        return Images("random bytes", *pairs, data.Normalize((MEAN,), (STD,)), note)
    train, test = (
        part.first(size)
        for part, size in zip(sets, (train_size, test_size), strict=True)
    )
    return Images(
        "MNIST",
        (train.images, train.labels),
        (test.images, test.labels),
        train.normalize,
    )


def lenet() -> nn.Module:
    """Build LeNet for 28 x 28 images: 61,706 parameters."""
    return models.image_network("lenet")


def perceptron(hidden: int) -> nn.Module:
    """Build 784-h-10 on images."""
    return models.image_network(f"784-{hidden}-10")
