"""The formats of the store's files.

JSON has one spelling, and an npz file the same bytes every time.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablab.files.atomic import write_bytes

if TYPE_CHECKING:
    import numpy.typing as npt


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write ``value`` as indented JSON, keys in the order given.

    NaN and infinity become strings.
    """
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n", durable=durable)


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value, for hashing."""
    return json.dumps(
        finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


SEAL = "sha256"
"""The field of a JSON file that holds the checksum of the other fields."""


def seal(body: Mapping[str, Any]) -> str:
    """Return the checksum of a JSON file's fields.

    It does not depend on their order or on the layout of the text.
    """
    return sha256(canonical_json(body))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields and, last, their checksum."""
    body = {name: part for name, part in value.items() if name != SEAL}
    return {**body, SEAL: seal(body)}


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the bytes of an npz file that depend on the arrays alone.

    `numpy.savez` stamps every member with the time of day, so two equal runs would
    differ.
    """
    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(
                member, np.asanyarray(arrays[name]), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by their names, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
