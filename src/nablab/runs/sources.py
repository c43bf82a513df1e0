"""Which runs an experiment takes weights from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nablab.contract import Trials
from nablab.errors import UsageError
from nablab.lab.runner import Plan
from nablab.lab.source_runs import SourceRun
from nablab.lab.status import read_state
from nablab.lab.store import RunFolder, Store
from nablab.runs.open import open_run


def with_sources(
    plan: Plan, store: Store, weights_from: str | Sequence[str] = ()
) -> Plan:
    """Settle which runs a plan takes weights from, and check that they have them.

    Args:
        plan: What is to be run.
        store: Where the other runs are.
        weights_from: Runs to take, one per needed experiment at most, by id or path.
            Where none is named, the finished run that was used last is taken.

    Returns:
        The plan with its `Plan.sources`.

    Raises:
        UsageError: A run is missing, is another experiment's, or lacks weights; the
            text says which command makes it.
        StoreError: The store cannot be read.
    """
    name = plan.experiment.name
    needed = list(
        dict.fromkeys(one.experiment for one in plan.experiment.active_needs())
    )
    chosen: dict[str, RunFolder] = {}
    named = [weights_from] if isinstance(weights_from, str) else weights_from
    for reference in named:
        folder = store.find(reference)
        experiment = folder.config().experiment
        if experiment not in needed:
            takes = ", ".join(needed) or "no other experiment"
            raise UsageError(
                f"'{reference}' is a run of {experiment}, and {name} takes weights of "
                f"{takes}. Leave it out."
            )
        if experiment in chosen:
            raise UsageError(
                f"'{reference}' is the second run of {experiment} to take weights "
                "from. Name one."
            )
        _check_place(folder, store)
        chosen[experiment] = folder
    sources = {
        experiment: _source(
            chosen.get(experiment) or _latest(experiment, name, store), plan.seeds
        )
        for experiment in needed
    }
    for one in plan.experiment.active_needs():
        for trial in Trials(plan.conditions, range(plan.seeds)):
            sources[one.experiment].check(one, trial)
    return replace(plan, sources=sources)


def _check_place(folder: RunFolder, store: Store) -> None:
    """Refuse a run of another store: the run's command could not name it again."""
    if folder.path.resolve().parent.parent != store.root.resolve():
        raise UsageError(
            f"{folder.path} lies outside the store {store.root}. Copy the folder to "
            f"{store.root / folder.config().experiment / folder.run_id} first."
        )


def _latest(experiment: str, asking: str, store: Store) -> RunFolder:
    """Return the finished run of an experiment that was used last."""
    for folder in store.runs():
        if folder.path.parent.name == experiment and read_state(folder) == "done":
            return folder
    raise UsageError(
        f"{asking} takes weights of {experiment}, and there is no finished run of it "
        f"in {store.root}. First: nablab run {experiment}"
    )


def _source(folder: RunFolder, seeds: int) -> SourceRun:
    """Describe a run, with the command that gives it as many seeds as are needed."""
    run = open_run(str(folder.path))
    conditions = tuple(run.experiment.conditions())
    command = replace(run, seeds=max(run.seeds, seeds)).command
    return SourceRun(folder.path, folder.run_id, conditions, command)
