"""Weights that stay with a trial.

They are packed as safetensors while the trial is made, and unpacked when asked for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nablab.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

MEGABYTE = 10**6
MOST_BYTES = 4 * MEGABYTE
"""What the weights that trainings leave may take in each trial by default, in bytes.

The bound is one of a trial and not of a run: whatever order trials are run in and by
how many processes, each keeps the same.
"""
UNITS = {"": 1, "k": 10**3, "m": MEGABYTE, "g": 10**9}


def bytes_of(size: str | int) -> int:
    """Return the number of bytes that a text such as ``20MB`` means.

    >>> bytes_of("20MB"), bytes_of("1.5 GB"), bytes_of(0)
    (20000000, 1500000000, 0)

    Raises:
        UsageError: It is not a size.
    """
    parts = re.fullmatch(
        r"(\d{1,15}(?:\.\d{1,9})?) ?([kmg]?)b?", str(size).strip().lower()
    )
    if not parts or isinstance(size, bool):
        raise UsageError(
            f"'{str(size)[:40]}' is not a size of weights to keep. Write a size such "
            "as 20MB, or 0 to keep none."
        )
    return round(float(parts[1]) * UNITS[parts[2]])


def in_words(size: int) -> str:
    """Write bytes as a text that `bytes_of` reads, rounded up.

    >>> in_words(4_000_000), in_words(12_340_001), in_words(0)
    ('4MB', '12.35MB', '0MB')
    """
    hundredths = -(-size * 100 // MEGABYTE)
    return f"{hundredths / 100:.12g}MB"


def check_name(name: str) -> str:
    """Check that weights' name can be part of a file's name on any system; return it.

    Raises:
        UsageError: It cannot.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", name):
        raise UsageError(
            f"Weights cannot be called {name!r:.80}: take lowercase letters, digits, "
            "'-' and '_', at most 60 characters."
        )
    return name


class Packed(Mapping[str, Any]):
    """Tensors by name, as the bytes of a safetensors file.

    They are unpacked when one is asked for.

    Attributes:
        content: The bytes.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        from safetensors.torch import load

        return load(self.content)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def pack(tensors: Any, what: str = "lab.weights") -> Packed:
    """Copy tensors into the bytes of a safetensors file.

    The same tensors give the same bytes.

    Args:
        tensors: Tensors or arrays by name, or a `torch.nn.Module`, whose
            ``state_dict()`` is taken.
        what: Who asks, for messages.

    Raises:
        UsageError: There are no tensors, or one that safetensors cannot hold.
    """
    import numpy as np
    import torch
    from safetensors.torch import save

    found = tensors.state_dict() if isinstance(tensors, torch.nn.Module) else tensors
    if not isinstance(found, Mapping) or not found:
        raise UsageError(
            f"{what} takes tensors by name or a module with some, not "
            f"{type(tensors).__name__}."
        )
    named = {}
    for name, value in found.items():
        try:
            tensor = (
                value
                if isinstance(value, torch.Tensor)
                else torch.from_numpy(np.array(value, order="C"))
            )
            # Clones: two names of one tensor, which tied layers have, are two tensors
            # in the file.
            named[str(name)] = tensor.detach().cpu().contiguous().clone()
        except (TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UsageError(
                f"{what}: '{name}' is not a tensor that can be kept: {reason}."
            ) from error
    try:
        return Packed(save(named))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{what}: safetensors cannot hold these tensors ({error})."
        ) from error
