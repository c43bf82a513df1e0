"""Images in another size or with another number of channels.

The mean and deviation that they then have are computed here, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from nablab.data.images.image_set import ImageSet
from nablab.data.known.known_set import SPLITS
from nablab.errors import UsageError, unknown

CHUNK = 4096  # images converted at once: 50 MB of float32 at 3 x 32 x 32
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_known_statistics: dict[Hashable, Statistics] = {}


def check_form(split: str, size: int | None, channels: int | None) -> None:
    """Raise a `UsageError` unless these are a split, a size and a number of channels."""
    if split not in SPLITS:
        hint = (
            " (a validation split is cut off with hold_out)"
            if split.startswith("val")
            else ""
        )
        raise unknown("split", split, SPLITS, remedy=hint.strip())
    if size is not None and size < 1:
        raise UsageError(f"size must be 1 pixel or more, got {size}.")
    if channels not in (None, 1, 3):
        raise UsageError(f"channels must be 1 (gray) or 3 (color), got {channels}.")


def in_form(
    found: ImageSet,
    size: int | None,
    channels: int | None,
    *,
    training: Callable[[], ImageSet],
    key: Hashable,
) -> ImageSet:
    """Bring a split into a form, with the training split's mean and deviation in it.

    Args:
        found: The split as it is.
        size: Height and width, or None for as it is.
        channels: 1, 3, or None for as it is.
        training: Loads the training split as it is.
        key: Names data and training split, so that the statistics are computed once per
            process.
    """
    if has_form(found.images, size, channels):
        return found
    images = convert(found.images, size, channels)
    place = (key, size, channels)
    if place not in _known_statistics:
        train = (
            images
            if found.split == "train"
            else convert(training().images, size, channels)
        )
        _known_statistics[place] = statistics(train)
    mean, std = _known_statistics[place]
    return dataclasses.replace(found, images=images, mean=mean, std=std)


def has_form(images: Tensor, size: int | None, channels: int | None) -> bool:
    """Tell whether images (N, C, H, W) have this side and number of channels.

    The side is their height and their width.
    """
    return (size is None or tuple(images.shape[2:]) == (size, size)) and channels in (
        None,
        images.shape[1],
    )


def convert(images: Tensor, size: int | None, channels: int | None) -> Tensor:
    """Resize uint8 (N, C, H, W) to uint8 (N, channels, size, size).

    Values are rounded to the nearest.

    Raises:
        UsageError: The images have neither 1 nor 3 channels, and another number is
            wanted.
    """
    if has_form(images, size, channels):
        return images
    count, depth, height, width = images.shape
    if channels is not None and channels != depth and depth not in (1, 3):
        raise UsageError(
            f"Images of {depth} channels cannot be made into {channels}: "
            "only 1 and 3 can."
        )
    form = (channels or depth, *((size, size) if size else (height, width)))
    result = torch.empty((count, *form), dtype=torch.uint8)
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK].float()
        if form[0] == 1 and depth == 3:
            part = torch.einsum("nchw,c->nhw", part, torch.tensor(LUMA))[:, None]
        if form[1:] != (height, width):
            smaller = form[1] < height or form[2] < width
            part = torch.nn.functional.interpolate(
                part, form[1:], mode="bilinear", antialias=smaller
            )
        # broadcast: gray to three channels
        result[start : start + CHUNK] = part.round_().clamp_(0, 255)
    return result


def statistics(images: Tensor) -> Statistics:
    """Compute the mean and standard deviation of each channel of uint8 images.

    The images are (N, C, H, W); the results are on the scale from 0 to 1.

    Exact: from the number of pixels of each of the 256 values. Of a channel with one
    value only the deviation is 0, which sums of rounded numbers would miss (3e-18).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for start in range(0, len(images), CHUNK):
            counts += torch.bincount(
                images[start : start + CHUNK, channel].flatten(), minlength=256
            )
        if counts.count_nonzero() == 1:
            means.append(values[counts.argmax()].item())
            deviations.append(0.0)
            continue
        mean = (counts @ values / counts.sum()).item()
        means.append(mean)
        deviations.append((counts @ (values - mean) ** 2 / counts.sum()).sqrt().item())
    return tuple(means), tuple(deviations)
