"""Where work is done changes nothing but the time that it takes."""

from __future__ import annotations

import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nablab import runs, threads
from nablab.errors import UsageError
from nablab.lab import executors
from nablab.lab.executors import (
    InProcess,
    ProcessPool,
    WithHelpers,
    WorkerLost,
    with_trial_threads,
)
from nablab.runs import start
from tests.lab.errands import (
    die_elsewhere,
    fail_elsewhere,
    imported,
    last,
    wait_for_a_worker,
    where,
)


def test_short_work_stays_in_this_process() -> None:
    started: list[int] = []
    found = list(
        WithHelpers(4, patience=30.0, on_start=started.append).results(
            where, [0.0, 0.0, 0.0]
        )
    )
    assert {process for _, (process, _) in found} == {os.getpid()}
    assert started == []


def test_one_condition_needs_no_help() -> None:
    started: list[int] = []
    assert (
        len(
            list(
                WithHelpers(4, patience=0.1, on_start=started.append).results(
                    where, [0.5]
                )
            )
        )
        == 1
    )
    assert started == []


def test_work_that_lasts_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 4)
    started: list[int] = []
    items = [0.2 + index / 1000 for index in range(200)]
    taken = WithHelpers(2, patience=0.1, on_start=started.append).results(where, items)
    found = []
    for answer in taken:
        found.append(answer)
        if len({process for _, (process, _) in found}) == 2:
            break  # what still waits is given up
    taken.close()
    helped = [engines for _, (process, engines) in found if process != os.getpid()]
    assert started == [1]
    assert helped == [2]  # its share of four cores
    assert threads._given is None  # and this process has them all again


def test_every_item_is_answered_once() -> None:
    items = [0.2 + index / 1000 for index in range(12)]
    found = list(WithHelpers(2, patience=0.0).results(where, items))
    assert sorted(item for item, _ in found) == items


@pytest.mark.parametrize("executor", [ProcessPool(1), WithHelpers(2, patience=0.0)])
def test_a_lost_worker_is_said(executor: Any) -> None:
    with pytest.raises(WorkerLost, match="same command again"):
        list(executor.results(die_elsewhere, [os.getpid()] * 60))


@pytest.mark.parametrize("executor", [ProcessPool(1), WithHelpers(2, patience=0.0)])
def test_an_error_in_a_worker_is_not_lost(executor: Any) -> None:
    with pytest.raises(ValueError, match="was to raise nothing"):
        list(executor.results(fail_elsewhere, [os.getpid()] * 60))


def test_without_free_memory_nobody_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_room", lambda: 0)
    started: list[int] = []
    list(
        WithHelpers(4, patience=0.0, on_start=started.append).results(
            where, [0.05, 0.05]
        )
    )
    assert started == []


@pytest.mark.parametrize(
    ("jobs", "device", "cores", "expected"),
    [
        ("auto", "cpu", 4, WithHelpers),
        ("auto", "cpu", 1, InProcess),
        ("auto", "cuda", 4, InProcess),
        (1, "cpu", 4, InProcess),
        (3, "cpu", 1, ProcessPool),
    ],
)
def test_who_works(
    jobs: Any, device: str, cores: int, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: cores)
    chosen = start._executor(jobs, device, None)
    assert type(chosen) is expected
    assert getattr(chosen, "jobs", None) == (
        None if expected is InProcess else 4 if jobs == "auto" else jobs
    )


def test_no_jobs_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or more, or auto"):
        runs.run("toy", preset="quick", jobs=0)


class Work:
    """What `with_trial_threads` needs to know of its first argument."""

    def __init__(self, conditions: int) -> None:
        self.experiment = self
        self._conditions = conditions

    def groups(self) -> list[int]:
        return list(range(self._conditions))


@pytest.mark.parametrize("outside", [1, 2, 3])
@pytest.mark.parametrize(
    ("conditions", "expected"), [(1, threads.THREADS_ALONE), (2, 1), (9, 1)]
)
def test_the_configuration_decides_the_threads(
    outside: int, conditions: int, expected: int
) -> None:
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    @with_trial_threads
    def seen(work: Work) -> tuple[int, int, set[int]]:
        blas = {
            library["num_threads"]
            for library in threadpool_info()
            if library["user_api"] == "blas"
        }
        return torch.get_num_threads(), threads.engine_threads(), blas

    before = torch.get_num_threads()
    torch.set_num_threads(outside)
    try:
        assert seen(Work(conditions)) == (expected, outside, {1})
        assert torch.get_num_threads() == outside
    finally:
        torch.set_num_threads(before)


HARMLESS = ("signal", "types", "random", "queue", "threading", "nablab")


def test_workers_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harmless signal.py, types.py or random.py of the user must not take the place
    of Python's.
    """
    for name in HARMLESS:
        (tmp_path / f"{name}.py").write_text(
            f"raise SystemExit('{name} of the current folder was imported')\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    before = os.environ.get("PYTHONSAFEPATH")
    for executor in (ProcessPool(1), WithHelpers(2, patience=0.0)):
        function: Callable[[Any], Any] = (
            imported if isinstance(executor, ProcessPool) else where
        )
        items: list[Any] = (
            [HARMLESS] if isinstance(executor, ProcessPool) else [1.0] * 4
        )
        found = list(executor.results(function, items))  # type: ignore[attr-defined]
        assert len(found) == len(items)
        if isinstance(executor, ProcessPool):
            assert not [file for file in found[0][1] if file.startswith(str(tmp_path))]
    assert os.environ.get("PYTHONSAFEPATH") == before


SCRIPT = """
import os
from pathlib import Path

import nablab
from nablab.lab import executors

with Path("begun.txt").open("a") as begun:
    begun.write(f"{{os.getpid()}}\\n")
executors.PATIENCE_SECONDS = 0.0
run = nablab.run("toy", preset="quick", widths=(2, 3, 4, 5), pause=0.5, jobs={jobs})
print(run.state, len(run.records), *run.messages)
"""


@pytest.mark.parametrize("jobs", ["2", pytest.param("'auto'", marks=pytest.mark.slow)])
def test_workers_do_not_begin_the_users_script_again(tmp_path: Path, jobs: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(jobs=jobs))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "done 12\n"
    assert done.stderr == ""
    assert len((tmp_path / "begun.txt").read_text().split()) == 1


@pytest.mark.parametrize("executor", [ProcessPool(2), WithHelpers(2, patience=0.0)])
def test_workers_end_at_once_with_ctrl_c_whatever_they_do(
    executor: ProcessPool | WithHelpers, tmp_path: Path
) -> None:
    def interrupt() -> None:
        wait_for_a_worker(tmp_path)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    if isinstance(executor, ProcessPool):  # else this process works and breaks off
        threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(executor.results(last, [(os.getpid(), tmp_path)] * 3))
    files = list(tmp_path.glob("at-work-*"))
    assert files
    assert time.time() - min(file.stat().st_mtime for file in files) < 30
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name.removeprefix("at-work-")), 0)


EAGER = """
import os, signal, sys, threading, time
from nablab.lab import executors
from tests.lab.errands import where

def interrupt():
    # as a terminal does, to all, while the worker imports
    for _ in range(20):
        time.sleep(0.02)
        os.killpg(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    pool = executors.ProcessPool(1)
    threading.Thread(target=interrupt).start()
    print(len(list(pool.results(where, [0.5]))), bool(heard))
"""


def test_a_worker_that_is_starting_is_deaf_to_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EAGER)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert (done.stdout, done.stderr) == ("1 True\n", "")


def test_other_processes_still_know_the_main_program() -> None:
    told = multiprocessing.spawn.get_preparation_data
    for executor in (ProcessPool(1), WithHelpers(2, patience=0.0)):
        assert list(executor.results(where, [0.0] * 3))
        assert multiprocessing.spawn.get_preparation_data is told


def test_a_run_says_that_workers_help() -> None:
    from nablab.display.sentences import helping

    assert (
        helping(1) == "2 conditions at a time from now on: a worker process helps "
        "(--jobs 1 works without)."
    )
    assert helping(3).startswith(
        "4 conditions at a time from now on: 3 worker processes help"
    )
