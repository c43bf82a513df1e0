"""Results on disk that an interrupted measurement goes on from."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nablab.errors import UsageError

SAVE_SECONDS = 10.0  # what a killed process may lose


def fingerprint(*parts: Iterable[Any]) -> str:
    """Return a hash of arrays, tensors and texts: what a measurement depends on."""
    digest = hashlib.sha256()
    for part in parts:
        for value in part:
            array = (
                value.detach().cpu().numpy()
                if isinstance(value, Tensor)
                else np.asarray(value)
            )
            digest.update(
                f"{array.dtype.kind}{array.dtype.itemsize}{array.shape}".encode()
            )
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class PartialResults:
    """Arrays that fill up from the front and are saved in time.

    The file is whole at any moment.

    The file is an npz without pickled objects.

    Args:
        path: The file; None keeps everything in memory.
        identity: The `fingerprint` of the measurement.
        arrays: The arrays to fill along their last axis.

    Attributes:
        done: Entries of the last axis that are known.

    Raises:
        UsageError: The file belongs to another measurement or is not such a file.
    """

    def __init__(
        self, path: str | Path | None, identity: str, **arrays: npt.NDArray[np.float64]
    ) -> None:
        self.arrays, self.done = arrays, 0
        self._path = Path(path) if path else None
        self._identity = identity
        self._saved = time.monotonic()
        if self._path and self._path.exists():
            self._load(self._path)

    def __enter__(self) -> PartialResults:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()  # also when the measurement was interrupted

    def add(self, count: int, **parts: npt.NDArray[np.float64]) -> None:
        """Fill in the next ``count`` entries, and save if it is time."""
        for name, part in parts.items():
            self.arrays[name][..., self.done : self.done + count] = part
        self.done += count
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Replace the file atomically."""
        if self._path is None:
            return
        content = io.BytesIO()
        arrays: dict[str, Any] = self.arrays
        np.savez(
            content,
            identity=np.array(self._identity),
            done=np.array(self.done),
            **arrays,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{self._path.name}."
        descriptor, name = tempfile.mkstemp(
            prefix=prefix, suffix=".tmp", dir=self._path.parent
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.getvalue())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        finally:
            Path(name).unlink(missing_ok=True)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {
                    name: file[name] for name in ("identity", "done", *self.arrays)
                }
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as problem:
            raise UsageError(
                f"The checkpoint {path} cannot be read ({type(problem).__name__}): it "
                "is not an unfinished measurement. Give the name of a new file."
            ) from problem
        if str(found["identity"]) != self._identity:
            raise UsageError(
                f"The checkpoint {path} belongs to another measurement: the model, the "
                "data, the loss, the directions or the grid differ. Give the name of a "
                "new file, or remove that one."
            )
        self.done = int(found["done"])
        for name, array in self.arrays.items():
            array[...] = found[name]
