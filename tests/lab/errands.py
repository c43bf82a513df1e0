"""What the tests of executors let workers do; it imports little, so that a worker
starts quickly.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from nablab import threads


def where(item: float) -> tuple[int, int | None]:
    """Wait so many seconds; this process and the threads that it was given for engines."""
    time.sleep(item)
    return os.getpid(), threads._given


def die_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        os._exit(9)
    time.sleep(0.2)
    return parent


def fail_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        raise ValueError("this function was to raise nothing")
    time.sleep(0.2)
    return parent


def imported(names: Sequence[str]) -> list[str]:
    """The files from which this process has modules of these names."""
    return [str(importlib.import_module(name).__file__) for name in names]


def last(item: tuple[int, Path]) -> None:
    """In a worker: say that it works, and work for a minute.

    In the process ``item[0]``: wait until a worker says so, then break off as Ctrl-C
    does.
    """
    parent, folder = item
    if os.getpid() != parent:
        (folder / f"at-work-{os.getpid()}").touch()
        time.sleep(60)
        return
    wait_for_a_worker(folder)
    raise KeyboardInterrupt


def wait_for_a_worker(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(folder.glob("at-work-*")):
        time.sleep(0.05)
