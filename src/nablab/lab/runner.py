"""The runner takes a plan through an executor into the store.

It says truly how the run ended.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from nablab.contract import Condition, Experiment, shared_levels
from nablab.errors import StoreError
from nablab.lab.executors import Executor, InProcess, WorkerLost
from nablab.lab.kept_weights import MOST_BYTES
from nablab.lab.reading import Damaged
from nablab.lab.source_runs import SourceRun, run_ids
from nablab.lab.status import Heartbeat, State, read_state
from nablab.lab.stop import StopToken, end_signals
from nablab.lab.store import Identity, RunFolder, Store
from nablab.lab.work import Outcome, Work, do, pending_seeds

LEFTOVER_SECONDS = 120.0  # a living process renames its temporary files within seconds
LOST_SECONDS = 0.5  # a signal to several processes does not reach them at once
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
        keep_weights: Bytes of the weights that trainings may leave in each trial. It
            decides no number, so it is not a part of the identity.
        sources: The runs that it takes weights from, by their experiments.
    """

    experiment: Experiment
    preset: str
    seeds: int
    device: str = "cpu"
    replicas: str = "auto"
    keep_weights: int = MOST_BYTES
    sources: Mapping[str, SourceRun] = field(default_factory=dict)

    @property
    def conditions(self) -> list[Condition]:
        """The experiment's conditions."""
        return self.experiment.conditions()

    @property
    def groups(self) -> list[tuple[Condition, ...]]:
        """The conditions in groups that may train in one batch: the units of work."""
        return self.experiment.groups()

    @property
    def identity(self) -> Identity:
        """What decides the numbers."""
        return Identity.of(
            self.experiment,
            device=self.device,
            replicas=self.replicas,
            weights_from=run_ids(self.sources),
        )


class Observer(Protocol):
    """Whoever shows a run to the user."""

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Hear that the run begins; ``pending`` trials are still to do."""
        ...

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Hear that conditions that trained in one batch ended."""
        ...

    def stopping(self) -> None:
        """Hear that the user asked to stop."""
        ...

    def helped(self, workers: int) -> None:
        """Hear that worker processes start: a run of several conditions takes long.

        The call comes from another thread.
        """
        ...


class Silent:
    """An observer that shows nothing."""

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """See `Observer.started`."""

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
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
        messages: What went wrong, for a reader.
    """

    folder: RunFolder
    state: State = "done"
    messages: list[str] = field(default_factory=list)


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
    with _said():
        folder = store.create(plan.identity, preset=plan.preset)
        _make_ready(folder, fresh=fresh)
        pending = [
            (group, pending_seeds(folder, group, plan.seeds)[0])
            for group in plan.groups
        ]
        stop = StopToken.create(folder.path)
    report = Report(folder)
    try:
        with _stop_on_signals(stop, observer):
            _execute(plan, pending, executor or InProcess(), observer, stop, report)
    except StoreError:
        _check_not_deleted(folder)  # why the store could not be written, if it is gone
        raise
    finally:
        stop.request()  # nobody waits any longer for workers that are still at it
    _check_not_deleted(folder)
    return report


def _make_ready(folder: RunFolder, *, fresh: bool) -> None:
    """Remove what is asked to be forgotten and what dead processes left."""
    others = read_state(folder) == "running"
    if fresh and others:
        raise StoreError(
            f"Another process is working on this run ({folder.path}); --fresh would "
            "delete what it writes. Wait for it, or stop it first."
        )
    if fresh:
        _forget(folder)
    if not others:
        _sweep(folder)


def _execute(
    plan: Plan,
    pending: Sequence[tuple[Sequence[Condition], Sequence[int]]],
    executor: Executor,
    observer: Observer,
    stop: StopToken,
    report: Report,
) -> None:
    folder = report.folder
    observer.started(
        folder, plan, sum(len(group) * len(seeds) for group, seeds in pending)
    )
    items = [
        Work(
            plan.experiment,
            tuple(group),
            plan.seeds,
            folder.path,
            plan.device,
            plan.replicas,
            stop,
            plan.keep_weights,
            plan.sources,
        )
        for group, seeds in pending
        # A process that was killed after its last trial may have left files to remove.
        if seeds or folder.checkpoints(shared_levels(group))
    ]
    trials = len(plan.conditions) * plan.seeds
    facts = {"seeds": plan.seeds, "trials": trials, **_kept_notes(folder)}
    if plan.keep_weights != MOST_BYTES:
        facts["keep_weights"] = plan.keep_weights
    with Heartbeat(folder, **facts) as heartbeat:
        _work_off(items, executor, observer, stop, report)
        if report.state == "done" and not _complete(folder, plan):
            report.state = "incomplete"
            report.messages.append(
                "Trials that were done are gone: another process "
                "deleted them meanwhile."
            )
        heartbeat.finish(report.state)


def _complete(folder: RunFolder, plan: Plan) -> bool:
    """Tell whether every trial is there, as far as the names of files show."""
    return all(
        (folder.trial_path(condition, seed) / "trial.json").exists()
        for condition in plan.conditions
        for seed in range(plan.seeds)
    )


def _check_not_deleted(folder: RunFolder) -> None:
    """Raise `StoreError` if the run's folder was deleted under our feet."""
    if not (folder.path / "config.json").exists():
        raise StoreError(
            f"The run's folder was deleted while the run went on ({folder.path}), so "
            "it was stopped. Give the same command again to start over."
        )


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Turn what the operating system refuses inside into a sentence.

    It is for work on the store's files.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The store cannot be used: {error.strerror or error} ({error.filename}). "
            "Nothing was run. Give yourself the right to read and write it, or choose "
            "another folder with --store FOLDER or NABLAB_STORE."
        ) from error


def _work_off(
    items: Sequence[Work],
    executor: Executor,
    observer: Observer,
    stop: StopToken,
    report: Report,
) -> None:
    """Give out the work, and return to what another process holds until it is done."""
    while items:
        busy: list[Work] = []
        try:
            for work, outcome in executor.results(do, items):
                if outcome.state == "busy":
                    busy.append(work)
                    continue
                _account(work, outcome, observer, stop, report)
        except WorkerLost as lost:
            time.sleep(LOST_SECONDS)
            # the signal that told us to stop ended a worker that had no work yet
            if stop.requested():
                report.state = "interrupted"
                return
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


def _account(
    work: Work, outcome: Outcome, observer: Observer, stop: StopToken, report: Report
) -> None:
    if outcome.state == "interrupted":
        report.state = "interrupted"
    if outcome.state == "failed":
        report.state = "failed"
        report.messages.append(outcome.message)
    if outcome.state == "halted":
        stop.request()
        raise StoreError(outcome.message)
    observer.finished(work.conditions, outcome)


def _kept_notes(folder: RunFolder) -> dict[str, Any]:
    """Return the notes that an earlier nablab kept with its last command.

    They hold for the trials it left.
    """
    try:
        status = folder.status()
    except Damaged:
        return {}  # the observer has named it
    return {"notes": status.notes} if status and status.notes else {}


def _sweep(folder: RunFolder) -> None:
    """Remove what killed processes left half-written.

    Another one may be starting right now.
    """
    for pattern in ("go-*", "stop-*", "progress/*", ".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
        for leftover in folder.path.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()


def _forget(folder: RunFolder) -> None:
    """Delete all that was run.

    What speaks of trials goes first, so that it never speaks of trials that are gone.
    """
    for name in ("status.json", "verdicts.json", "report.html", "environment.json"):
        (folder.path / name).unlink(missing_ok=True)
    for name in (
        "trials",
        "checkpoints",
        "progress",
        "failures",
        "figures",
        "provenance",
    ):
        path = folder.path / name
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        # the error names the file in the folder without the folder
        except OSError as error:
            raise OSError(
                error.errno, f"--fresh could not delete it: {error.strerror}", str(path)
            ) from error


@contextlib.contextmanager
def _stop_on_signals(stop: StopToken, observer: Observer) -> Iterator[None]:
    """Ask to stop at the first Ctrl-C, SIGTERM or SIGHUP.

    The second one ends the program at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        stop.request()
        observer.stopping()

    before = {number: signal.signal(number, ask) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
