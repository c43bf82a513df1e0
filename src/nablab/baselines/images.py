"""Images minus their mean, and what the best linear codes make of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn

from nablab import data
from nablab.baselines.principal import (
    Moments,
    PrincipalComponents,
    principal_components,
)

AT_ONCE = 1_000  # images that are scored in one call
FOUND_AT_FIRST = 256  # components; codes are seldom larger

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class CenteredImages:
    """Images minus the mean training image, on a scale from 0 to 1.

    Attributes:
        train: float32 (N, C, H, W).
        test: float32 (M, C, H, W), minus the same mean.
        mean: float32 (C, H, W).
        moments: Of the training images, as rows of pixels.
        components: Their first principal components, about the mean of the moments.
        seconds: What moments and components took.
        notes: What was decided about the data.
    """

    train: Tensor
    test: Tensor
    mean: Tensor
    moments: Moments
    components: PrincipalComponents
    seconds: float
    notes: tuple[str, ...]

    @property
    def inputs(self) -> int:
        """Numbers of an image."""
        return self.mean.numel()

    def leading(self, count: int) -> PrincipalComponents:
        """Return the first components, about the origin: these images are centered."""
        found = self._found(count)
        return PrincipalComponents(
            mean=torch.zeros_like(found.mean),
            axes=found.axes[:count],
            variances=found.variances[:count],
            total=found.total,
        )

    def best(self, count: int) -> float:
        """Return the training error per pixel of so many components."""
        return self._found(count).lost(count) / self.inputs

    def _found(self, count: int) -> PrincipalComponents:
        """Return so many components or more."""
        if count <= len(self.components.variances):
            return self.components
        return principal_components(self.moments, count)

    def pixels(self, centered: Tensor) -> Tensor:
        """Turn centered images (n, C, H, W) to uint8; what is beyond 0 to 1 is cut."""
        whole = ((centered.cpu() + self.mean) * 255).round().clamp(0, 255)
        return whole.to(torch.uint8)


def centered_images(spec: str, *, size: int, channels: int) -> CenteredImages:
    """Read images, subtract their mean, and find their principal components.

    The last ones are remembered: the conditions of an experiment ask for the same.

    Args:
        spec: Labeled images, as `nablab.data.image_task` takes them.
        size: Height and width to which images are brought.
        channels: 1 or 3.
    """
    task = data.image_task(spec, size=size, channels=channels)
    # A user's own file may change between two calls in one process.
    source = data.source_hash(task.data_set)
    return _centered_images(spec, (channels, size, size), source)


def squared_error(
    forward: Forward, images: Tensor, given: Tensor | None = None
) -> float:
    """Return a mean squared error per pixel, added up in float64.

    Args:
        forward: Takes rows of pixels and gives what should be the images.
        images: (N, ...), what should come out.
        given: (N, ...), what goes in; the images themselves if it is missing.
    """
    total = 0.0
    wanted = torch.split(images.flatten(1), AT_ONCE)
    entered = wanted if given is None else torch.split(given.flatten(1), AT_ONCE)
    for x, y in zip(entered, wanted, strict=True):
        total += float((forward(x) - y).double().square().sum())
    return total / images.numel()


def on_rows(net: nn.Module, shape: tuple[int, ...]) -> Forward:
    """Return a function of rows of pixels, on the CPU, of a network.

    Args:
        net: Takes and gives (n, *shape).
        shape: Of what it takes.
    """
    device = next(net.parameters()).device

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = net(x.reshape(len(x), *shape).to(device))
        return out.flatten(1).cpu()

    return forward


@lru_cache(maxsize=1)
def _centered_images(
    spec: str, shape: tuple[int, int, int], source: str
) -> CenteredImages:
    channels, size, _ = shape
    task = data.image_task(spec, size=size, channels=channels)
    pixels = task.train()[0]
    train, test = (part.float() / 255 for part in (pixels, task.held_out()[0]))
    began = time.perf_counter()
    # Of whole numbers moments are exact, and faster.
    whole = Moments.of(pixels.flatten(1))
    moments = Moments(whole.mean / 255, whole.covariance / 255**2)
    components = principal_components(moments, min(prod(shape), FOUND_AT_FIRST))
    seconds = time.perf_counter() - began
    mean = moments.mean.float().reshape(shape)
    return CenteredImages(
        train=train.sub_(mean),
        test=test.sub_(mean),
        mean=mean,
        moments=moments,
        components=components,
        seconds=seconds,
        notes=task.notes,
    )
