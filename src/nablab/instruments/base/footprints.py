"""The seconds that a piece of work takes, and the bytes that it adds."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from nablab.errors import UsageError

SHORT = 0.1  # seconds; below, the first run mostly warms up, so that others follow
# Runs of short work, of which the fastest counts: more of what takes a millisecond, for
# another program on the machine takes several at a time.
FEWEST_TIMES, MOST_TIMES, ENOUGH_SECONDS = 3, 30, 0.1  # the last in seconds


@dataclass(frozen=True)
class Footprint:
    """What a piece of work takes.

    Attributes:
        seconds: How long it took; of short work, the fastest of several runs.
        peak: Bytes that it held at most, beside what was there before.
        kept: Bytes that it has left behind, its result among them.
    """

    seconds: float
    peak: int
    kept: int


def footprint(work: Callable[[], Any], device: torch.device) -> Footprint:
    """Do some work, and more than once if it is short.

    Args:
        work: What is done; it must take the same each time.
        device: Where its tensors are; the clock waits for an accelerator.
    """
    with counting_bytes() as count:
        seconds, result = _timed(work, device)
    del result
    if seconds < SHORT:
        times: list[float] = []
        while len(times) < FEWEST_TIMES or (
            sum(times) < ENOUGH_SECONDS and len(times) < MOST_TIMES
        ):
            times.append(_timed(work, device)[0])
        seconds = min(times)
    return Footprint(seconds, count.peak, count.kept)


@dataclass
class Count:
    """Bytes that were counted; complete when counting has ended."""

    peak: int = 0
    kept: int = 0


@contextmanager
def counting_bytes(*, arrays: bool = False) -> Iterator[Count]:
    """Count the bytes of the tensors that this thread makes and lets go inside.

    The allocator reports each of them, temporary ones inside PyTorch's own functions
    too, which neither a dispatch mode nor a look at living tensors would see. The
    profiler that listens is the older one: `torch.profiler` takes two seconds to start
    and writes to the terminal (PyTorch 2.13).

    Args:
        arrays: What Python and NumPy allocate, as well, which makes Python slow. Their
            largest sum is added to that of the tensors, whether or not both were
            reached at the same time.

    Raises:
        UsageError: A profiler of PyTorch is running: there can be one only.
    """
    # Private names, imported here so that no instrument depends on them.
    from torch.autograd import (  # type: ignore[attr-defined]
        ProfilerConfig,
        ProfilerState,
        _disable_profiler_legacy,
        _enable_profiler_legacy,
    )

    if torch._C._autograd._profiler_enabled():
        raise UsageError(
            "The cost of a call cannot be measured while PyTorch's profiler runs. Ask "
            "before or after."
        )
    found = Count()
    plain = torch._C._profiler._ExperimentalConfig()
    traced = arrays and not tracemalloc.is_tracing()
    if traced:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] if arrays else 0
    if arrays:
        tracemalloc.reset_peak()
    collects = gc.isenabled()
    _enable_profiler_legacy(
        ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, plain)
    )
    try:
        gc.disable()  # what is older than the work is not to be freed in it
        yield found
    finally:
        records = _disable_profiler_legacy()
        if collects:
            gc.enable()
        if arrays:
            now, most = tracemalloc.get_traced_memory()
            found.peak, found.kept = max(0, most - before), now - before
        if traced:
            tracemalloc.stop()
        for thread in records:
            peak, kept = _balance(thread)
            found.peak += peak
            found.kept += kept


def _balance(records: Any) -> tuple[int, int]:
    """Return the largest and the last sum of what was allocated less what was freed."""
    held = peak = 0
    for record in records:
        if record.kind() == "memory_alloc":
            held += record.cpu_memory_usage() + record.cuda_memory_usage()
            peak = max(peak, held)
    return peak, held


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    _synchronize(device)
    begin = time.perf_counter()
    result = work()
    _synchronize(device)
    return time.perf_counter() - begin, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
