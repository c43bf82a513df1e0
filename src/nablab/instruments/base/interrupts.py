"""Ctrl-C in the middle of a measurement: what was borrowed is given back before the measurement ends.

A ``finally`` is not enough: an exception may arrive between any two instructions, in the ``finally`` as
well. A signal handler runs as a whole.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Restore = Callable[[], None]

_open: list[Restore] = []
_handler: list[Any] = []  # the handler of Ctrl-C that was there before


def opened(restore: Restore) -> None:
    """Register what gives something back; from now on Ctrl-C calls it, if nothing else does before."""
    _open.append(restore)


def closed(restore: Restore) -> None:
    """Forget what was registered, since it has been done."""
    if restore in _open:
        _open.remove(restore)


def guard() -> bool:
    """Install the handler, in the main thread, unless it is there; whoever gets True calls `release`."""
    if _handler or threading.current_thread() is not threading.main_thread():
        return False
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # Ctrl-C is ignored, or ends the process
        return False
    _handler.append(before)
    signal.signal(signal.SIGINT, _interrupted)
    return True


def release() -> None:
    """Give Ctrl-C its former meaning."""
    if _handler:
        if signal.getsignal(signal.SIGINT) is _interrupted:  # else the user's code has set its own meanwhile
            signal.signal(signal.SIGINT, _handler[-1])
        _handler.clear()


def _interrupted(number: int, frame: FrameType | None) -> None:
    before = _handler[-1] if _handler else signal.default_int_handler
    try:
        before(number, frame)  # may only note that a stop was asked for: then the measurement goes on
    except BaseException:
        for restore in reversed(_open.copy()):
            restore()
        release()
        raise
