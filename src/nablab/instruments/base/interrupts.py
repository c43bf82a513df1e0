"""Ctrl-C in a measurement: what was borrowed is given back before it ends.

A ``finally`` is not enough: an exception of a signal handler may arrive between any two
instructions, in the ``finally`` as well. So the first Ctrl-C is held until the
measurement has come to a safe point, which every pass of the model has. Whoever does
not want to wait for it presses again: the handler then gives everything back itself,
for a handler runs as a whole, and raises where it is.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Restore = Callable[[], None]

_open: list[Restore] = []
_held: list[BaseException] = []  # what Ctrl-C is to raise at the next safe point
_before: Any = signal.default_int_handler  # the handler that was there before ours


def opened(restore: Restore) -> None:
    """Register what gives something back.

    From now on a second Ctrl-C calls it, if nothing else did.
    """
    _open.append(restore)


def closed(restore: Restore) -> None:
    """Forget what was registered, since it has been done."""
    if restore in _open:
        _open.remove(restore)


def guard() -> bool:
    """Install the handler, in the main thread, unless it is there.

    Whoever gets True calls `release`.
    """
    global _before
    if threading.current_thread() is not threading.main_thread():
        return False
    found = signal.getsignal(signal.SIGINT)
    # A handler that is not callable is ignored, or ends the process.
    if found is _on_interrupt or not callable(found):
        return False
    _before = found
    signal.signal(signal.SIGINT, _on_interrupt)
    return True


def safe_point() -> None:
    """Raise what a Ctrl-C asked for; call it where an exception leaves nothing behind.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and its former handler raises this (or
            another error).
    """
    if _held and threading.current_thread() is threading.main_thread():
        raise _held.pop()


def release() -> None:
    """Give Ctrl-C its former meaning, and raise what is held still."""
    found = signal.signal(signal.SIGINT, _before)
    if found is not _on_interrupt:  # the user's code has set its own meanwhile
        signal.signal(signal.SIGINT, found)
    safe_point()


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    try:
        # The handler may only note that a stop was asked for: then the measurement goes
        # on.
        _before(number, frame)
    except BaseException as error:
        if not _held:
            _held.append(error.with_traceback(None))
            return
        _held.clear()
        for restore in reversed(_open.copy()):
            restore()
        signal.signal(signal.SIGINT, _before)
        raise
