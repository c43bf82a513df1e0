"""One piece of work: all pending trials of a group of conditions.

Whoever holds its lock does it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nablab.contract import Condition, Experiment, Trial, Trials, shared_levels
from nablab.errors import Interrupted, NablabError, StoreError, UsageError, in_short
from nablab.importing import fresh_imports, user_code
from nablab.lab import contents, reading
from nablab.lab.executors import with_trial_threads
from nablab.lab.kept_weights import MOST_BYTES
from nablab.lab.session import Session
from nablab.lab.source_runs import SourceRun, run_ids
from nablab.lab.stop import StopToken, saving_when_told_to_end
from nablab.lab.store import Identity, RunFolder
from nablab.lab.trials import CorruptTrial


@dataclass(frozen=True)
class Work:
    """What an executor is given: conditions that may train in one batch, with seeds.

    It is picklable.

    Attributes:
        experiment: The configured experiment.
        conditions: What to run: one condition, or those that differ by
            `Experiment.batch_over` alone.
        seeds: Number of seeds that are wanted of each: 0 to seeds - 1.
        folder: The run's folder.
        device: Where to train.
        replicas: How to train replicas.
        stop: The request to stop, to be checked.
        keep_weights: Bytes of the weights that trainings may leave in each trial.
        sources: The runs that it takes weights from, by their experiments.
    """

    experiment: Experiment
    conditions: tuple[Condition, ...]
    seeds: int
    folder: Path
    device: str
    replicas: str
    stop: StopToken
    keep_weights: int = MOST_BYTES
    sources: Mapping[str, SourceRun] = field(default_factory=dict)

    @property
    def condition(self) -> Condition:
        """The levels that the conditions share: the name of the work."""
        return shared_levels(self.conditions)


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        state: ``done``; ``failed`` (the experiment raised); ``busy`` (another process
            has the lock); ``interrupted`` (asked to stop); ``halted`` (the store cannot
            be written).
        trained: Trials that were run now.
        seconds: Wall time.
        message: What went wrong, for a reader.
        notes: What was chosen automatically.
        damage: What of the store was damaged and is done again; a part of the notes.
    """

    state: Literal["done", "failed", "busy", "interrupted", "halted"]
    trained: tuple[Trial, ...] = ()
    seconds: float = 0.0
    message: str = ""
    notes: tuple[str, ...] = field(default=())
    damage: tuple[str, ...] = field(default=())


def pending_seeds(
    folder: RunFolder, conditions: Sequence[Condition], seeds: int
) -> tuple[list[int], list[str]]:
    """Find the seeds that some condition lacks.

    Conditions that train in one batch run a seed together, whichever of them lacks it.

    Returns:
        The seeds in order, and a message for every damaged trial among them.
    """
    pending: set[int] = set()
    damaged = []
    for condition in conditions:
        for seed in range(seeds):
            try:
                record = folder.read_trial(condition, seed)
            except CorruptTrial as damage:
                damaged.append(
                    f"{damage} The trial ({condition}, seed {seed}) is run again."
                )
                record = None
            if record is None:
                pending.add(seed)
    return sorted(pending), damaged


@with_trial_threads
def do(work: Work) -> Outcome:
    """Run the pending trials and store their records.

    Never raises for what can go wrong in a run: the outcome says it.
    """
    with saving_when_told_to_end():
        return _do(work)


def _do(work: Work) -> Outcome:
    import filelock

    folder = RunFolder(work.folder)
    path = folder.lock_path(work.condition)
    begin = time.perf_counter()
    if work.stop.requested():
        return Outcome("interrupted")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path, timeout=0):
            return _do_locked(work, folder, begin)
    except filelock.Timeout:
        return Outcome("busy")
    except Interrupted as stop:
        return Outcome("interrupted", message=str(stop))
    except StoreError as error:
        return Outcome(
            "halted", message=str(error), seconds=time.perf_counter() - begin
        )
    except OSError as error:
        return Outcome("halted", message=f"The store cannot be used: {error}")


def _do_locked(work: Work, folder: RunFolder, begin: float) -> Outcome:
    trained: list[Trial] = []
    notes: list[str] = []
    damage: list[str] = []
    for condition in {work.condition, *work.conditions}:
        folder.remove_leftovers(condition)
    while True:
        pending, damaged = pending_seeds(folder, work.conditions, work.seeds)
        begun = _seeds_begun(folder, work.condition, pending, damaged)
        seeds = begun or pending
        damage += damaged
        if not pending:
            _forget_progress(folder, work.condition)
            seconds = time.perf_counter() - begin
            return Outcome(
                "done",
                tuple(trained),
                seconds,
                notes=tuple(notes),
                damage=tuple(damage),
            )
        trials = Trials(work.conditions, seeds)
        session = Session(
            work.experiment,
            trials,
            folder=folder,
            stop=work.stop,
            device=work.device,
            replicas=work.replicas,
            notes=damaged,
            goes_on=bool(begun),
            keep_weights=work.keep_weights,
            sources=work.sources,
        )
        folder.write_json(_marker(folder, work.condition), {"seeds": seeds})
        try:
            _check_unchanged(work)
            own = fresh_imports.code_of_class(type(work.experiment))
            with session.journal():
                with fresh_imports.watching() as unseen:
                    work.experiment.run(trials, session)
                if note := user_code.unseen_note(
                    {**dict.fromkeys(own.unseen if own else ()), **unseen}
                ):
                    session.note(note)
                records = session.records()
        except (Interrupted, StoreError):
            raise
        # it may raise anything; the other conditions go on
        except (Exception, SystemExit) as error:
            return _failed(work, folder, error, begin)
        for record in records:
            folder.write_trial(record)
        _forget_progress(folder, work.condition)
        folder.failure_path(work.condition).unlink(missing_ok=True)
        trained += trials
        notes += session.notes


def _check_unchanged(work: Work) -> None:
    """Refuse to train on files that are no longer those of the run's id.

    A run may take hours, and whoever waits for it edits the model or adds images
    meanwhile.
    """
    identity = Identity.of(
        work.experiment,
        device=work.device,
        replicas=work.replicas,
        weights_from=run_ids(work.sources),
    )
    if identity.run_id != work.folder.name:
        raise UsageError(
            "your code or data were changed after the run began, so this condition was "
            "not trained. Give the command again: it makes a new run for the files as "
            f"they are now ({identity.run_id})."
        )


def _marker(folder: RunFolder, condition: Condition) -> str:
    return f"checkpoints/{folder.condition_key(condition)}.json"


def _forget_progress(folder: RunFolder, condition: Condition) -> None:
    """Remove checkpoints and progress of a finished condition.

    Those that a killed process left are removed, too.
    """
    for path in folder.checkpoints(condition):
        path.unlink(missing_ok=True)
    folder.progress_path(condition).unlink(missing_ok=True)


def _seeds_begun(
    folder: RunFolder, condition: Condition, pending: list[int], damaged: list[str]
) -> list[int]:
    """Return the seeds of an interrupted batch, if any of them is still pending.

    The file that names them may be damaged: that is added to ``damaged``, and no seed
    is taken from it.

    The whole batch is run again with its checkpoint, even if some of its trials were
    already written: rounding may depend on who shares a batch, and a resumed run must
    give the same bytes.
    """
    try:
        marker = reading.read(folder.path / _marker(folder, condition), contents.Marker)
    except reading.Damaged as error:
        damaged.append(str(error))
        return []
    begun = marker.seeds if marker else ()
    return list(begun) if set(begun) & set(pending) else []


def _failed(
    work: Work, folder: RunFolder, error: BaseException, begin: float
) -> Outcome:
    what = error if isinstance(error, NablabError) else in_short(error)
    message = f"{work.condition}: {what}"
    content = {
        "condition": dict(work.condition),
        "message": message,
        "traceback": traceback.format_exc(),
    }
    name = str(folder.failure_path(work.condition).relative_to(folder.path))
    folder.write_json(name, content)
    return Outcome("failed", message=message, seconds=time.perf_counter() - begin)
