"""What a user may call data, as a list of batches with their weights."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from nablab.errors import UsageError
from nablab.instruments.base.surroundings import preserved_generators

# A data set object is read in batches of this size, unless batch_size says otherwise.
COLLATED = 1024


@dataclass(frozen=True)
class Batches:
    """Batches held in memory, on the device and in the dtype of the measurement.

    Attributes:
        items: The batches.
        samples: Samples of each batch.
        count: Counts what the mean of a batch is over, such as targets that are not
            ignored; the samples if None.
    """

    items: tuple[Any, ...]
    samples: tuple[int, ...]
    count: Callable[[Any], float] | None = None

    @property
    def total(self) -> int:
        """Samples of all batches."""
        return sum(self.samples)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The share of each batch in the mean: a ragged one counts what it holds."""
        terms = (
            self.samples
            if self.count is None
            else [self.count(item) for item in self.items]
        )
        return tuple(n / sum(terms) for n in terms)

    @property
    def sample_weights(self) -> tuple[float, ...]:
        """The share of each batch in a mean over samples, such as an accuracy."""
        return tuple(n / self.total for n in self.samples)

    def cut(self, size: int) -> Batches:
        """Cut the samples into batches of at most ``size``.

        The length of the first tensor counts.
        """
        items = [piece for item in self.items for piece in _cut(item, size)]
        return dataclasses.replace(
            self,
            items=tuple(items),
            samples=tuple(count_samples(item) for item in items),
        ).without_empty()

    def without_empty(self) -> Batches:
        """Leave out batches of nothing: the mean of the others is 0 / 0."""
        if self.count is None:
            return self
        held = [place for place, item in enumerate(self.items) if self.count(item) > 0]
        if not held:
            raise UsageError(
                "All targets in the data are marked as ignored, so the loss is 0 / 0. "
                "Give batches with targets that count."
            )
        items, samples = [self.items[k] for k in held], [self.samples[k] for k in held]
        return dataclasses.replace(self, items=tuple(items), samples=tuple(samples))

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
    count: Callable[[Any], float] | None = None,
) -> Batches:
    """Bring data of any accepted form into memory as batches.

    Random generators are left as they were: what a shuffling loader draws does not
    change the program.

    Args:
        data: One batch (a tuple or list that ends with a tensor, such as ``(inputs,
            targets)``, a mapping or a dataclass of tensors), an iterable of batches, or
            a `torch.utils.data.Dataset`. An iterable is read once and kept.
        device: Where the tensors go.
        dtype: What floating-point tensors become; others keep their dtype.
        batch_size: Cut batches into pieces of at most this many samples.
        samples: Counts the samples of a batch; by default the length of its first
            tensor's first axis.
        count: Counts what a batch's mean is over, where that is not its samples.

    Raises:
        UsageError: No batch, a batch without samples, or NaN in one. Infinities pass,
            for masks hold them; a loss that they make infinite is refused where it is
            measured.
    """
    moved = tuple(move(piece, device, dtype) for piece in read_pieces(data, batch_size))
    if not moved:
        raise UsageError(
            "The data contain no batch. A generator can be read only once: give a "
            "list, or a new one."
        )
    counts = tuple((samples or count_samples)(piece) for piece in moved)
    for place, (piece, counted) in enumerate(zip(moved, counts, strict=True)):
        if not counted > 0:
            raise UsageError(f"Batch {place} of the data contains no sample.")
        _check_numbers(piece, place)
    return Batches(moved, counts, count)


def read_pieces(data: Any, batch_size: int | None = None) -> list[Any]:
    """Return the batches of data of any accepted form, as they are; see `read_batches`.

    Raises:
        UsageError: An impossible ``batch_size``, or data that cannot be read or cut.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(
            f"batch_size={batch_size} is impossible: it must be at least 1."
        )
    pieces: list[Any] = []
    with preserved_generators(_generators_of(data)):
        for batch in _batches_of(data, batch_size):
            pieces += [batch] if batch_size is None else _cut(batch, batch_size)
    return pieces


def is_batch(data: Any) -> bool:
    """Return whether ``data`` is one batch rather than an iterable of batches."""
    if isinstance(data, Tensor | Mapping | PackedSequence) or _is_record(data):
        return True
    if not isinstance(data, tuple | list) or not data:
        return False
    return isinstance(data[-1], Tensor) or (
        isinstance(data[0], Tensor) and isinstance(data[-1], Mapping)
    )


def tensors_in(batch: Any) -> list[Tensor]:
    """Return all tensors of a nested batch, in order.

    Of a packed sequence, that is its data.
    """
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return found


def count_samples(batch: Any) -> int:
    """Return the length of the first axis of the first tensor that has one."""
    packed = _packed_in(batch)
    if packed is not None:
        return int(packed.batch_sizes[0])
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise UsageError(
        f"A batch of type {type(batch).__name__} holds no tensor, so its samples "
        "cannot be counted. Give Closure(function, samples=...) a function that counts "
        "them."
    )


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the batch on ``device``, floating-point tensors in ``dtype``.

    Tensors that require a gradient still do: a physics-informed loss
    differentiates in its inputs.
    """

    def moved(tensor: Tensor) -> Tensor:
        found = tensor.detach().to(
            device, dtype if tensor.is_floating_point() else None
        )
        return found.requires_grad_() if tensor.requires_grad else found

    return map_tensors(batch, moved)


def part_of(batch: Any, start: int, stop: int) -> Any:
    """Return samples ``start`` to ``stop - 1``.

    Tensors of another length are kept whole.
    """
    return _selected(batch, lambda tensor: tensor[start:stop])


def take(batch: Any, indices: Tensor) -> Any:
    """Return the samples of a batch with these indices.

    Tensors of another length than the batch are kept whole.
    """
    return _selected(batch, lambda tensor: tensor[indices.to(tensor.device)])


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the batch with every tensor changed.

    Other leaves are kept, and so is the batch's type.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, PackedSequence):
        return batch._replace(data=change(batch.data))
    if isinstance(batch, Mapping):
        return _mapped(batch, change)
    if isinstance(batch, tuple | list):
        parts = [map_tensors(part, change) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if _is_record(batch):
        changed = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(
                changed, field.name, map_tensors(getattr(batch, field.name), change)
            )
        return changed
    return batch


def _mapped(
    batch: Mapping[Any, Any], change: Callable[[Tensor], Tensor]
) -> Mapping[Any, Any]:
    parts = {key: map_tensors(value, change) for key, value in batch.items()}
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return parts
    # A tokenizer's batch, for example, has its entries as attributes as well.
    same = copy.copy(batch)
    for key, value in parts.items():
        same[key] = value
    return same


def _is_record(data: Any) -> bool:
    return (
        dataclasses.is_dataclass(data)
        and not isinstance(data, type)
        and not isinstance(data, Dataset)
    )


def _selected(batch: Any, select: Callable[[Tensor], Tensor]) -> Any:
    if _packed_in(batch) is not None:
        raise UsageError(
            "A packed sequence cannot be cut into samples. Leave batch_size= and "
            "per-sample options out, or pack inside the model's forward pass."
        )
    length = count_samples(batch)
    return map_tensors(batch, lambda t: select(t) if t.ndim and len(t) == length else t)


def _packed_in(batch: Any) -> PackedSequence | None:
    if isinstance(batch, PackedSequence):
        return batch
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, tuple | list):
        return next(
            (found for part in batch if (found := _packed_in(part)) is not None), None
        )
    return None


def _batches_of(data: Any, batch_size: int | None) -> Iterable[Any]:
    if is_batch(data):
        return [data]
    if isinstance(data, IterableDataset):
        return _collated(iter(data), batch_size or COLLATED)
    if (
        isinstance(data, Dataset)
        and not isinstance(data, DataLoader)
        and hasattr(data, "__len__")
    ):
        return _collated(
            (data[index] for index in range(len(data))), batch_size or COLLATED
        )
    if isinstance(data, Iterable):
        return data
    raise UsageError(
        f"Data of type {type(data).__name__} cannot be read. Give one batch (inputs, "
        "targets), an iterable of batches, or a torch.utils.data.Dataset."
    )


def _collated(samples: Iterable[Any], size: int) -> Iterable[Any]:
    waiting = iter(samples)
    while part := list(itertools.islice(waiting, size)):
        yield default_collate(part)


def _cut(batch: Any, size: int) -> Sequence[Any]:
    length = count_samples(batch)
    return (
        [batch]
        if length <= size
        else [part_of(batch, k, k + size) for k in range(0, length, size)]
    )


def _generators_of(data: Any) -> tuple[torch.Generator, ...]:
    """Return the generators that reading a data loader draws from."""
    holders = [data]
    for name in ("sampler", "batch_sampler", "dataset"):
        holders.append(getattr(data, name, None))
    holders.append(getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {
        id(generator): generator
        for generator in found
        if isinstance(generator, torch.Generator)
    }
    return tuple(unique.values())


def describe_not_finite(batch: Any, place: int) -> str:
    """Say which tensors of a batch hold NaN or infinities; empty if none does."""
    for index, tensor in enumerate(tensors_in(batch)):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            return (
                f"Tensor {index} of batch {place} (shape {tuple(tensor.shape)}) holds "
                f"{bad} values that are NaN or infinite. Repair those samples or leave "
                "them out."
            )
    return ""


def _check_numbers(batch: Any, place: int) -> None:
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise UsageError(describe_not_finite(batch, place))
