"""The images and networks that the image path is raced on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nablab import data, errors, models

MEAN, STD = 0.1307, 0.3081  # MNIST's, on the scale from 0 to 1
CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Training and test images with labels.

    The images are uint8 (N, C, H, W), (N, 1, 28, 28) for MNIST, the labels (N,).

    Attributes:
        name: Which they are.
        train: Images and labels to train on.
        test: Images and labels to evaluate.
        prepare: uint8 to float32 inputs.
        note: What to know about them; empty for real images.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    prepare: data.Normalize
    note: str = ""

    def first(self, samples: int, *, split: str = "train") -> Images:
        """Return the same with the first ``samples`` images of a split only."""
        x, y = getattr(self, split)
        return dataclasses.replace(self, **{split: (x[:samples], y[:samples])})


# By name: channels, pixels of a side, and how many training and test images there are.
SETS = {"mnist": (1, 28, (60_000, 10_000)), "cifar10": (3, 32, (50_000, 10_000))}
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def load(name: str = "mnist", *, quick: bool) -> Images:
    """Load MNIST or CIFAR-10, or random bytes of their shape where they are missing.

    ``quick`` takes 1,000 images.
    """
    channels, side, sizes = SETS[name]
    train_size, test_size = (1_000, 200) if quick else sizes
    try:
        sets = [data.load(name, split=split) for split in ("train", "test")]
    except errors.NablabError as error:
        generator = torch.Generator().manual_seed(0)
        pairs = [
            (
                torch.randint(
                    256,
                    (size, channels, side, side),
                    dtype=torch.uint8,
                    generator=generator,
                ),
                torch.randint(CLASSES, (size,), generator=generator),
            )
            for size in (train_size, test_size)
        ]
        reason = str(error).splitlines()[0]
        note = (
            f"Random bytes of {TITLES[name]}'s shape stand for it, since "
            f"{TITLES[name]} is not here: {reason}"
        )
        normalize = data.Normalize((MEAN,) * channels, (STD,) * channels)
        return Images("random bytes", *pairs, normalize, note)
    train, test = (
        part.first(size)
        for part, size in zip(sets, (train_size, test_size), strict=True)
    )
    return Images(
        TITLES[name],
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


def simple_convolutional() -> nn.Module:
    """Build the simple network of cifar-cnn: 82,826 parameters."""
    return models.image_network("conv32k3p1-pool", channels=3, size=32)
