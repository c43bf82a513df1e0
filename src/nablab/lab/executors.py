"""Where work is done: in this process, or in a pool of processes.

An executor is anything with `results`, so an existing distributed engine joins by one small class:
submit every item, yield each outcome when it is there.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Applies a function to items; both are picklable, and the function does not raise."""

    def results(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield every item with its result, in the order in which they are done.

        Raises:
            WorkerLost: A worker died without an answer (killed, or out of memory).
        """
        ...


class WorkerLost(RuntimeError):
    """A worker process died without an answer."""


class InProcess:
    """Does the work here, one item after the other."""

    def results(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.results`."""
        for item in items:
            yield item, function(item)


class ProcessPool:
    """Does the work in ``jobs`` worker processes, which share the cores between them.

    Args:
        jobs: Number of processes.
        prepare: Called once in every worker before its first item; picklable.
    """

    def __init__(self, jobs: int, prepare: Callable[[], object] | None = None) -> None:
        self.jobs = jobs
        self.prepare = prepare

    def results(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.results`."""
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        with concurrent.futures.ProcessPoolExecutor(
            max_workers=self.jobs,
            mp_context=multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
            initializer=_start_worker,
            initargs=(os.getpid(), threads, self.prepare),
        ) as pool:
            waiting = {pool.submit(function, item): item for item in items}
            for future in concurrent.futures.as_completed(waiting):
                try:
                    yield waiting[future], future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    raise WorkerLost(
                        "A worker process died without an answer; it may have been killed or have run out of "
                        "memory. What was finished is kept; give the same command again to go on, with fewer "
                        "--jobs if memory was short."
                    ) from error


def _start_worker(parent: int, threads: int, prepare: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent asks workers to stop by the stop token
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    if prepare is not None:
        prepare()


def _leave_with(parent: int) -> None:
    """End this worker soon after its parent was killed: an idle one would wait forever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(10.0)  # time for a running step to save its checkpoint
    os._exit(1)
