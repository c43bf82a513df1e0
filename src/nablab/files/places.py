"""Places on the disk that a user names.

Whatever the text is, asking about it raises nothing.

`pathlib` raises for names of thousands of characters, for folders that may not be read
and for homes that do not exist; there is nothing at such a place either.
"""

from __future__ import annotations

import os
from pathlib import Path


def place(text: str | Path) -> Path:
    """Return the path that a user writes, with ``~`` as the home folder.

    Where there is no home folder, ``~`` stays as it is.

    >>> place("~no such user/a"), is_file("a" * 10_000)
    (PosixPath('~no such user/a'), False)
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111


def is_file(text: str | Path) -> bool:
    """Tell whether a file is there that can be looked at."""
    return os.path.isfile(place(text))  # noqa: PTH113


def is_there(text: str | Path) -> bool:
    """Tell whether anything is there that can be looked at."""
    return os.path.exists(place(text))  # noqa: PTH110


def in_text(path: str | Path) -> str:
    r"""Write a path for human readers and records.

    Bytes that are not UTF-8, as a file's name may have, are written as ``\xe9``.

    >>> in_text(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    'caf\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
