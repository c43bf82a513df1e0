"""A user's own images: a folder with a subfolder per class, or an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nablab.data.images.forms import Statistics, statistics
from nablab.data.images.image_set import ImageSet
from nablab.data.user.arrays import open_arrays
from nablab.data.user.folders import open_folder
from nablab.data.user.own import Own
from nablab.errors import UsageError
from nablab.files.places import in_text

TEST_SHARE = 0.2
CUT_NOTE = (
    "There is no test split, so a fifth of each class was cut off for it, the "
    "same fifth every time"
)

_own_statistics: dict[Hashable, Statistics] = {}


def load_own(
    path: Path, *, split: str, size: int | None, channels: int | None
) -> ImageSet:
    """Load one split of a folder of images or of an ``.npz`` file.

    Args:
        path: A folder with a subfolder of images per class, below ``train`` and
            ``test`` if it has them; or an ``.npz`` file with arrays ``images`` and
            ``labels``, ``x`` and ``y``, or both splits as Keras (``x_train``, ...) or
            MedMNIST (``train_images``, ...) name them.
        split: ``"train"`` or ``"test"``; where there is no test split, a fifth of each
            class is cut off.
        size: Height and width, or None if all images have the same.
        channels: 1, 3, or None if all images have the same.

    Raises:
        UsageError: It does not have such a form; the text names the file or array.
    """
    own = _open(path, size, channels)
    where, cut = _places(own, split)
    images, notes = own.images(where[0], where[1])
    mean, std = _statistics(own, images if split == "train" else None)
    return ImageSet(
        name=in_text(
            path.resolve().stem if path.suffix == ".npz" else path.resolve().name
        ),
        split=split,
        images=images,
        labels=torch.from_numpy(own.labels[where[0]][where[1]]),
        classes=own.classes,
        mean=mean,
        std=std,
        source=in_text(path.resolve()),
        notes=(*notes, CUT_NOTE) if cut else notes,
    )


def count_classes(path: Path, *, size: int | None, channels: int | None) -> int:
    """Count the classes.

    The images are read, and so checked, once per process and state of the files.

    Raises:
        UsageError: As `load_own`.
    """
    own = _open(path, size, channels)
    if own.fingerprint not in _own_statistics:
        load_own(path, split="test", size=size, channels=channels)
    return len(own.classes)


def _open(path: Path, size: int | None, channels: int | None) -> Own:
    """Read what is there, without its images."""
    if path.is_dir():
        return open_folder(path, size, channels)
    if path.suffix == ".npz":
        return open_arrays(path, size, channels)
    raise UsageError(f"{path} is neither a folder nor an .npz file.")


def _places(own: Own, split: str) -> tuple[tuple[str, np.ndarray], bool]:
    """Find the stored split and the places in it where the images of a split lie.

    The last value tells whether it was cut.
    """
    if "test" in own.labels:
        return (split, np.arange(len(own.labels[split]))), False
    train, test = cut(own.labels["train"], own.classes, in_text(own.path))
    return ("train", train if split == "train" else test), True


def cut(
    labels: np.ndarray, classes: Sequence[str], where: str, *, noun: str = "image"
) -> tuple[np.ndarray, np.ndarray]:
    """Cut indices into a training and a test split with a fifth of each class.

    The same labels give the same splits.

    Raises:
        UsageError: A class has one sample only.
    """
    tests = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UsageError(
                f"{where}: the class '{name}' has one {noun}, and a training and a "
                f"test split need one each. Add {noun}s, or give a test split of your "
                "own."
            )
        # A generator per class: images added to one class do not move those of another.
        order = np.random.default_rng([0, label]).permutation(members)
        tests.append(order[: max(1, round(TEST_SHARE * len(members)))])
    test = np.sort(np.concatenate(tests))
    return np.setdiff1d(np.arange(len(labels)), test), test


def _statistics(own: Own, training: Tensor | None) -> Statistics:
    """Compute the mean and deviation of the training split.

    They are computed once per process and state of the files.
    """
    if own.fingerprint not in _own_statistics:
        if training is None:
            where, _ = _places(own, "train")
            training, _ = own.images(*where)
        _own_statistics[own.fingerprint] = statistics(training)
    return _own_statistics[own.fingerprint]
