"""Check a request, run it or rehearse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nablab import catalogue, threads
from nablab.contract import Condition, Experiment, Trials, configuration, text_of
from nablab.display.choosing import shown
from nablab.errors import NablabError, UsageError, raised, unknown
from nablab.lab.executors import (
    Executor,
    InProcess,
    ProcessPool,
    WithHelpers,
    with_trial_threads,
)
from nablab.lab.kept_weights import MOST_BYTES, bytes_of
from nablab.lab.rehearsal import Estimate, Rehearsal
from nablab.lab.runner import Observer, Plan, Report, Silent, execute
from nablab.lab.session import checkpoint_seconds
from nablab.lab.stop import shield_resource_tracker
from nablab.runs.open import open_store
from nablab.runs.result import MOST_SEEDS, Run
from nablab.runs.sources import with_sources
from nablab.runs.wording import in_python, told_in_python

REPLICAS = ("auto", "batched", "sequential")
DEVICES = ("cpu", "cuda", "mps")


def make_plan(
    name: str,
    *,
    preset: str = "standard",
    seeds: int | None = None,
    device: str = "cpu",
    replicas: str = "auto",
    keep_weights: str | int = MOST_BYTES,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Check everything that can be wrong with a request before any work is done.

    Raises:
        UsageError: Unknown experiment, preset, key, device; a wrong value; no seeds.
    """
    experiment_class = catalogue.find(name)
    experiment = configuration.resolve(experiment_class, preset, dict(overrides or {}))
    if seeds is None:
        seeds = configuration.seeds_of(experiment_class, preset)
    if not (is_whole(seeds) and 1 <= seeds <= MOST_SEEDS):
        raise UsageError(
            f"seeds={seeds} is impossible: it must be 1 or more (5 or more for a "
            f"verdict) and at most {MOST_SEEDS:,}."
        )
    if replicas not in REPLICAS:
        raise unknown("way to train replicas", replicas, REPLICAS)
    check_device(device)
    return Plan(
        experiment, preset, int(seeds), device, replicas, bytes_of(keep_weights)
    )


def is_whole(number: Any) -> bool:
    """Tell whether a value is a whole number; True and False do not count as such."""
    return hasattr(number, "__index__") and not isinstance(number, bool)


def check_device(device: str) -> None:
    """Refuse a device that does not exist or that this machine lacks.

    Raises:
        UsageError: It does; the text names the devices that are here.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cpu":
        return
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here[device]:
        found = ", ".join(["cpu", *(name for name, there in here.items() if there)])
        raise UsageError(
            f"This machine has no device '{device}' that PyTorch can use. "
            f"Here: {found}."
        )


def run(
    name: str,
    *,
    preset: str = "standard",
    seeds: int | None = None,
    device: str = "cpu",
    replicas: Literal["auto", "batched", "sequential"] = "auto",
    jobs: int | Literal["auto"] = "auto",
    store: str | Path | None = None,
    executor: Executor | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
    keep_weights: str | int = MOST_BYTES,
    weights_from: str | Sequence[str] = (),
    progress: bool | None = None,
    **overrides: Any,
) -> Run:
    """Run an experiment, or what is still missing of it, and write its report.

    Args:
        name: The experiment, such as ``"deep-vs-shallow"``.
        preset: ``"quick"``, ``"standard"``, ``"paper"``, or another of the experiment's
            presets.
        seeds: Number of seeds per condition; the preset's if None.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        replicas: How the seeds of a condition are trained; ``"auto"`` takes the fastest
            way.
        jobs: Number of worker processes; 1 works in this process. ``"auto"`` works in
            this process too, and takes a worker for each further core once a run with
            several conditions lasts; on the CPU only. The numbers are the same, to the
            last bit.
        store: The folder of runs; ``NABLAB_STORE`` or ``runs`` if None.
        executor: Where to do the work; overrides ``jobs``.
        observer: Who is told of the progress; overrides ``progress``.
        fresh: Forget earlier trials of the same run first.
        keep_weights: What the weights that trainings leave may take in each trial, such
            as ``"20MB"`` or a number of bytes; 0 for none. `Run.weights` and
            `Run.model` give them back.
        weights_from: Runs to take weights from, by id, for an experiment that needs
            those of another one. If none is named, the finished run that was used last
            is taken.
        progress: Show how far the run is: a table that is redrawn in a terminal or a
            notebook, else a line when a condition ends. None shows it in a terminal or
            a notebook and nowhere else. In a terminal it goes to standard error.
        **overrides: Fields of the experiment, such as ``steps=2_000``.

    Raises:
        UsageError: Something is wrong with the request; nothing was done.
        StoreError: The store cannot be written; what was finished is kept.
    """
    with told_in_python():
        plan = make_plan(
            name,
            preset=preset,
            seeds=seeds,
            device=device,
            replicas=replicas,
            keep_weights=keep_weights,
            overrides=overrides,
        )
        _check_jobs(jobs)
        # with auto the run tells the display when workers start
        processes = 1 if jobs == "auto" else jobs
        with shown(False if observer else progress, jobs=processes) as display:
            done = run_plan(
                plan,
                store=store,
                jobs=jobs,
                executor=executor,
                observer=observer or display,
                fresh=fresh,
                weights_from=weights_from,
            )
    return replace(done, messages=tuple(map(in_python, done.messages)))


def run_plan(
    plan: Plan,
    *,
    store: str | Path | None = None,
    jobs: int | Literal["auto"] = "auto",
    executor: Executor | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
    weights_from: str | Sequence[str] = (),
) -> Run:
    """Run a checked plan; see `run`."""
    _check_jobs(jobs)
    plan = with_sources(plan, open_store(store), weights_from)
    checkpoint_seconds()  # a wrong setting is said once and before any work
    _fetch(plan.experiment)
    if jobs != 1:
        shield_resource_tracker()
    executor = executor or _executor(jobs, plan.device, observer)
    outcome: Report = execute(
        plan, open_store(store), executor=executor, observer=observer, fresh=fresh
    )
    result = Run(
        outcome.folder,
        plan.experiment,
        plan.seeds,
        tuple(outcome.messages),
        outcome.state,
        plan.keep_weights,
    )
    troubles: list[str] = []
    if len(result.records):
        result.write(on_trouble=troubles.append)
    return (
        replace(result, messages=(*result.messages, *troubles)) if troubles else result
    )


def _check_jobs(jobs: Any) -> None:
    if jobs != "auto" and not (is_whole(jobs) and jobs >= 1):
        raise UsageError(f"jobs={jobs} is impossible: it must be 1 or more, or auto.")


def _executor(
    jobs: int | Literal["auto"], device: str, observer: Observer | None
) -> Executor:
    """Choose who works.

    With ``auto``, helpers take every further core where several processes gain
    anything.
    """
    if jobs == "auto":
        count = threads.cores() if device == "cpu" else 1
        on_start = observer.helped if observer else Silent().helped
        return (
            WithHelpers(count, prepare=catalogue.scan, on_start=on_start)
            if count > 1
            else InProcess()
        )
    return ProcessPool(int(jobs), prepare=catalogue.scan) if jobs > 1 else InProcess()


def _fetch(experiment: Experiment) -> None:
    """Fetch all data to this machine before any worker starts."""
    from nablab import data

    for name in map(data.data_set_of, experiment.data_sets()):
        for split in ("train", "test"):
            if name in data.image_set_names():
                data.load(name, split=split)
            elif name in data.text_set_names():
                data.load_texts(name, split=split)
        if name in data.vector_set_names():
            data.load_vectors(f"{name}@1")  # all of the file is fetched and checked
        if name in data.weight_set_names():
            data.load_pretrained(name)


@with_trial_threads
def rehearse(
    plan: Plan, *, on_conditions: Callable[[Sequence[Condition]], None] = lambda _: None
) -> list[Estimate]:
    """Measure a few steps of every condition and estimate the whole.

    Conditions that train in one batch are measured together.

    Args:
        plan: What is to be run.
        on_conditions: Told the conditions that are measured next.

    Returns:
        One estimate for each of `Plan.groups`.

    Raises:
        CodeError: The experiment's code raised an error.
    """
    _fetch(plan.experiment)
    estimates, warm = [], set[tuple[str, int]]()
    for conditions in plan.groups:
        on_conditions(conditions)
        trials = Trials(conditions, range(plan.seeds))
        lab = Rehearsal(
            plan.experiment,
            trials,
            device=plan.device,
            replicas=plan.replicas,
            sources=plan.sources,
            warm=warm,
        )
        try:
            estimates.append(lab.rehearse())
        except NablabError:
            raise
        except (Exception, SystemExit) as error:  # an experiment may raise anything
            raise raised(
                f"The dry run of {plan.experiment.name} ({text_of(conditions)})", error
            ) from error
    return estimates
