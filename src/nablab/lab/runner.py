"""The runner: takes a plan through an executor into the store, and says truly how it ended."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from nablab.errors import StoreError
from nablab.experiment import Condition, Experiment
from nablab.lab.environment import describe_environment
from nablab.lab.executors import Executor, InProcess, WorkerLost
from nablab.lab.status import Heartbeat, State, read_state
from nablab.lab.stop import StopToken
from nablab.lab.store import Identity, RunFolder, Store
from nablab.lab.work import Outcome, Work, do, pending_seeds

LEFTOVER_SECONDS = 120.0  # a living process renames its temporary files within seconds
BUSY_SECONDS = 0.5  # how often to ask for a condition that another process works on


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiment: The configured experiment.
        preset: The preset that it came from.
        seeds: Number of seeds per condition.
        device: ``cpu``, ``cuda`` or ``mps``.
        replicas: ``auto``, ``batched`` or ``sequential``.
    """

    experiment: Experiment
    preset: str
    seeds: int
    device: str = "cpu"
    replicas: str = "auto"

    @property
    def conditions(self) -> list[Condition]:
        """The experiment's conditions."""
        return self.experiment.conditions()

    @property
    def identity(self) -> Identity:
        """What decides the numbers."""
        return Identity.of(self.experiment, device=self.device, replicas=self.replicas)


class Observer(Protocol):
    """Whoever shows a run to the user."""

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """The run begins; ``pending`` trials are still to do."""
        ...

    def finished(self, condition: Condition, outcome: Outcome) -> None:
        """A condition ended."""
        ...

    def stopping(self) -> None:
        """The user asked to stop."""
        ...

    def helped(self, workers: int) -> None:
        """The run lasts and has several conditions, so worker processes start; told from another thread."""
        ...


class Silent:
    """An observer that shows nothing."""

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """See `Observer.started`."""

    def finished(self, condition: Condition, outcome: Outcome) -> None:
        """See `Observer.finished`."""

    def stopping(self) -> None:
        """See `Observer.stopping`."""

    def helped(self, workers: int) -> None:
        """See `Observer.helped`."""


@dataclass
class Report:
    """How a run ended.

    Attributes:
        folder: Where it is.
        state: ``done``, ``failed`` or ``interrupted``.
        messages: What went wrong, for people.
        notes: Automatic choices and caveats.
    """

    folder: RunFolder
    state: State = "done"
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def execute(
    plan: Plan,
    store: Store,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
) -> Report:
    """Run what is pending of a plan.

    Args:
        plan: What to run.
        store: Where to keep it.
        executor: Where to do the work; in this process if None.
        observer: Who shows it.
        fresh: Forget the run's earlier trials first.

    Returns:
        How it ended. Failures of single conditions do not raise.

    Raises:
        StoreError: The store cannot be written.
    """
    observer = observer or Silent()
    folder = store.create(plan.identity, preset=plan.preset)
    others = read_state(folder) == "running"
    if fresh and others:
        raise StoreError(
            f"Another process is working on this run ({folder.path}); --fresh would delete what it writes. "
            "Wait for it, or stop it first."
        )
    if fresh:
        _forget(folder)
    if not others:
        _sweep(folder)
    stop = StopToken.create(folder.path)
    conditions = plan.conditions
    pending = [(c, pending_seeds(folder, c, plan.seeds)[0]) for c in conditions]
    report = Report(folder, notes=_kept_notes(folder))
    observer.started(folder, plan, sum(len(seeds) for _, seeds in pending))
    folder.write_json("environment.json", describe_environment(plan.device))
    items = [
        Work(plan.experiment, condition, plan.seeds, folder.path, plan.device, plan.replicas, stop)
        for condition, seeds in pending
        if seeds or folder.checkpoints(condition)  # what a kill after the last trial left is cleaned up
    ]
    with Heartbeat(folder, seeds=plan.seeds, trials=len(conditions) * plan.seeds) as heartbeat:
        with _stop_on_signals(stop, observer):
            _work_off(items, executor or InProcess(), observer, stop, report)
        stop.clear()
        heartbeat.finish(report.state, notes=report.notes)
    return report


def _work_off(
    items: Sequence[Work], executor: Executor, observer: Observer, stop: StopToken, report: Report
) -> None:
    """Give out the work; come back to what another process holds until it is done."""
    while items:
        busy: list[Work] = []
        try:
            for work, outcome in executor.results(do, items):
                if outcome.state == "busy":
                    busy.append(work)
                    continue
                _account(work, outcome, observer, stop, report)
        except WorkerLost as lost:
            report.state = "failed"
            report.messages.append(str(lost))
            return
        if stop.requested() and report.state == "done":
            report.state = "interrupted"
        if report.state == "interrupted":
            return
        items = busy
        if busy:
            time.sleep(BUSY_SECONDS)


def _account(work: Work, outcome: Outcome, observer: Observer, stop: StopToken, report: Report) -> None:
    report.notes.extend(note for note in outcome.notes if note not in report.notes)
    if outcome.state == "interrupted":
        report.state = "interrupted"
    if outcome.state == "failed":
        report.state = "failed"
        report.messages.append(outcome.message)
    if outcome.state == "halted":
        stop.request()
        raise StoreError(outcome.message)
    observer.finished(work.condition, outcome)


def _kept_notes(folder: RunFolder) -> list[str]:
    """Notes of earlier commands on this run, which hold for the trials they left."""
    return list((folder.read_json("status.json") or {}).get("notes", []))


def _sweep(folder: RunFolder) -> None:
    """Remove what killed processes left half-written; another one may be starting right now."""
    for pattern in ("stop-*", "progress/*", ".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
        for leftover in folder.path.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()


def _forget(folder: RunFolder) -> None:
    for name in ("trials", "checkpoints", "progress", "failures", "figures"):
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in ("verdicts.json", "report.html", "status.json"):
        (folder.path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _stop_on_signals(stop: StopToken, observer: Observer) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks to stop; the second one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.path.exists():
            raise KeyboardInterrupt
        stop.request()
        observer.stopping()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
