"""What is sensible to read into memory.

Said before it is read, from what a file announces of itself.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from nablab.data.fetching.progress import file_size
from nablab.errors import UsageError

# of one picture; Pillow's own limit, above which it only warns (9,459 x 9,459)
PIXELS = 89_478_485
# photographs are packed 2 to 20 times, scans up to 100; deflate ends at 1,032, on one
# value
RATIO = 500
SMALL = 256_000_000  # bytes; below this, a file that unpacks too well does no harm
CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory() -> int:
    """Return how many bytes this process may use.

    The bound is that of the machine, of its container, or the process's own.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    if CGROUP.is_file() and (text := CGROUP.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def check_fits(nbytes: int, what: str, remedy: str) -> None:
    """Refuse what takes more than half of the memory.

    A second copy is made on the way to tensors.

    Args:
        nbytes: What it takes once it is read.
        what: Names it, as the subject of a sentence.
        remedy: What to do about it, a whole sentence.

    Raises:
        UsageError: It does not fit.
    """
    if nbytes > memory() // 2:
        raise UsageError(
            f"{what} would take {size(nbytes)} in memory, and this process may use "
            f"{size(memory())}, half of which is for data. {remedy}"
        )


def check_ratio(
    packed: int,
    unpacked: int,
    what: str,
    *,
    noun: str = "images",
    remedy: str = "If you trust it, store it with np.savez, which does not compress.",
) -> None:
    """Refuse what is large and unpacks as no real data do.

    Args:
        packed: Its bytes.
        unpacked: How many they become.
        what: Names it, as the subject of a sentence.
        noun: What it should hold.
        remedy: What to do about it, a whole sentence.

    Raises:
        UsageError: It is a decompression bomb, or holds one and the same value.
    """
    if unpacked > SMALL and unpacked > RATIO * packed:
        raise UsageError(
            f"{what} has {size(packed)} and would unpack to {size(unpacked)}, which no "
            f"{noun} do: it holds one value over and over, or it is made to fill the "
            f"memory. {remedy}"
        )


def size(nbytes: int) -> str:
    """Write a number of bytes of any size for human readers.

    >>> size(1_125_899_906_842_624), size(6_500_000_000), size(60_008)
    ('1,126 TB', '6.5 GB', '60 kB')
    """
    for unit, step in (("TB", 1e12), ("GB", 1e9)):
        if nbytes >= step:
            value = nbytes / step
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return file_size(nbytes)
