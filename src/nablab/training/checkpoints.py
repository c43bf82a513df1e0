"""Exact checkpoints: one safetensors file that says what it belongs to.

It is written atomically.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nablab.files import atomic, checkpoint_files

# part of this module, too
from nablab.files.checkpoint_files import UnusableCheckpoint as UnusableCheckpoint


@dataclass(frozen=True)
class Checkpoint:
    """Where `fit` saves its state, and how often.

    If the file exists, `fit` goes on from it; the caller removes it once the results
    are safe.

    Attributes:
        path: The file; its folder is made if absent.
        every_seconds: The time between two saves.
    """

    path: str | os.PathLike[str]
    every_seconds: float = 30.0


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Write tensors and JSON facts so that the old or the new file is always whole.

    Raises:
        StoreError: The folder is not writable or full; the old file is untouched.
    """
    prepared = {name: _in_order(tensor) for name, tensor in tensors.items()}
    record = checkpoint_files.metadata(digest(prepared), facts)
    content = safetensors.torch.save(prepared, metadata=record)
    atomic.write_bytes(Path(path), content)


def load(
    path: str | os.PathLike[str], fingerprint: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `save` wrote, if it is whole and of the given fingerprint.

    Raises:
        UnusableCheckpoint: It is not.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["nablab"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UnusableCheckpoint(f"it cannot be read ({error})") from error
    checkpoint_files.check(
        facts, digest=digest(tensors), fingerprint=fingerprint, work="training"
    )
    return tensors, facts


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 over names, dtypes, shapes and bytes, in any order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(_in_order(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _in_order(tensor: Tensor) -> Tensor:
    """Return the values on the CPU, one after the other as in a fresh tensor.

    They are a view wherever they lie so.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # An axis of size 1 may have any stride and the tensor still counts as contiguous:
    # the weights of a single network, cut from a longer row. Such a tensor can neither
    # be flattened to bytes nor compared by strides.
    strides = [math.prod(plain.shape[axis + 1 :]) for axis in range(plain.ndim)]
    return plain.as_strided(plain.shape, strides)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `prefixed`: select what lies under ``prefix/``."""
    return {
        name[len(prefix) + 1 :]: t
        for name, t in tensors.items()
        if name.startswith(f"{prefix}/")
    }
