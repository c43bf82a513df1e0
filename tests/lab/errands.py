"""What the tests of executors let workers do; it imports little, so that a worker
starts quickly.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence

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
