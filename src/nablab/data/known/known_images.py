"""Data sets of labeled images that have a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nablab.data.known.known_set import EmbeddedSet, KnownSet

if TYPE_CHECKING:
    from torch import Tensor

    from nablab.data.images.image_set import ImageSet


@dataclass(frozen=True, kw_only=True)
class KnownImages(KnownSet):
    """Labeled images that are fetched.

    Attributes:
        shape: Of one image, (channels, height, width).
        mean: Of each channel over the training split, on the scale from 0 to 1.
        std: Of each channel over the training split, on the scale from 0 to 1.
    """

    kind: ClassVar[str] = "images"

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def decode(self, files: Sequence[bytearray]) -> tuple[Tensor, Tensor]:
        """Decode the files of one split.

        Args:
            files: The content of the split's files, in the order of ``splits``.

        Returns:
            Images uint8 (N, C, H, W) and labels int64 (N,).

        Raises:
            DataError: The bytes are not in the form that the set has.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode()")


@dataclass(frozen=True, kw_only=True)
class EmbeddedImages(EmbeddedSet):
    """Labeled images that come with a package.

    Attributes:
        shape: Of one image, (channels, height, width).
    """

    kind: ClassVar[str] = "images"

    shape: tuple[int, int, int]

    def load(self, split: str) -> ImageSet:
        """Return one split of it."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")
