"""Data sets by name: `load`."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import torch

from nablab.data.images import ImageSet
from nablab.errors import unknown

DIGITS_FOR_TRAINING = 1_297


def load(
    name: str, *, split: str = "train", size: int | None = None, channels: int | None = None
) -> ImageSet:
    """Load a data set."""
    if name != "digits":
        raise unknown("data set", name, ["digits"])
    found = _digits(split)
    if size is not None and size != found.images.shape[-1]:
        resized = torch.nn.functional.interpolate(found.images.float(), size=(size, size), mode="bilinear")
        found = dataclasses.replace(found, images=resized.round().clamp(0, 255).byte())
    return found


@cache
def _digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:DIGITS_FOR_TRAINING], order[DIGITS_FOR_TRAINING:]
    scale = images[train].float() / 255
    where = train if split == "train" else test
    return ImageSet(
        "digits",
        split,
        images[where],
        labels[where],
        tuple("0123456789"),
        (float(scale.mean()),),
        (float(scale.std()),),
        source="scikit-learn",
    )
