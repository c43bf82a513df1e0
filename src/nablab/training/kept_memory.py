"""Freed memory that stays with the process while a network is trained.

A step of a convolutional network asks for some hundred megabytes of maps and frees them
again. The C library hands blocks of this size back to the system at once, which must
clear every page before it gives it out the next time: 11 % of a step of a network with
blocks of 64, 256 and 256 filters, at 512 color images. What a step asks for is the
same each time, so that the blocks of the last one fit.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# glibc's own: maps, and the sizes that its thresholds grow to by themselves as large
# blocks are freed, which stops once any of them was set.
_USUAL = {
    _MMAP_MAX: 65_536,
    _MMAP_THRESHOLD: 32 * 2**20,
    _TRIM_THRESHOLD: 64 * 2**20,
}
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}

_nested = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory inside, and give it back at the end.

    Where the C library is not glibc nothing changes.
    """
    global _nested
    library = _glibc()
    if library is None:
        yield
        return
    _nested += 1
    if _nested == 1:
        _set(library, _KEPT)
    try:
        yield
    finally:
        _nested -= 1
        if not _nested:
            _set(library, _USUAL)
            library.malloc_trim(0)


def _set(library: Any, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)


@functools.cache
def _glibc() -> Any:
    """Return the C library where it has these options, else None."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None
    asked: Callable[[], int] | None = getattr(library, "gnu_get_libc_version", None)
    return None if asked is None else library
