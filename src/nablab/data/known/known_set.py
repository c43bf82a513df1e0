"""What is known of a data set: its files with their checksums, its sources, its terms.

A set is defined by the SHA-256 of its canonical files, so it does not matter who serves
the bytes. This module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nablab.data.fetching.sources import Source

if TYPE_CHECKING:
    from torch import Tensor

    from nablab.data.images.image_set import ImageSet

SPLITS = ("train", "test")


@dataclass(frozen=True)
class File:
    """A canonical file of a data set.

    Attributes:
        name: Its name in the cache.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class KnownSet:
    """A data set of labeled images that can be asked for by name.

    A subclass knows the form of its files.

    Attributes:
        name: What to ask for.
        title: What it is.
        files: Its canonical files.
        splits: The names of the files of each split, in order.
        shape: Of one image, (channels, height, width).
        samples: By split.
        classes: The name of each class.
        mean: Of each channel over the training split, on the scale from 0 to 1.
        std: Of each channel over the training split, on the scale from 0 to 1.
        license: Under which terms the data may be used.
        citation: Whom to cite.
        sources: Where it can be fetched, in the order in which they are tried.
        folders: Where other tools put the files below a folder of data sets.
    """

    name: str
    title: str
    files: tuple[File, ...]
    splits: Mapping[str, tuple[str, ...]]
    shape: tuple[int, int, int]
    samples: Mapping[str, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    citation: str
    sources: tuple[Source, ...] = ()
    folders: tuple[str, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """What it takes on the disk, in bytes."""
        return sum(file.size for file in self.files)

    def files_of(self, split: str) -> tuple[File, ...]:
        """Return the canonical files of a split."""
        by_name = {file.name: file for file in self.files}
        return tuple(by_name[name] for name in self.splits[split])

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


@dataclass(frozen=True)
class EmbeddedSet:
    """A data set of labeled images that comes with a package.

    So it is on every machine.

    Attributes:
        name: What to ask for.
        title: What it is.
        package: Which package has it.
        shape: Of one image, (channels, height, width).
        samples: By split.
        classes: The name of each class.
        license: Under which terms the data may be used.
        citation: Whom to cite.
    """

    name: str
    title: str
    package: str
    shape: tuple[int, int, int]
    samples: Mapping[str, int]
    classes: tuple[str, ...]
    license: str
    citation: str

    def load(self, split: str) -> ImageSet:
        """Return one split of it."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")
