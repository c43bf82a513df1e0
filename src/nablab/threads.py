"""How many threads compute, and how they wait for one another. The one place for both.

**Waiting.** PyTorch's threads meet after every operation. By default those of OpenMP
spin while they wait, in the hope that it is short. Where other programs keep the cores
busy, a thread that spins takes the core that the one it waits for needs: trainings took
seven times as long as with threads that sleep. OpenMP reads its settings once, when
PyTorch is loaded, so they are set when nablab is imported.

**Counting.** The order in which PyTorch adds numbers up depends on its number of
threads, and with it the last digits. So a trial computes with a number that its run's
configuration decides, on any machine and whatever else runs: `trial_threads`. The
compiled engines give the same numbers with any number of threads, and take
`engine_threads`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# OMP_WAIT_POLICY is the standard; GOMP_SPINCOUNT is GNU's library, which PyTorch's
# packages for Linux bring, and KMP_BLOCKTIME (milliseconds) that of LLVM and Intel:
# those for macOS, and conda's.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

# A run of one condition cannot share its work between processes, so its trials take two
# threads of PyTorch. It is a constant, not the number of cores: the same numbers come
# out whatever machine has how many.
THREADS_ALONE = 2

_given: int | None = None  # by `give_engines`; None: as many as PyTorch has
_outside: int | None = None  # inside `fixed`: the threads that PyTorch has outside


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait; what the user has set about it stays.

    Works for libraries that are loaded later in this process, and for the processes
    that it starts.
    """
    if not any(name in os.environ for name in PASSIVE):
        os.environ.update(PASSIVE)


def trial_threads(groups: int) -> int:
    """Choose the number of PyTorch's threads in each trial of a run.

    With several groups it is one: worker processes of one thread each, on different
    groups, never wait for one another.

    Args:
        groups: Number of groups of conditions, the units of work of a run.
    """
    return THREADS_ALONE if groups == 1 else 1


def cores() -> int:
    """Count the cores that this process may use.

    Its affinity and the quota of its container both limit them.
    """
    count = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return count if quota is None else max(1, min(count, round(quota)))


def _quota(file: Path) -> float | None:
    """Read the cores of a control group's file.

    The file holds "quota period", in microseconds. None without a limit.
    """
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def engine_threads() -> int:
    """Return how many threads nablab's compiled engines may start.

    The number of threads changes no result.
    """
    import torch

    return _given or _outside or torch.get_num_threads()


def give_engines(count: int) -> None:
    """Set `engine_threads`, from any thread.

    It holds for the rest of this process, or of `borrowed`.
    """
    global _given
    _given = count


@contextmanager
def borrowed() -> Iterator[None]:
    """Take back at the end what `give_engines` sets inside."""
    global _given
    before = _given
    try:
        yield
    finally:
        _given = before


@contextmanager
def fixed(count: int) -> Iterator[None]:
    """Let PyTorch compute with ``count`` threads inside.

    The linear algebra of NumPy and SciPy computes with one.
    """
    global _outside
    import scipy.linalg  # noqa: F401 - brings a library of its own, which must be here to be limited
    import torch
    from threadpoolctl import threadpool_limits

    outside, before = _outside, torch.get_num_threads()
    _outside = outside or before
    torch.set_num_threads(count)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
        _outside = outside
