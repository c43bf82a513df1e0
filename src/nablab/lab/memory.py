"""The memory of this process: how much it took, and how much it may take."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from nablab.errors import UsageError

CGROUP = Path("/sys/fs/cgroup/memory.max")
COPIES = 3  # of the losses: as trained, as recorded, and one while they are worked on


def peak_bytes() -> int:
    """Return the largest resident set so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def limit_bytes() -> int:
    """Return the most memory that this process can have, in bytes.

    It is the machine's, or less under a limit.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    # no control group, or one without a limit ("max")
    with contextlib.suppress(OSError, ValueError):
        found.append(int(CGROUP.read_text()))
    return min(found)


def check_memory(needed: int, what: str) -> None:
    """Refuse what cannot be held, before it is made.

    Args:
        needed: Bytes.
        what: The subject of a sentence, such as "The losses of 10 steps".

    Raises:
        UsageError: This process can never have that much.
    """
    limit = limit_bytes()
    if needed > limit:
        raise UsageError(
            f"{what} would take {needed / 1e9:,.1f} GB of memory, and this process can "
            f"have {limit / 1e9:,.1f}. Take fewer."
        )


def check_losses(replicas: int, steps: int) -> None:
    """Refuse a training whose losses cannot be held.

    There is one per replica and step, and there are copies of them.

    Raises:
        UsageError: They would not fit into the memory.
    """
    check_memory(
        8 * COPIES * replicas * steps,
        f"The losses of {steps:,} steps of {replicas} replicas",
    )
