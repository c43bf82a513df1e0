"""What a run's identity holds of its data: known sets are fixed by their name, a user's files by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nablab.data.known import check_image_set, is_path


def source_hash(spec: str) -> str:
    """The SHA-256 of a user's folder (names and contents) or file; empty for a set known by name.

    Raises:
        UsageError: There is no such set, folder or file.

    >>> source_hash("mnist")
    ''
    """
    check_image_set(spec)
    if not is_path(spec):
        return ""
    place = Path(spec).expanduser()
    total = hashlib.sha256()
    paths = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    for path in paths:
        total.update(f"{path.relative_to(place)}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()
