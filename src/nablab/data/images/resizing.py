"""Images as networks of another size want them: batch by batch, never all at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.data.images.image_set import Normalize


@dataclass(frozen=True)
class Resize:
    """uint8 images to float32 of another size, then to the numbers a network wants.

    50,000 images of 3 x 32 x 32 are 154 MB as bytes; at 64 x 64 they would be 2.5 GB
    of float32. So they are resized when a batch is made.

    Attributes:
        size: Height and width in pixels; bilinear, with antialiasing to shrink.
        normalize: What comes after.
    """

    size: int
    normalize: Normalize

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 (..., C, H, W) to float32 (..., C, size, size)."""
        height, width = images.shape[-2:]
        if (height, width) != (self.size, self.size):
            before = images.shape[:-2]
            images = torch.nn.functional.interpolate(
                images.reshape(-1, *images.shape[-3:]).float(),
                (self.size, self.size),
                mode="bilinear",
                antialias=self.size < max(height, width),
            ).reshape(*before, self.size, self.size)
        return self.normalize(images)
