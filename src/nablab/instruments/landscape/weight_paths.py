"""Points in weight space from arrays, state dicts or files, read in blocks."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nablab.errors import UsageError, unknown

Floats: TypeAlias = npt.NDArray[np.float64]
Center = Literal["mean", "first", "last"]

# Numbers of one float64 block: 32 MB, large enough for a fast matrix product, small
# beside any path.
BLOCK = 4_000_000
# Batch norm's averages of the data are in every state dict, but they are not weights.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Points:
    """The points of all runs as float64 blocks (T, columns), read again at will.

    Attributes:
        labels: The name of each run.
        lengths: The points of each run.
        total: T.
        shapes: By parameter.
        size: P.
        notes: What was left out.
    """

    def __init__(
        self, points: Any, parameters: str | Sequence[str], block: int
    ) -> None:
        runs = dict(points) if isinstance(points, Mapping) else {"": points}
        self.notes: tuple[str, ...] = ()
        self.labels = tuple(str(label) for label in runs)
        self._points = [point for run in runs.values() for point in _points_of(run)]
        self.lengths = tuple(len(run) for run in runs.values())
        self.total = sum(self.lengths)
        if self.total < 2 or min(self.lengths) < 1:
            counts = ", ".join(map(str, self.lengths)) or 0
            raise UsageError(
                f"A path needs at least two points, and every run one; got {counts}."
            )
        self._patterns = (
            (parameters,) if isinstance(parameters, str) else tuple(parameters)
        )
        self.shapes = self._chosen(_shapes(self._points[0]))
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self._columns = max(1, block // self.total)
        for place, point in enumerate(self._points[1:], start=1):
            self._check_shapes(place, _shapes(point))

    def blocks(self, center: Center) -> Iterator[tuple[int, Floats]]:
        """Yield (first column, centered block) over all columns."""
        for start, block in self.raw_blocks():
            yield start, np.subtract(block, center_of(block, center), out=block)

    def raw_blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield (first column, block); the memory is used again for the next."""
        buffer = np.empty(self.total * min(self._columns, self.size))
        start = 0
        for name, shape in self.shapes.items():
            count = math.prod(shape)
            vectors = [_vector(point, name) for point in self._points]
            for first in range(0, count, self._columns):
                width = min(self._columns, count - first)
                block = buffer[: self.total * width].reshape(self.total, width)
                for row, vector in zip(block, vectors, strict=True):
                    _copy(vector[first : first + width], row)
                self._check_finite(block, name)
                yield start + first, block
            start += count

    def name_of(self, place: int) -> str:
        """Name point ``place`` of all as a user counts: from 0 within its run."""
        for label, length in zip(self.labels, self.lengths, strict=True):
            if place < length:
                return f"Point {place} of run '{label}'" if label else f"Point {place}"
            place -= length
        raise AssertionError(place)

    def _chosen(self, every: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if list(every) == [""]:
            return every
        named = any("running_" in pattern for pattern in self._patterns)
        left_out = [
            n for n in every if not named and n.rsplit(".", 1)[-1] in STATISTICS
        ]
        usable = {name: shape for name, shape in every.items() if name not in left_out}
        chosen: set[str] = set()
        for pattern in self._patterns:
            found = fnmatch.filter(usable, pattern)
            if not found:
                raise unknown("tensor in the points", pattern, usable)
            chosen.update(found)
        if left_out:
            self.notes += (
                "The running statistics of batch norm are left out: they "
                "are not weights.",
            )
        return {name: shape for name, shape in usable.items() if name in chosen}

    def _check_shapes(self, place: int, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in self.shapes.items():
            if shapes.get(name) != shape:
                what = f"'{name}'" if name else "the vector"
                there = f"shape {shapes[name]}" if name in shapes else "no such tensor"
                raise UsageError(
                    f"{self.name_of(place)} has {there} for {what}, {self.name_of(0)} "
                    f"has shape {shape}. All points must come from networks of one "
                    "architecture."
                )

    def _check_finite(self, block: Floats, name: str) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            bad = np.flatnonzero(~np.isfinite(block.sum(axis=1)))
        if len(bad):
            of = f" in '{name}'" if name else ""
            raise UsageError(
                f"{self.name_of(int(bad[0]))} holds values that are NaN or "
                f"infinite{of}: the training had diverged. Leave out the points from "
                "there on."
            )


def center_of(block: Floats, center: Center) -> Floats:
    """Return what is subtracted from every row of a block (T, columns)."""
    if center == "mean":
        return np.asarray(block.mean(axis=0))
    return np.asarray(block[0 if center == "first" else -1])


def _points_of(run: Any) -> list[Any]:
    if isinstance(run, Tensor | np.ndarray):
        if run.ndim != 2:
            raise UsageError(
                "An array of points has shape (T, P), one row each; this one has shape "
                f"{tuple(run.shape)}."
            )
        return [{"": row} for row in run]
    if isinstance(run, str | os.PathLike) or not isinstance(run, Sequence):
        raise UsageError(
            f"Points of type {type(run).__name__} cannot be read. Give an array (T, "
            "P), a list of vectors, of state dicts or of safetensors files, or a "
            "mapping from labels to such runs."
        )
    return [
        {"": point} if isinstance(point, Tensor | np.ndarray) else point
        for point in run
    ]


def _shapes(point: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a vector, or of a point's floating-point tensors."""
    if isinstance(point, Mapping):
        for name, tensor in point.items():
            if isinstance(tensor, Tensor) and tensor.is_complex():
                raise UsageError(
                    f"The tensor '{name}' of the points is complex. Give its real and "
                    "imaginary parts as a real tensor: torch.view_as_real."
                )
        return {
            str(n): tuple(t.shape)
            for n, t in point.items()
            if n == "" or _is_floating(t)
        }
    if not isinstance(point, str | os.PathLike):
        raise UsageError(
            f"A point of type {type(point).__name__} cannot be read. Give a vector, a "
            "state dict or the path of a safetensors file."
        )
    return _shapes(_read_file(point, _tensors_of))


def _tensors_of(file: Any) -> dict[str, Any]:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _is_floating(array: Any) -> bool:
    if isinstance(array, Tensor):
        return array.is_floating_point()
    return bool(np.issubdtype(np.asarray(array).dtype, np.floating))


def _vector(point: Any, name: str) -> Any:
    """Return one tensor of a point, flat.

    That of a file is mapped into memory and read page by page.
    """
    if isinstance(point, Mapping):
        found = point[name]
        return (
            found.detach().reshape(-1)
            if isinstance(found, Tensor)
            else np.asarray(found).reshape(-1)
        )
    return _read_file(point, lambda file: file.get_tensor(name)).reshape(-1)


def _copy(part: Any, row: Floats) -> None:
    """Convert a part of a vector into a row, without a copy of the whole.

    The vector may be of any dtype and on any device.
    """
    if isinstance(part, Tensor):
        torch.from_numpy(row).copy_(part)
    else:
        row[:] = part


def _read_file(path: Any, read: Callable[[Any], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"The file '{os.fspath(path)}' cannot be read as safetensors: {error}."
        ) from error
