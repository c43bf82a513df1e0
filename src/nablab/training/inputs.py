"""From stored samples to what a network sees.

Augmentation, preparation, memory layout, precision.

Samples may be stored in fewer bytes than the network computes with, such as uint8
images. A batch is made into the network's input when it is needed, on the device where
it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.training.seeding import derive, generator

Prepare = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
Precision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True)
class Inputs:
    """How a batch of samples becomes a network's input.

    Attributes:
        prepare: Stored samples to inputs, for every batch, whether trained on or
            evaluated; None for none.
        augment: (stored samples, generator) to stored samples, for training batches
            only.
        bfloat16: Multiply in bfloat16 where that is safe (`torch.autocast`); weights,
            losses, sums of gradients and optimizer steps stay in float32.
        automatic: Whether the precision was left to the laboratory: an engine that is
            faster in float32 may use that.
    """

    prepare: Prepare | None = None
    augment: Augment | None = None
    bfloat16: bool = False
    automatic: bool = False

    def ready(self, x: Tensor) -> Tensor:
        """Return the network's inputs for stored samples, without augmentation."""
        return x if self.prepare is None else self.prepare(x)

    def augmented(self, x: Tensor, seed: int, step: int) -> Tensor:
        """Augment a training batch for one replica at one step.

        The result depends on seed and step alone.

        Args:
            x: Stored samples of the batch.
            seed: Of the replica.
            step: The step that the batch is for.
        """
        if self.augment is None:
            return x
        return self.augment(x, generator(derive(seed, "augment", step)))

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the context in which the network's forward pass runs."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)

    def text(self) -> str:
        """Describe all of it in words, for a checkpoint's fingerprint."""
        return (
            f"prepare={self.prepare!r}, augment={self.augment!r}, "
            f"bfloat16={self.bfloat16}"
        )


def make_inputs(
    prepare: Prepare | None,
    augment: Augment | None,
    precision: Precision,
    device: torch.device,
) -> Inputs:
    """Check the precision, and decide it where it is ``"auto"``.

    Raises:
        UsageError: An unknown precision, or bfloat16 on a device that has no autocast
            for it.
    """
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    if precision == "bfloat16" and device.type == "mps":
        raise UsageError(
            "precision=bfloat16 is not available on mps. Choices: float32, auto."
        )
    fast = precision == "bfloat16" or (
        precision == "auto" and multiplies_bfloat16_fast(device)
    )
    return Inputs(prepare, augment, fast, precision == "auto")


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Tell whether the hardware has units for products of bfloat16 matrices.

    On a CPU these are AMX tiles; AVX-512 alone gains little and loses precision. On
    CUDA they exist since compute capability 8.0.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def convolution_precision() -> Precision:
    """Return the precision in which this processor convolves fastest.

    ``"bfloat16"`` with matrix tiles, or with the AVX-512 instructions for bfloat16:
    convolutions of 3 x 3 over 64 to 256 channels then took 0.45 to 0.6 of the time of
    float32, forward and backward. Others compute bfloat16 by way of float32, slowly.
    Products of small matrices gain nothing by AVX-512, hence ``"auto"`` is stricter.
    """
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def layout(module: nn.Module) -> torch.memory_format:
    """Choose the memory layout in which the network runs fastest.

    It is channels last for convolutions in two dimensions.

    LeNet in batches of 64 to 512 took 0.83 to 0.93 of the time so, on a CPU with
    AVX-512.
    """
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    return torch.channels_last if convolves else torch.contiguous_format


def laid_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Lay out ``x`` in a memory layout that is meant for batches of images.

    Others stay as they are.
    """
    return x.contiguous(memory_format=memory_format) if x.ndim == 4 else x
