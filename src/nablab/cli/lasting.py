"""Standard output and error that may go away: a closed pipe or terminal, a full disk.

Hours of training must not end because nobody reads what they print. What cannot be
written is dropped, wherever it comes from: a table, a library, the user's own code; the
command says at its end that it was.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# The reader left on purpose (``| head``) or with its terminal: there is nobody to tell.
LEFT = (errno.EPIPE, errno.ECONNRESET, errno.EIO)


class _Lasting(io.FileIO):
    """A file descriptor that takes everything and remembers the first error."""

    lost: OSError | None = None

    def write(self, content: object, /) -> int:
        size = memoryview(content).nbytes  # type: ignore[arg-type]
        if self.lost is not None:
            return size
        try:
            return super().write(content) or 0  # type: ignore[arg-type]
        except BlockingIOError:
            raise
        except OSError as error:
            self.lost = error
            return size


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let a command that ends with `SystemExit` survive the loss of its output.

    The loss is reported at the end.
    """
    make_lasting()
    try:
        yield
    except SystemExit as ended:
        error = lost()
        if error is None:
            raise
        print(what_is_lost(error), file=sys.stderr)
        raise SystemExit(ended.code or 1) from None


def what_is_lost(error: OSError) -> str:
    """Say that output could not be written, for the end of a command."""
    return f"Not all output could be written: {error.strerror}. Runs are kept."


def make_lasting() -> None:
    """Let standard output and error take everything from here on.

    What stands in for them stays as it is.
    """
    sys.stdout = _lasting(sys.stdout, line_buffering=None)
    sys.stderr = _lasting(sys.stderr, line_buffering=True)


def lost() -> OSError | None:
    """Find why output was dropped that somebody may miss.

    It is None where all was written or the reader left.
    """
    raw = _raw(sys.stdout)
    if raw is None:
        return None
    sys.stdout.flush()
    return None if raw.lost is None or raw.lost.errno in LEFT else raw.lost


def _lasting(stream: TextIO | None, *, line_buffering: bool | None) -> TextIO:
    if stream is None:  # closed before we began
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or stream not in (
        sys.__stdout__,
        sys.__stderr__,
    ):
        return stream  # a test, a notebook, or one of ours
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering
        if line_buffering is None
        else line_buffering,
    )


def _raw(stream: TextIO | None) -> _Lasting | None:
    """Return what lies below a stream, or None if that is not one of ours."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Lasting) else None
