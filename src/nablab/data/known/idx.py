"""Data sets in the idx format of MNIST, and what all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nablab.data.known.known_images import KnownImages

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
SPLIT_FILES = {
    "train": (TRAIN_IMAGES, TRAIN_LABELS),
    "test": (TEST_IMAGES, TEST_LABELS),
}
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
SAMPLES = {"train": 60_000, "test": 10_000}


class IdxSet(KnownImages):
    """A set whose splits are one idx file of images and one of labels."""

    def decode(self, files: Sequence[bytearray]) -> tuple[Tensor, Tensor]:
        """See `KnownImages.decode`."""
        from nablab.data.images.decoding import idx_split  # brings PyTorch

        return idx_split(files)
