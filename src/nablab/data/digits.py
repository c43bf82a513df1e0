"""scikit-learn's digits: 1,797 images of 8 x 8 pixels that are on every machine."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch

from nablab.data.forms import statistics
from nablab.data.images import ImageSet
from nablab.data.known import DIGITS, DIGITS_SAMPLES

TRAINING_SAMPLES = DIGITS_SAMPLES["train"]
PIXEL_MAX = 16


def digits(split: str) -> ImageSet:
    """A split of the digits; which image is in which is drawn once, by seed 0.

    The pixels, 0 to 16 in the original, are scaled to 0 to 255.
    """
    images, labels = _all()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING_SAMPLES], order[TRAINING_SAMPLES:]
    mean, std = statistics(images[train])
    where = train if split == "train" else test
    return ImageSet(
        name=DIGITS,
        split=split,
        images=images[where],
        labels=labels[where],
        classes=tuple("0123456789"),
        mean=mean,
        std=std,
        license="CC BY 4.0",
        citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998",
        source="scikit-learn",
    )


@cache
def _all() -> tuple[torch.Tensor, torch.Tensor]:
    """All images uint8 (1797, 1, 8, 8) and labels int64 (1797,), in scikit-learn's order."""
    table = _table()
    images = np.round(table[:, :-1] * (255 / PIXEL_MAX)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(table[:, -1].astype(np.int64))


def _table() -> np.ndarray:
    """64 pixels and the label of each image.

    Read from scikit-learn's file: importing its loader takes a second or more, half of what a quick
    preset has. Where a later version keeps the file elsewhere, the loader is used.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
