"""What a user may call data, as a list of batches with their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nablab.errors import UsageError

COLLATED = 1024  # samples per batch that a data set object is read in, unless batch_size says otherwise


@dataclass(frozen=True)
class Batches:
    """Batches held in memory, on the device and in the dtype of the measurement.

    Attributes:
        items: The batches.
        samples: Samples of each batch.
    """

    items: tuple[Any, ...]
    samples: tuple[int, ...]

    @property
    def total(self) -> int:
        """Samples of all batches."""
        return sum(self.samples)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each batch in the mean over samples: a ragged last batch counts for what it holds."""
        return tuple(n / self.total for n in self.samples)

    def cut(self, size: int) -> Batches:
        """The same samples in batches of at most ``size``, counted by the first tensor's length."""
        items = [piece for item in self.items for piece in _cut(item, size)]
        return Batches(tuple(items), tuple(count_samples(item) for item in items))

    def __iter__(self) -> Any:
        return iter(zip(self.items, self.weights, strict=True))

    def __len__(self) -> int:
        return len(self.items)


def read_batches(
    data: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int | None = None,
    samples: Callable[[Any], int] | None = None,
) -> Batches:
    """Bring data of any accepted form into memory as batches.

    Args:
        data: One batch (a tuple or list that ends with a tensor, such as ``(inputs, targets)``, or a
            mapping), an iterable of batches, or a `torch.utils.data.Dataset`. An iterable is read once
            and kept.
        device: Where the tensors go.
        dtype: What floating-point tensors become; others keep their dtype.
        batch_size: Cut batches into pieces of at most this many samples.
        samples: Counts the samples of a batch; by default the length of its first tensor's first axis.

    Raises:
        UsageError: No batch, a batch without samples, or NaN and infinite values in one.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is impossible: it must be at least 1.")
    pieces: list[Any] = []
    for batch in _batches_of(data, batch_size):
        pieces += [batch] if batch_size is None else _cut(batch, batch_size)
    moved = tuple(move(piece, device, dtype) for piece in pieces)
    if not moved:
        raise UsageError(
            "The data hold no batch. A generator can be read only once: give a list, or a new one."
        )
    counts = tuple((samples or count_samples)(piece) for piece in moved)
    for place, (piece, count) in enumerate(zip(moved, counts, strict=True)):
        if count < 1:
            raise UsageError(f"Batch {place} of the data holds no sample.")
        _check_finite(piece, place)
    return Batches(moved, counts)


def is_batch(data: Any) -> bool:
    """Whether ``data`` is one batch rather than an iterable of batches."""
    if isinstance(data, Tensor | Mapping):
        return True
    return isinstance(data, tuple | list) and len(data) > 0 and isinstance(data[-1], Tensor)


def tensors_in(batch: Any) -> list[Tensor]:
    """All tensors of a nested batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, tuple | list):
        return [tensor for part in batch for tensor in tensors_in(part)]
    return []


def count_samples(batch: Any) -> int:
    """The length of the first axis of the batch's first tensor that has an axis."""
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise UsageError(
        f"A batch of type {type(batch).__name__} holds no tensor, so its samples cannot be counted. "
        "Give Closure(function, samples=...) a function that counts them."
    )


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The batch with every tensor on ``device`` and every floating-point tensor in ``dtype``."""
    return map_tensors(batch, lambda t: t.detach().to(device, dtype if t.is_floating_point() else None))


def part_of(batch: Any, start: int, stop: int) -> Any:
    """Samples ``start`` to ``stop - 1`` of a batch; tensors of another length are kept whole."""
    length = count_samples(batch)
    return map_tensors(batch, lambda t: t[start:stop] if t.ndim and len(t) == length else t)


def take(batch: Any, indices: Tensor) -> Any:
    """The samples of a batch with these indices; tensors of another length than the batch are kept whole."""
    length = count_samples(batch)
    return map_tensors(batch, lambda t: t[indices.to(t.device)] if t.ndim and len(t) == length else t)


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor changed; other leaves are kept."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [map_tensors(part, change) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _batches_of(data: Any, batch_size: int | None) -> Iterable[Any]:
    if is_batch(data):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, Iterable | DataLoader):
        return _collated(data, batch_size or COLLATED)
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return _collated(data, batch_size or COLLATED)
    if isinstance(data, Iterable):
        return data
    raise UsageError(
        f"Data of type {type(data).__name__} cannot be read. Give one batch (inputs, targets), "
        "an iterable of batches, or a torch.utils.data.Dataset."
    )


def _collated(data: Any, size: int) -> Iterable[Any]:
    for start in range(0, len(data), size):
        yield default_collate([data[index] for index in range(start, min(start + size, len(data)))])


def _cut(batch: Any, size: int) -> Sequence[Any]:
    length = count_samples(batch)
    return [part_of(batch, start, start + size) for start in range(0, length, size)]


def _check_finite(batch: Any, place: int) -> None:
    for index, tensor in enumerate(tensors_in(batch)):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise UsageError(
                f"Tensor {index} of batch {place} (shape {tuple(tensor.shape)}) holds {bad} values that are "
                "NaN or infinite. Mend or leave out those samples."
            )
