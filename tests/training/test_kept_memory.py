"""Freed memory stays inside, and is given back at the end."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nablab.training.kept_memory import _glibc, kept_memory

ROOT = Path(__file__).parents[2]

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or _glibc() is None,
    reason="only glibc has the options",
)


def faults(times: int) -> int:
    """Count the pages that the system gave out for blocks of 64 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def watched() -> None:
    """Fail unless freed memory is kept inside, and given back after the outermost."""
    with kept_memory():
        faults(8)  # small blocks may lie in the way of the first few
        kept = faults(16)
    assert kept < 130_000, kept  # of 262,144
    before = resident()
    with kept_memory():
        with kept_memory():
            faults(1)
        assert resident() > before + 50 * 2**20, (resident(), before)
    assert resident() < before + 20 * 2**20, (resident(), before)


@glibc
def test_freed_memory_is_kept_inside_and_given_back_after_the_outermost() -> None:
    # In a process of its own: where blocks lie depends on all that ran before.
    words = f"from {__name__} import watched; watched()"
    subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=True)


def test_an_error_passes_through() -> None:
    with pytest.raises(ValueError, match="inside"), kept_memory():
        raise ValueError("inside")
