"""Images in memory: one uint8 tensor with labels, and what turns a batch of it into a network's input.

The images stay uint8, a quarter of float32, until a batch is made: `Augment` moves and flips whole
batches, `Normalize` gives float32 on the device where the batch lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.errors import UsageError


@dataclass(frozen=True)
class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1, channel by channel.

    Attributes:
        mean: Per channel, on the scale from 0 to 1.
        std: Per channel, on the scale from 0 to 1; above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (..., C, H, W) from uint8 (..., C, H, W), on the same device."""
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=images.device)
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device)
        return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


@dataclass(frozen=True)
class Augment:
    """Random shifts and mirror images of whole batches; the pixels that come in from outside are black.

    Attributes:
        shift: Largest shift in pixels, up, down, left and right alike; the same as padding by so many
            pixels and cropping at a random place.
        flip: Whether half of the images are mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UsageError(f"Augment: shift must not be negative, got {self.shift}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A new batch (N, C, H, W), of the same dtype and on the same device.

        Args:
            images: A batch (N, C, H, W).
            generator: A CPU generator; two numbers are drawn per image for a shift, one for a flip.
        """
        count, _, height, width = images.shape
        columns = torch.arange(width).expand(count, width)
        if self.flip:
            mirrored = torch.randint(2, (count, 1), generator=generator).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        if not self.shift:
            return images.gather(3, columns.to(images.device)[:, None, None].expand(images.shape))
        padded = torch.nn.functional.pad(images, [self.shift] * 4)
        offsets = torch.randint(2 * self.shift + 1, (2, count, 1), generator=generator)
        rows = (torch.arange(height) + offsets[0]).to(images.device)
        columns = (columns + offsets[1]).to(images.device)
        index = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
        std: Standard deviation of each channel over the training split, on the scale from 0 to 1.
        license: Under which terms the data may be used.
        citation: Whom to cite.
        source: Where the bytes came from.
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

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Memory of images and labels, in bytes."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def normalize(self) -> Normalize:
        """What makes a network's input of a batch, with the training split's mean and deviation."""
        return Normalize(self.mean, self.std)

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The samples at these places, copied."""
        where = torch.as_tensor(indices)
        return dataclasses.replace(self, images=self.images[where], labels=self.labels[where])

    def first(self, samples: int) -> ImageSet:
        """The first ``samples`` samples, or all if there are fewer; shares the memory."""
        return dataclasses.replace(self, images=self.images[:samples], labels=self.labels[:samples])

    def hold_out(self, samples: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
        """Cut a validation split off: the rest, and ``samples`` samples drawn by ``seed``.

        Raises:
            UsageError: There are not so many samples, or none would be left.
        """
        if not 0 < samples < len(self):
            raise UsageError(
                f"{samples} samples cannot be held out of the {len(self)} of {self.name}: "
                f"choose from 1 to {len(self) - 1}."
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held_out = dataclasses.replace(self.take(order[:samples].sort().values), split="validation")
        return self.take(order[samples:].sort().values), held_out
