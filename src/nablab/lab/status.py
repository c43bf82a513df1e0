"""The state of a run, kept so that a crashed run is never shown as running.

A running process writes its heartbeat into ``status.json`` every few seconds. Whoever
reads "running" checks that the process still lives (on the same machine, where its
start time tells it from a later one of the same number) or that the heartbeat is fresh;
otherwise the run has crashed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nablab.errors import StoreError
from nablab.lab.contents import Status
from nablab.lab.reading import Damaged
from nablab.lab.store import RunFolder

State = Literal["running", "done", "failed", "interrupted", "crashed", "incomplete"]
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # a loaded cluster file system may lag by tens of seconds


def read_state(folder: RunFolder) -> State:
    """Return the true state of a run, whatever its last process managed to write.

    A damaged status counts as none: `RunFolder.damage` names it, and locks keep two
    processes apart.
    """
    try:
        status = folder.status()
    except Damaged:
        return "incomplete"
    return "incomplete" if status is None else state_of(status)


def state_of(status: Status) -> State:
    """Return the true state behind what a status says."""
    if status.state != "running":
        return status.state
    here = status.host == socket.gethostname() and status.pid is not None
    if here and (status.process_started or not _STARTS_KNOWN):
        return "running" if _alive(status.pid, status.process_started) else "crashed"
    # A clock that is ahead must not make a run seem to go on forever.
    fresh = abs(time.time() - status.heartbeat) < STALE_SECONDS
    return "running" if fresh and (not here or _alive(status.pid, None)) else "crashed"


class Heartbeat:
    """Writes ``status.json`` while a run goes on; a context manager.

    On leaving, the state is what `finish` was told; ``interrupted`` after Ctrl-C,
    ``failed`` after any other error.
    """

    def __init__(self, folder: RunFolder, **facts: Any) -> None:
        self._folder = folder
        self._facts = facts
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, name="nablab-heartbeat", daemon=True
        )
        self._state: State = "failed"
        self._started, self._begin = time.time(), time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._write("running")
        self._thread.start()
        return self

    def finish(self, state: State, **facts: Any) -> None:
        """Say how the run ended; written when the context is left."""
        self._state = state
        self._facts.update(facts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._state = "interrupted"
        self._stop.set()
        self._thread.join()
        try:
            self._write(self._state, durable=True)
        except StoreError:
            if error is None:  # an error on its way out matters more than this one
                raise

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._write("running")
            except StoreError:
                continue  # a full disk is met and reported by whoever writes results

    def _write(self, state: State, *, durable: bool = False) -> None:
        content = {
            "state": state,
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "host": socket.gethostname(),
            "started": self._started,
            "heartbeat": time.time(),
            "seconds": time.monotonic() - self._begin,
            **self._facts,
        }
        self._folder.write_json("status.json", content, durable=durable)


def _alive(pid: int | None, started: str | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it lives, as another user's
    return started is None or _process_started(pid) == started


def _process_started(pid: int) -> str | None:
    """Return the kernel's start time of a process, which tells a reused pid apart.

    It is None on systems other than Linux.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    return None if fields[0] == "Z" else fields[19]


_STARTS_KNOWN = _process_started(os.getpid()) is not None
