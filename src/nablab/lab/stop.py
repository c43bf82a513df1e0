"""A request to stop, which every worker of a run sees, whatever process or machine it
lives on.
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
    """A file whose absence asks everybody who holds the token to finish their step and
    save.

    Its absence and not its presence: a full disk cannot keep a request from being made,
    and a run whose folder is deleted stops instead of filling it again.

    A worker may live on another machine, so nothing here knows of processes; one whose
    own process was told to end says `ask_this_process`.

    Attributes:
        path: The file; unique to one command, so that an old request stops nothing new.
    """

    path: Path

    @classmethod
    def create(cls, folder: Path) -> StopToken:
        """A new token in a run's folder: whoever holds it may work.

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
        """Whether somebody asked to stop, everybody or this process."""
        return _asked_here.is_set() or not self.path.exists()


def ask_this_process() -> None:
    """Ask the work of this process to stop, and that of no other.

    It was told to end, or whoever gave it the work is gone.
    """
    _asked_here.set()


def end_signals() -> list[signal.Signals]:
    """What asks a process to end.

    Ctrl-C, a batch system's warning, a closed terminal (not under nohup).
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if (
        hasattr(signal, "SIGHUP")
        and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ):
        found.append(signal.SIGHUP)
    return found


def shield_resource_tracker() -> None:
    """Start Python's process that keeps account of pools so that a closed terminal does
    not end it.

    It ignores Ctrl-C and SIGTERM by itself, but not SIGHUP; without it, workers that
    end well print errors.
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
    """In a worker process.

    SIGTERM and SIGHUP, which batch systems send to all processes, ask to stop.

    The worker finishes its step, saves, sends its answer and leaves, even if nobody
    gives it leave to.
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
