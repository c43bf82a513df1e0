"""Where work is done: in this process, in a pool of processes, or in both.

An executor is anything with `results`, so an existing distributed engine joins by one
small class: submit every item, yield each outcome when it is there. What a trial
computes does not depend on the executor: its function is decorated with
`with_trial_threads`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from nablab import threads
from nablab.lab.memory import peak_bytes
from nablab.lab.stop import ask_this_process

Item = TypeVar("Item")
Result = TypeVar("Result")
Options = ParamSpec("Options")

# A worker needs about three seconds of a core to import PyTorch. Work that is done in
# five seconds is better done without workers; where more is left, those five seconds
# are a small part of it.
PATIENCE_SECONDS = 5.0
NO_LIMIT = 1_000_000  # processes

LOST = (
    "A worker process died without an answer; it may have been killed or have run out "
    "of memory. What was finished is kept; give the same command again to go on, with "
    "fewer --jobs if memory was short."
)


class Executor(Protocol):
    """Applies a function to items; both are picklable, and the function does not raise.

    What they are made of is defined in modules and not in the main program, which
    workers do not import.
    """

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
        spawning = _Spawning()
        with _safe_path():
            pool = _pool(
                self.jobs,
                spawning,
                engines=max(1, threads.cores() // self.jobs),
                prepare=self.prepare,
            )
        with pool, _at_once(spawning):
            with _safe_path():
                waiting = {pool.submit(function, item): item for item in items}
            for future in concurrent.futures.as_completed(waiting):
                try:
                    yield waiting[future], future.result()
                except BrokenProcessPool as error:
                    raise _worker_lost(error) from error


class WithHelpers:
    """Does the work here, and starts workers to help if it takes long.

    This is what ``--jobs auto`` chooses.

    Short runs stay in this process; whatever waits after `PATIENCE_SECONDS` is shared
    with worker processes, so that all cores have work. An item that ends in a worker
    while this process is busy with one of its own is yielded after that.

    Args:
        jobs: Number of processes that work, this one included.
        prepare: Called once in every worker before its first item; picklable.
        patience: Seconds before workers are started; `PATIENCE_SECONDS` if None.
        on_start: Told how many workers start.
    """

    def __init__(
        self,
        jobs: int,
        prepare: Callable[[], object] | None = None,
        *,
        patience: float | None = None,
        on_start: Callable[[int], object] = lambda workers: None,
    ) -> None:
        self.jobs = jobs
        self.prepare = prepare
        self.patience = PATIENCE_SECONDS if patience is None else patience
        self.on_start = on_start

    def results(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """See `Executor.results`."""
        waiting = deque(items)
        found: queue.SimpleQueue[tuple[Item, Result] | Exception] = queue.SimpleQueue()
        ended = threading.Event()
        spawning = _Spawning()
        helping = threading.Thread(
            target=self._help,
            args=(function, waiting, found, ended, spawning),
            name="nablab-helpers",
            daemon=True,
        )
        with threads.borrowed():
            helping.start()
            try:
                while (item := _next(waiting)) is not None:
                    found.put((item, function(item)))
                    yield from _there(found)
                ended.set()  # no worker needs to start any more
                helping.join()
                yield from _there(found)
            except KeyboardInterrupt:
                waiting.clear()
                ended.set()
                while helping.is_alive():  # it may be about to start another worker
                    spawning.kill()
                    helping.join(0.1)
                raise
            finally:  # the caller may have stopped taking results
                waiting.clear()
                ended.set()
                helping.join()

    def _help(
        self,
        function: Callable[[Item], Result],
        waiting: deque[Item],
        found: queue.SimpleQueue[tuple[Item, Result] | Exception],
        ended: threading.Event,
        spawning: _Spawning,
    ) -> None:
        """Let workers do what waits, once patience is over.

        What goes wrong is an answer too.
        """
        if ended.wait(self.patience):
            return
        workers = min(self.jobs - 1, len(waiting), _room())
        if workers < 1:
            return
        try:
            self.on_start(workers)
            self._share(workers, function, waiting, found, spawning)
        except Exception as error:
            waiting.clear()
            found.put(
                _worker_lost(error) if isinstance(error, BrokenProcessPool) else error
            )

    def _share(
        self,
        workers: int,
        function: Callable[[Item], Result],
        waiting: deque[Item],
        found: queue.SimpleQueue[tuple[Item, Result] | Exception],
        spawning: _Spawning,
    ) -> None:
        engines = max(1, threads.cores() // (workers + 1))
        # from here on this process has its share of the cores only
        threads.give_engines(engines)
        with _safe_path():
            pool = _pool(workers, spawning, engines=engines, prepare=self.prepare)
        with pool:
            busy: dict[concurrent.futures.Future[Result], Item] = {}
            while True:
                # One item for each worker and no more: the rest is for whoever is free
                # first, here or there.
                while len(busy) < workers and (item := _next(waiting)) is not None:
                    with _safe_path():
                        busy[pool.submit(function, item)] = item
                if not busy:
                    return
                done, _ = concurrent.futures.wait(
                    busy, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    found.put((busy.pop(future), future.result()))


def with_trial_threads(
    function: Callable[Concatenate[Any, Options], Result],
) -> Callable[Concatenate[Any, Options], Result]:
    """Let a function compute with the threads of its trials.

    Its first argument has an ``experiment``, whose trials they are.
    """

    @functools.wraps(function)
    def computed(
        work: Any, /, *arguments: Options.args, **options: Options.kwargs
    ) -> Result:
        with threads.fixed(threads.trial_threads(len(work.experiment.groups()))):
            return function(work, *arguments, **options)

    return computed


def _next(waiting: deque[Item]) -> Item | None:
    """Take the first that waits, if any; threads may ask at the same time."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _there(
    found: queue.SimpleQueue[tuple[Item, Result] | Exception],
) -> Iterator[tuple[Item, Result]]:
    """Yield all answers that are there; raise the one that says what went wrong."""
    while not found.empty():
        answer = found.get()
        if isinstance(answer, Exception):
            raise answer
        yield answer


def _room() -> int:
    """Return how many more processes like this one the free memory holds."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(
            int(line.split()[1]) * 1024
            for line in lines
            if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):  # systems other than Linux lack it
        return NO_LIMIT
    return free // peak_bytes()


def _worker_lost(error: Exception) -> WorkerLost:
    lost = WorkerLost(LOST)
    lost.__cause__ = error
    return lost


def _pool(
    workers: int,
    spawning: _Spawning,
    *,
    engines: int,
    prepare: Callable[[], object] | None,
) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(
        max_workers=workers,
        mp_context=spawning,
        initializer=_start_worker,
        initargs=(os.getpid(), engines, prepare),
    )


class _Worker(SpawnProcess):
    """A process that begins without the program that starts it.

    `multiprocessing` imports the program's main file in every process it spawns. A
    script that calls ``nablab.run`` outside ``if __name__ == "__main__":`` would begin
    again in each of them, and end them all. Workers need nothing of it: what they are
    given lies in modules.
    """

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:
        with _without_main(), _ctrl_c_held():
            return SpawnProcess._Popen(process)


class _Spawning(SpawnContext):
    """Processes that are not forked: torch's threads do not survive that.

    It remembers them, so that they can be ended at once.
    """

    def __init__(self) -> None:
        self._started: list[_Worker] = []

    def Process(self, *arguments: Any, **options: Any) -> _Worker:  # type: ignore[override]
        """Make a process; see `multiprocessing.Process`."""
        worker = _Worker(*arguments, **options)
        self._started.append(worker)
        return worker

    def kill(self) -> None:
        """End all of them, in the middle of whatever they do."""
        for worker in self._started:
            if worker.pid is not None:
                worker.kill()


@contextmanager
def _at_once(spawning: _Spawning) -> Iterator[None]:
    """Kill the workers at a second Ctrl-C: their steps may take long.

    What a killed worker leaves half-written is no danger: the store checks what is
    whole.
    """
    try:
        yield
    except KeyboardInterrupt:
        spawning.kill()
        raise


_preparing = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main program from processes that are spawned inside."""
    with _preparing:
        told = spawn.get_preparation_data

        def less(name: str) -> dict[str, Any]:
            facts = told(name)
            return {k: v for k, v in facts.items() if not k.startswith("init_main")}

        spawn.get_preparation_data = less
        try:
            yield
        finally:
            spawn.get_preparation_data = told


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Hold back Ctrl-C from processes that are spawned inside until they ask for it.

    A terminal sends it to them too, and one that is still importing would print a
    traceback into what is drawn there. This thread hears it at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


SAFE_PATH = "PYTHONSAFEPATH"
_environment = threading.RLock()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep processes that start inside from importing modules of the current folder.

    `multiprocessing` starts its workers, and a process that watches over them, with
    ``python -c``. That would import whatever is called ``signal.py`` or ``types.py`` in
    the folder where the user happens to be.
    """
    with _environment:
        before = os.environ.get(SAFE_PATH)
        os.environ[SAFE_PATH] = "1"
        try:
            yield
        finally:
            del os.environ[SAFE_PATH]
            if before is not None:
                os.environ[SAFE_PATH] = before


def _start_worker(
    parent: int, engines: int, prepare: Callable[[], object] | None
) -> None:
    # the parent asks workers to stop by the stop token
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # if Ctrl-C stayed blocked, programs that the user's code starts would not hear it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # programs that the user's code starts must find the modules that they always find
    os.environ.pop(SAFE_PATH, None)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    threads.give_engines(engines)
    if prepare is not None:
        prepare()


def _leave_with(parent: int) -> None:
    """End this worker soon after its parent was killed.

    An idle one would wait forever.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    ask_this_process()
    time.sleep(10.0)  # time for a running step to save its checkpoint
    os._exit(1)
