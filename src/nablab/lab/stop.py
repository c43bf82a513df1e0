"""A request to stop that every worker of a run sees.

It does not matter on which machine or in which process the worker lives.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

from nablab.files.atomic import store_error

LEAVE_SECONDS = 5.0  # for sending the answer; nobody may be there to take it

_asked_here = threading.Event()  # this process was told to end


@dataclass(frozen=True)
class StopToken:
    """A file whose absence asks all holders of the token to finish their step and save.

    Its absence asks, and not its presence: so a full disk cannot keep a request from
    being made, and a run whose folder is deleted stops instead of filling it again.

    A worker may live on another machine, so nothing here knows of processes; one whose
    own process was told to end says `ask_this_process`.

    Attributes:
        path: The file; unique to one command, so that an old request stops nothing new.
    """

    path: Path

    @classmethod
    def create(cls, folder: Path) -> StopToken:
        """Create a token in a run's folder: whoever holds it may work.

        Raises:
            StoreError: The folder cannot be written.
        """
        token = cls(folder / f"go-{uuid.uuid4().hex[:12]}")
        try:
            token.path.touch()
        except OSError as error:
            raise store_error(error, token.path) from error
        return token

    def request(self) -> None:
        """Ask to stop."""
        # a disk that became read-only: no worker can save anything
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def requested(self) -> bool:
        """Tell whether somebody asked all workers, or this process, to stop."""
        return _asked_here.is_set() or not self.path.exists()


def ask_this_process() -> None:
    """Ask the work of this process to stop, and that of no other process.

    The process was told to end, or whoever gave it the work is gone.
    """
    _asked_here.set()


def end_signals() -> list[signal.Signals]:
    """Return the signals that ask a process to end.

    They are Ctrl-C, a batch system's warning, and a closed terminal (not under nohup).
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if (
        hasattr(signal, "SIGHUP")
        and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ):
        found.append(signal.SIGHUP)
    return found


def shield_resource_tracker() -> None:
    """Start Python's resource tracker so that a closed terminal does not end it.

    This process keeps account of pools. It ignores Ctrl-C and SIGTERM by itself, but
    not SIGHUP; without it, workers that end well print errors.
    """
    if (
        not hasattr(signal, "SIGHUP")
        or threading.current_thread() is not threading.main_thread()
    ):
        return
    # what is ignored stays so in a child
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def saving_when_told_to_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP inside ask to stop, in a worker process.

    Batch systems send them to all processes. The worker finishes its step, saves, sends
    its answer and exits, even if nobody tells it to.
    """
    in_worker = multiprocessing.parent_process() is not None
    if not in_worker or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in end_signals() if number != signal.SIGINT]
    before = {
        number: signal.signal(number, lambda *_: ask_this_process())
        for number in numbers
    }
    try:
        yield
    finally:
        if _asked_here.is_set():
            timer = threading.Timer(LEAVE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)
