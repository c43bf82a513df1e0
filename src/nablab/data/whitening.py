"""Each image to mean 0 and deviation 1 by itself: `Whiten`, beside `nablab.data.Normalize`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Whiten:
    """uint8 images to float32, each minus its own mean and over its own standard deviation.

    Mean and deviation are taken over all pixels and channels of the image. The deviation counts as at
    least 1 / sqrt(values), so that an image of one color becomes zeros. This is what TensorFlow calls
    per_image_standardization, formerly per_image_whitening (Zhang et al., ICLR 2017, used it).

    >>> import torch
    >>> Whiten()(torch.tensor([0, 2], dtype=torch.uint8).reshape(1, 1, 1, 2)).flatten()
    tensor([-1.,  1.])
    """

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (..., C, H, W) from uint8 (..., C, H, W), on the same device."""
        values = images.float()
        axes = (-3, -2, -1)
        least = images.shape[-3:].numel() ** -0.5
        deviation = values.std(axes, correction=0, keepdim=True).clamp_min(least)
        return (values - values.mean(axes, keepdim=True)) / deviation
