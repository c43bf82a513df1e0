"""Images as Zhang et al.

(ICLR 2017) prepared them: the middle of each, whitened by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nablab.errors import UsageError


@dataclass(frozen=True)
class Whiten:
    """uint8 images to float32, each whitened by its own mean and deviation.

    Mean and deviation are taken over all pixels and channels of the image. The
    deviation counts as at least 1 / sqrt(values); an image of one value everywhere
    becomes zeros. This is what TensorFlow calls per_image_standardization, formerly
    per_image_whitening (Zhang et al., ICLR 2017, used it).

    >>> import torch
    >>> Whiten()(torch.tensor([0, 2], dtype=torch.uint8).reshape(1, 1, 1, 2)).flatten()
    tensor([-1.,  1.])
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Convert uint8 (..., C, H, W) to float32 of the same shape and device."""
        values = images.float()
        axes = (-3, -2, -1)
        least = images.shape[-3:].numel() ** -0.5
        deviation = values.std(axes, correction=0, keepdim=True).clamp_min(least)
        whitened = (values - values.mean(axes, keepdim=True)) / deviation
        # The mean of equal numbers is rounded, and what is left of them must be
        # nothing.
        varies = values.amax(axes, keepdim=True) > values.amin(axes, keepdim=True)
        return whitened * varies


def center_crop(images: Tensor, side: int) -> Tensor:
    """Cut out the middle ``side`` x ``side`` pixels of images (N, C, H, W).

    They are copied where anything is cut.

    Of an odd rest the larger half is cut at the bottom and on the right.

    Args:
        images: (N, C, H, W).
        side: Height and width of what is left.

    Raises:
        UsageError: The images are smaller.

    >>> import torch
    >>> center_crop(torch.arange(16).reshape(1, 1, 4, 4), 2).flatten().tolist()
    [5, 6, 9, 10]
    """
    height, width = images.shape[-2:]
    if not 1 <= side <= min(height, width):
        raise UsageError(
            f"{side} x {side} pixels cannot be cut from images of {height} x {width}."
        )
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side].contiguous()
