"""Files that are either whole or absent, at any moment and whatever kills the process.

Every write goes to a temporary file in the same folder, is flushed to the disk, and is
renamed.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from nablab.errors import NablabError, StoreError, UsageError


def write_bytes(
    path: Path,
    content: bytes,
    *,
    durable: bool = True,
    explain: Callable[[OSError, Path], NablabError] | None = None,
) -> None:
    """Replace ``path`` with ``content`` atomically.

    Args:
        path: The file; its folder is made if absent.
        content: All of the new content.
        durable: Wait until the disk has it. Only files that may be lost (progress) go
            without.
        explain: What makes the error of an operating system's error [default:
            `store_error`].

    Raises:
        StoreError: No space left, or the folder is not writable.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes it private
        Path(temporary).replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise (explain or store_error)(error, path) from error


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named, wherever it leads.

    A regular file is replaced as a whole. A link stays, and the file behind it is
    written; into a pipe or a device the bytes are sent.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        if not _is_stream(path):
            write_bytes(Path(os.path.realpath(path)), content, explain=_output_error)
            return
        with path.open("wb", buffering=0) as stream:
            view = memoryview(content)
            while view:
                view = view[stream.write(view) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _output_error(error, path) from error


def check_output(path: Path) -> None:
    """Refuse a place where `write_output` cannot write, before the work is done.

    Raises:
        UsageError: It is a folder, or another name of a file that is open.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder. Name a file in it.")
        # Writing a second time into a file that a shell holds open would mix both.
        opened = os.path.abspath(path).startswith(("/dev/", "/proc/"))  # noqa: PTH100
        if opened and path.is_file():
            raise UsageError(
                f"{path} is the file {os.path.realpath(path)} here. Name that file."
            )
    except OSError as error:
        raise _output_error(error, path) from error


def _is_stream(path: Path) -> bool:
    """Tell whether a path leads to something that is neither a file nor a folder.

    What is absent is not a stream.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _output_error(error: OSError, path: Path) -> UsageError:
    return UsageError(
        f"{path} cannot be written: {error.strerror or error}. Name another file."
    )


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left.

    Only those of files called ``name`` (a glob pattern) are removed.

    Only for who alone may write those files at the moment: a write under way would
    fail.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def store_error(error: OSError, path: Path) -> StoreError:
    """Say what an operating system's error means for the store and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"No space left on the disk that holds the store ({path.parent}). What was "
            "finished is kept. Free some space and give the same command again to go "
            "on."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"The store cannot be written: {error.strerror} ({path.parent}). "
            "Choose a folder that you may write with --store FOLDER or NABLAB_STORE."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(
            f"The store cannot be written: {path.parent} or a folder above it is a "
            "file. Choose another folder with --store FOLDER or NABLAB_STORE."
        )
    if error.errno == errno.EISDIR:
        return StoreError(
            f"The store cannot be written: {path} is a folder, not a file. Remove it."
        )
    return StoreError(
        f"The store cannot be written: {error.strerror or error} ({path})."
    )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
