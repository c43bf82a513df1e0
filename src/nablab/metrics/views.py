"""Test-time augmentation: a network's mean answer to several views of an image.

The views differ in what does not change the class: mirror images and shifts by a pixel.
What one view shows badly another shows better, so the mean is right more often. It
costs one pass for each view, and it is the score of another method than the network
alone: the two are to be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from nablab.errors import UsageError


@torch.no_grad()
def mean_over_views(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    shift: int = 1,
    mirror: bool = True,
) -> Tensor:
    """Average a network's outputs over views of the same images.

    The image as it is has half of the weight, two copies shifted along the diagonal, to
    the upper left and to the lower right, a quarter each; pixels from outside mirror
    those inside. Each of the three may come with its mirror image at equal weight: six
    passes.

    Args:
        network: Images to outputs (N, ...), in evaluation mode.
        images: Prepared as the network gets them, (N, C, H, W).
        shift: In pixels; 0 for none.
        mirror: Whether mirror images, left to right, are asked for too.

    Raises:
        UsageError: A shift below 0, or not below the images' sides.

    >>> columns = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    >>> mean_over_views(lambda x: x[..., 0], columns, shift=0).item()
    1.0
    """
    if not 0 <= shift < min(images.shape[-2:]) and shift != 0:
        raise UsageError(
            f"mean_over_views: shift must be from 0 to {min(images.shape[-2:]) - 1}, "
            f"below the sides of the images, got {shift}."
        )
    total: Tensor | None = None
    for weight, view in _views(images, shift):
        output = network(view)
        if mirror:
            output = (output + network(view.flip(-1))) / 2
        total = weight * output if total is None else total + weight * output
    assert total is not None
    return total


def _views(images: Tensor, shift: int) -> Iterator[tuple[float, Tensor]]:
    """Yield views with their weights, which sum to 1."""
    if shift == 0:
        yield 1.0, images
        return
    yield 0.5, images
    height, width = images.shape[-2:]
    padded = functional.pad(images, [shift] * 4, mode="reflect")
    for start in (0, 2 * shift):
        yield 0.25, padded[..., start : start + height, start : start + width]
