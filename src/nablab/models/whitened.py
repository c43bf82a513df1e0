"""Convolutional networks whose first layer whitens and is never trained.

Neighboring pixels of a photo are nearly equal, so a network that starts from random
filters spends its first epochs on learning to take differences. The right filters can
be computed: the directions in which small patches of the training images vary, each
divided by how much they vary in it. What comes out is uncorrelated and of variance 1.

The idea and the arrangement of the blocks are public knowledge of fast training on
CIFAR-10 (Page, How to train your ResNet, 2018; Jordan, 94 % on CIFAR-10 in 3.29
seconds, 2024, arXiv:2404.00498). Here they are arranged for processors: of the frozen
layer nothing is differentiated, pooling comes before batch norm, which then has a
quarter of the values to go through, and a trainable shift is the only parameter of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nablab.errors import UsageError
from nablab.models.dense_network import Activation, activation_layer

IMAGES_AT_ONCE = 500  # patches of so many in float64 take 50 MB

# Shifts that learn as fast as the output layer cost 0.8 points of accuracy in a training
# of two short epochs. A parameter of four times the shift makes their learning rate a
# sixteenth: its gradient and its effect are a quarter each.
SHIFT_SCALE = 0.25

# Of the running means: with a hundred steps or less a slow average would still hold the
# statistics of the first ones.
STATISTICS_MOMENTUM = 0.4


def whitening_filters(
    images: Tensor, size: int = 2, *, epsilon: float = 5e-4
) -> Tensor:
    r"""Compute filters that make patches of images uncorrelated, with variance 1.

    The rows of $\Lambda^{-1/2} V^T$ for the covariance $V \Lambda V^T$ of all patches
    of ``size`` x ``size`` pixels, in float64: directions of large variance first.

    Args:
        images: Prepared as the network gets them, (N, C, H, W).
        size: Pixels of a patch's side.
        epsilon: Is added to each variance, so that directions in which the images
            hardly vary, which are noise, are not blown up.

    Returns:
        (C size^2, C, size, size), of the images' dtype.

    Raises:
        UsageError: The patches are larger than the images, or fewer than their pixels.

    >>> found = whitening_filters(torch.randn(9, 3, 8, 8), 2)
    >>> tuple(found.shape)
    (12, 3, 2, 2)
    """
    _, channels, height, width = images.shape
    if not 1 <= size <= min(height, width):
        raise UsageError(
            f"Patches of {size} x {size} pixels cannot be cut from images of {height} "
            f"x {width}."
        )
    values = channels * size**2
    moment, total, count = torch.zeros(values, values).double(), torch.zeros(()), 0
    for some in torch.split(images, IMAGES_AT_ONCE):
        patches = functional.unfold(some.double(), size).transpose(1, 2).flatten(0, 1)
        moment = moment + patches.T @ patches
        total = total + patches.sum(0)
        count += len(patches)
    if count <= values:
        raise UsageError(
            f"{count} patches cannot tell how {values} values vary together: give more "
            "images."
        )
    mean = total / count
    variances, directions = torch.linalg.eigh(moment / count - mean.outer(mean))
    filters: Tensor = directions / (variances.clamp_min(0) + epsilon).sqrt()
    return filters.T.flip(0).reshape(values, channels, size, size).to(images.dtype)


class FastConvolutional(nn.Module):
    """Whitening, blocks of one or two convolutions, the largest of each map, a head.

    A block is: convolution 3 x 3, largest of 2 x 2, batch norm, activation, and, if it
    has two, convolution 3 x 3, batch norm, activation. Images (N, C, H, W) give logits
    (N, classes). Convolutions have no biases, since batch norm would take them out.

    Args:
        filters: Of the first layer, (F, C, k, k), such as `whitening_filters`; the
            layer has them and their negatives, so that the activation loses nothing.
        widths: Filters of each block.
        convolutions: Of each block, 1 or 2; or one number for all.
        classes: Number of outputs.
        activation: After whitening and each batch norm.
        stride: Of the first layer, in pixels. With 2 its maps, and all that follow,
            have a quarter of the values: half of the time, and a lower ceiling.
        scale: The logits are multiplied by it, which makes the head learn slowly
            against the rest.
    """

    filters: Tensor

    def __init__(
        self,
        filters: Tensor,
        *,
        widths: Sequence[int] = (64, 256, 256),
        convolutions: int | Sequence[int] = 2,
        classes: int = 10,
        activation: Activation = "gelu",
        stride: int = 1,
        scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        depths = (
            [convolutions] * len(widths)
            if isinstance(convolutions, int)
            else list(convolutions)
        )
        _check(widths, depths)
        self.register_buffer("filters", torch.cat([filters, -filters]))
        self.activation = activation_layer(activation)
        inputs = [2 * len(filters), *widths]
        self.blocks = nn.Sequential(
            *(
                Block(*sides, depth=depth, activation=activation)
                for *sides, depth in zip(inputs, widths, depths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.scale, self.stride = scale, stride

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes) of prepared images (N, C, H, W)."""
        # Of what comes before the first trained layer no gradient is needed.
        with torch.no_grad():
            white = functional.conv2d(images, self.filters, stride=self.stride)
            white = self.activation(white)
        maps: Tensor = self.blocks(white)
        logits: Tensor = self.head(maps.amax((2, 3))) * self.scale
        return logits


class Block(nn.Module):
    """One or two convolutions with batch norm; halves the sides of the maps.

    Args:
        inputs: Channels that come in.
        outputs: Filters.
        depth: Convolutions, 1 or 2.
        activation: After batch norm.
    """

    def __init__(
        self, inputs: int, outputs: int, *, depth: int, activation: Activation
    ) -> None:
        super().__init__()
        first = [convolution(inputs, outputs), nn.MaxPool2d(2), BatchShift(outputs)]
        second = [convolution(outputs, outputs), BatchShift(outputs)]
        layers: list[nn.Module] = [*first, activation_layer(activation)]
        if depth > 1:
            layers += [*second, activation_layer(activation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute maps (N, outputs, H // 2, W // 2) of maps (N, inputs, H, W)."""
        found: Tensor = self.layers(maps)
        return found


class BatchShift(nn.Module):
    """Batch norm with a trainable shift and no trainable scale.

    The next layer's weights can scale as well.

    Args:
        channels: Of the maps.
    """

    ones: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("ones", torch.ones(channels), persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Normalize maps (N, C, H, W), channel by channel, and shift them."""
        return functional.batch_norm(
            maps,
            self.running_mean,
            self.running_var,
            self.ones,
            self.shift * SHIFT_SCALE,
            training=self.training,
            momentum=STATISTICS_MOMENTUM,
        )


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Build a convolution 3 x 3 whose first filters pass their input on.

    A deep network that begins by passing on what it gets learns faster than one that
    begins by mixing it.
    """
    made = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(made.weight[:inputs])
    return made


def _check(widths: Sequence[int], depths: Sequence[int]) -> None:
    if not widths or len(depths) != len(widths) or min(widths) < 1:
        raise UsageError(
            "FastConvolutional: widths are one number of filters for each block, and "
            f"convolutions as many, got {tuple(widths)} and {tuple(depths)}."
        )
    if not set(depths) <= {1, 2}:
        raise UsageError(
            f"FastConvolutional: a block has 1 or 2 convolutions, got {tuple(depths)}."
        )
