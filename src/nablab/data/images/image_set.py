"""Images in memory: one uint8 tensor with labels.

`Normalize` and `Augment` turn a batch of it into a network's input.

The images stay uint8, a quarter of float32, until a batch is made: `Augment` moves and
flips whole batches, `Normalize` gives float32 on the device where the batch lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nablab.data.fetching.progress import file_size
from nablab.data.splits import hold_out
from nablab.errors import UsageError, unknown

# deviation in steps of the 255; rounding alone gives a gray value that varies about 0.3
HARDLY = 0.1

# what torch.nn.functional.pad calls them
BORDERS = {"black": "constant", "reflect": "reflect"}


@dataclass(frozen=True)
class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1, channel by channel.

    A channel whose deviation is 0 has nothing to tell: it becomes zeros, whatever the
    images hold there.

    Attributes:
        mean: Per channel, on the scale from 0 to 1.
        std: Per channel, on the scale from 0 to 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 (..., C, H, W) to float32 of the same shape and device."""
        pairs = list(zip(self.mean, self.std, strict=True))
        shift = torch.tensor(
            [-m / s if s else 0.0 for m, s in pairs], device=images.device
        )
        scale = torch.tensor(
            [1 / (255 * s) if s else 0.0 for _, s in pairs], device=images.device
        )
        return images.float().mul_(scale[:, None, None]).add_(shift[:, None, None])


@dataclass(frozen=True)
class Augment:
    """Random shifts and mirror images of whole batches.

    Attributes:
        shift: Largest shift in pixels, up, down, left and right alike; the same as
            padding by this number of pixels and cropping at a random place.
        flip: Whether half of the images are mirrored left to right.
        border: What comes in from outside: ``"black"`` pixels, or those inside
            mirrored at the edge, ``"reflect"``, so that color images get no bars.
    """

    shift: int = 0
    flip: bool = False
    border: Literal["black", "reflect"] = "black"

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UsageError(f"Augment: shift must not be negative, got {self.shift}.")
        if self.border not in BORDERS:
            raise unknown("border", self.border, BORDERS)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a new batch (N, C, H, W), of the same dtype and on the same device.

        Args:
            images: A batch (N, C, H, W).
            generator: A CPU generator; one number is drawn per image for a flip, two
                for a shift.
        """
        count, _, height, width = images.shape
        mirrored = (
            torch.randint(2, (count,), generator=generator).nonzero()[:, 0]
            if self.flip
            else None
        )
        if self.shift:
            if self.border == "reflect" and self.shift >= min(height, width):
                raise UsageError(
                    f"Augment: images of {height} x {width} pixels cannot be mirrored "
                    f"{self.shift} pixels beyond their edge; shift must be below "
                    f"{min(height, width)}."
                )
            padded = torch.nn.functional.pad(
                images, [self.shift] * 4, mode=BORDERS[self.border]
            )
            # Every window of the padded images as a view; only the drawn ones are
            # copied.
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            down, right = torch.randint(
                2 * self.shift + 1, (2, count), generator=generator
            )
            result = windows[torch.arange(count), :, down, right]
        else:
            result = images.clone()
        if mirrored is not None:
            mirrored = mirrored.to(images.device)
            result[mirrored] = result[mirrored].flip(3)
        return result


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set of labeled images, in memory.

    Attributes:
        name: The data set, such as ``"mnist"``.
        split: ``"train"``, ``"test"`` or ``"validation"``.
        images: uint8 (N, C, H, W).
        labels: int64 (N,), from 0.
        classes: The name of each class.
        mean: Mean of each channel over the training split, on the scale from 0 to 1.
        std: Standard deviation of each channel over the training split, on the scale
            from 0 to 1.
        license: Under which terms the data may be used.
        citation: Whom to cite.
        source: Where the bytes came from.
        notes: What was decided for the user, such as a test split that was cut off; and
            which channels do not vary, or hardly.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str = ""
    citation: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        notes = [
            _note(*one)
            for one in zip(_channel_names(len(self.std)), self.std, strict=True)
        ]
        added = tuple(note for note in notes if note and note not in self.notes)
        object.__setattr__(self, "notes", (*self.notes, *added))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Memory of images and labels, in bytes."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def normalize(self) -> Normalize:
        """What makes a network's input of a batch.

        It knows the training split's mean and deviation.
        """
        return Normalize(self.mean, self.std)

    def describe(self) -> str:
        """Describe the set in one paragraph for a report.

        Name, size, memory, source, terms and whom to cite.

        >>> from nablab import data
        >>> data.load("digits", split="test").describe().split(", 10 classes")[0]
        'digits, test split: 500 images of 8 x 8 pixels, 1 channel'
        """
        _, channels, height, width = self.images.shape
        plural = "" if channels == 1 else "s"
        parts = [
            f"{self.name}, {self.split} split: {len(self):,} images of {height} x "
            f"{width} pixels, {channels} channel{plural}, {len(self.classes)} classes, "
            f"{file_size(self.nbytes)} in memory",
            f"Source: {self.source}" if self.source else "",
            f"License: {self.license}" if self.license else "",
            f"Cite: {self.citation}" if self.citation else "",
            *self.notes,
        ]
        return ". ".join(part.rstrip(".") for part in parts if part) + "."

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Copy the samples at these places.

        Args:
            indices: Places of samples, int64 (n,).
        """
        where = torch.as_tensor(indices)
        return dataclasses.replace(
            self, images=self.images[where], labels=self.labels[where]
        )

    def first(self, samples: int) -> ImageSet:
        """Return the first ``samples`` samples, or all if there are fewer.

        They share the memory.
        """
        return dataclasses.replace(
            self, images=self.images[:samples], labels=self.labels[:samples]
        )

    def hold_out(self, samples: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
        """Cut a validation split off.

        It holds samples drawn by a seed; the training split keeps the rest.

        Args:
            samples: How many to cut off.
            seed: Decides which.

        Returns:
            The rest, and the validation split.

        Raises:
            UsageError: There are fewer samples, or none would be left.
        """
        return hold_out(self, samples, seed=seed)


def _channel_names(count: int) -> tuple[str, ...]:
    return {1: ("the gray value",), 3: ("red", "green", "blue")}.get(count) or tuple(
        f"channel {number}" for number in range(count)
    )


def _note(channel: str, std: float) -> str:
    """Say what a channel's deviation over the training images means.

    Nothing if it varies.
    """
    if std == 0:
        return (
            f"In all training images {channel} is one and the same everywhere: it "
            "tells nothing, and the network sees zeros there"
        )
    if 255 * std < HARDLY:
        return (
            f"In the training images {channel} hardly varies: scaled to a deviation of "
            f"1, a single step of the 255 becomes {1 / (255 * std):,.0f}, which may "
            "spoil training"
        )
    return ""
