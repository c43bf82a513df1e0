"""What all checkpoints of nablab have in common.

A safetensors file that says what it belongs to.

The tensors are named arrays; the file's metadata hold one JSON record under ``nablab``:
the format, a checksum of the tensors, a ``fingerprint`` of the work that the file
belongs to, and further facts. No pickle is written or read. Trainings keep PyTorch's
tensors (`nablab.training.checkpoints`), loops of an experiment's own NumPy's arrays
(here); this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from nablab.errors import UsageError
from nablab.files import atomic

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

FORMAT = 1
# characters; safetensors reads no header of more than 100 MB, and quotes are doubled
MOST_FACTS = 40 * 2**20


class UnusableCheckpoint(Exception):
    """The file is damaged or belongs to other work; the text says which."""


def metadata(digest: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Make the record for a file's metadata.

    Args:
        digest: The checksum of the tensors.
        facts: Plain JSON types, among them ``fingerprint``.
    """
    return {"nablab": json.dumps({"format": FORMAT, "digest": digest, **facts})}


def check(
    facts: Mapping[str, Any], *, digest: str, fingerprint: Mapping[str, Any], work: str
) -> None:
    """Hold a file's record against its tensors and against the work that asks for it.

    Args:
        facts: The record.
        digest: The checksum of the tensors that were read.
        fingerprint: Of the work.
        work: What the work is called: "training" or "run".

    Raises:
        UnusableCheckpoint: They do not fit.
    """
    if facts.get("format") != FORMAT:
        raise UnusableCheckpoint(
            f"it has format {facts.get('format')}, this version reads {FORMAT}"
        )
    if facts.get("digest") != digest:
        raise UnusableCheckpoint("its content does not match its checksum")
    theirs, ours = facts["fingerprint"], json.loads(json.dumps(fingerprint))
    changed = sorted(
        key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)
    )
    if changed:
        raise UnusableCheckpoint(
            f"it belongs to another {work}; these differ: {', '.join(changed)}"
        )


def save_arrays(
    path: str | os.PathLike[str], arrays: Arrays, facts: Mapping[str, Any]
) -> None:
    """Write arrays and JSON facts so that the old or the new file is always whole.

    Args:
        path: The file; its folder is made if absent.
        arrays: Contiguous, in C order, of dtypes that safetensors knows.
        facts: Plain JSON types, among them ``fingerprint``.

    Raises:
        UsageError: The facts are too long for a file.
        StoreError: The folder is not writable or full; the old file is untouched.
    """
    import safetensors.numpy

    record = metadata(_digest(arrays, facts), facts)
    length = len(record["nablab"])
    if length > MOST_FACTS:
        raise UsageError(
            f"A checkpoint would hold {length / 1e6:,.1f} MB of numbers and texts in "
            f"lists and mappings, and can hold {MOST_FACTS / 1e6:,.1f}. Keep long "
            "lists of numbers in NumPy arrays."
        )
    content = safetensors.numpy.save(arrays, metadata=record)
    atomic.write_bytes(Path(path), content)


def load_arrays(
    path: str | os.PathLike[str], fingerprint: Mapping[str, Any]
) -> tuple[Arrays, dict[str, Any]]:
    """Read back what `save_arrays` wrote, if it is whole and of the given fingerprint.

    Raises:
        UnusableCheckpoint: It is not.
    """
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})["nablab"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    # An array of a dtype that NumPy lacks (a training's bfloat16) is a TypeError or an
    # AttributeError.
    except (
        SafetensorError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise UnusableCheckpoint(f"it cannot be read ({error})") from error
    # Another kind of work takes its checksum in another way: say first that it is
    # another.
    if facts.get("fingerprint", {}).get("kind") != fingerprint["kind"]:
        raise UnusableCheckpoint("it belongs to work of another kind")
    check(facts, digest=_digest(arrays, facts), fingerprint=fingerprint, work="run")
    return arrays, facts


def _digest(arrays: Arrays, facts: Mapping[str, Any]) -> str:
    """Compute a SHA-256 over the arrays and the facts.

    The names, dtypes, shapes and bytes of the arrays count.
    """
    total = hashlib.sha256()
    own = {
        name: fact for name, fact in facts.items() if name not in ("format", "digest")
    }
    total.update(json.dumps(own, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        total.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        total.update(array.reshape(-1).view("uint8").data)
    return total.hexdigest()
