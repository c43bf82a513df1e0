"""Samples cut from batches, and batches put together, for the checks of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nablab.instruments.base.batches import count_samples, map_tensors, tensors_in
from nablab.instruments.base.losses import MISFITS

if TYPE_CHECKING:
    from nablab.instruments.base.objective import Objective


def few_samples(objective: Objective, batch: Any, most: int = 4) -> Any:
    """Return some samples of a batch if the loss allows it, else the batch.

    Args:
        objective: Whose loss is tried on them.
        batch: One batch of its data.
        most: How many samples to take at most.
    """
    try:
        few = Part(batch, axis=0).select(torch.arange(min(most, count_samples(batch))))
        objective.batch_loss(objective.values, few)
    # Weights per sample, packed sequences and the like: the whole is always possible.
    except MISFITS:
        return batch
    return few


class Part:
    """Samples of a batch along the first axis, or the second of tensors with two.

    Attributes:
        length: Number of samples.
    """

    def __init__(self, batch: Any, *, axis: int) -> None:
        self._batch, self._axis = batch, axis
        self.length = count_samples(batch) if axis == 0 else second_length(batch)

    def select(self, indices: Tensor) -> Any:
        """Return the samples at int64 indices (n,), as a batch."""
        return map_tensors(self._batch, lambda tensor: self._of(tensor, indices))

    def _of(self, tensor: Tensor, indices: Tensor) -> Tensor:
        for axis in range(self._axis, -1, -1):
            if tensor.ndim > axis and tensor.shape[axis] == self.length:
                return (
                    tensor.detach()
                    .index_select(axis, indices.to(tensor.device))
                    .requires_grad_(tensor.requires_grad)
                )
        return tensor


def second_length(batch: Any) -> int:
    """Return the length of the second axis of the first tensor; 0 without one."""
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim), None)
    return int(first.shape[1]) if first is not None and first.ndim > 1 else 0


def join_batches(parts: Sequence[Any]) -> Any | None:
    """Return batches as one, or None if their tensors do not go together."""
    columns = [tensors_in(part) for part in parts]
    if len({len(column) for column in columns}) != 1:
        return None
    together = []
    for tensors in zip(*columns, strict=True):
        if any(t.ndim == 0 or t.shape[1:] != tensors[0].shape[1:] for t in tensors):
            return None
        together.append(
            torch.cat([t.detach() for t in tensors]).requires_grad_(
                tensors[0].requires_grad
            )
        )
    remaining = iter(together)
    return map_tensors(parts[0], lambda _: next(remaining))


def to_double(batch: Any) -> Any:
    """Convert the floating-point tensors of a batch to float64."""

    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return map_tensors(batch, converted)
