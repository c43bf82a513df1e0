"""The whole way in one call: experiment, trials, records, verdicts, report.

This is what ``nablab.run`` and the command line share.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nablab import catalogue, configuration, threads
from nablab.errors import StoreError, UsageError, unknown
from nablab.experiment import Condition, Experiment, Records
from nablab.lab.executors import Executor, InProcess, ProcessPool, WithHelpers, with_trial_threads
from nablab.lab.runner import Observer, Plan, Report, Silent, execute
from nablab.lab.session import Estimate, Rehearsal
from nablab.lab.status import State, read_state
from nablab.lab.store import RunFolder, Store, default_root

if TYPE_CHECKING:
    import pandas as pd

    from nablab.report.view import RunView
    from nablab.verdicts import Verdict

DEFAULT_SEEDS = 5
REPLICAS = ("auto", "batched", "sequential")
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Run:
    """A run in the store and all that can be asked of it.

    Attributes:
        folder: Where it is.
        experiment: The configured experiment.
        seeds: Number of seeds per condition.
        messages: What went wrong when it was run just now.
        ended: How it ended when it was run just now; None for a run that was opened from the store.
    """

    folder: RunFolder
    experiment: Experiment
    seeds: int
    messages: tuple[str, ...] = ()
    ended: State | None = None

    @property
    def state(self) -> State:
        """``done``, ``running``, ``interrupted``, ``failed``, ``crashed`` or ``incomplete``."""
        return self.ended or read_state(self.folder)  # another process may go on with the same run

    @property
    def records(self) -> Records:
        """The finished trials."""
        return self.folder.records(self.experiment.conditions(), self.seeds)

    @property
    def verdicts(self) -> list[Verdict]:
        """The answer to every claim that the records so far allow."""
        from nablab import verdicts

        return verdicts.judge(self.experiment.active_claims(), self.records)

    @property
    def scalars(self) -> pd.DataFrame:
        """Tidy: one row per (factors, seed, metric), with columns ``metric`` and ``value``."""
        import pandas as pd

        rows = [
            {**record.condition, "seed": record.seed, "metric": metric, "value": value}
            for record in self.records
            for metric, value in record.scalars.items()
        ]
        return pd.DataFrame(rows)

    def curves(self, name: str) -> pd.DataFrame:
        """Tidy: one row per (factors, seed, step) of the curve, with columns ``steps`` and ``values``.

        Raises:
            UsageError: No trial has a curve of that name.
        """
        import pandas as pd

        records = self.records
        names = list(dict.fromkeys(curve for record in records for curve in record.curves))
        if name not in names:
            raise unknown("curve", name, names)
        parts = [
            pd.DataFrame({**r.condition, "seed": r.seed, **r.curves[name]._asdict()})
            for r in records
            if name in r.curves
        ]
        return pd.concat(parts, ignore_index=True)

    def view(self) -> RunView:
        """What a report needs to know."""
        from nablab.report.view import RunView

        status = self.folder.read_json("status.json") or {}
        config = self.folder.config()
        environment = {**(self.folder.read_json("environment.json") or {}), "seconds": status.get("seconds")}
        return RunView(
            experiment=self.experiment,
            preset=config["preset"],
            run_id=config["run_id"],
            state=self.state,
            records=self.records,
            verdicts=self.verdicts,
            environment=environment,
            notes=tuple(status.get("notes", [])),
            command=self.command,
            seeds=self.seeds,
        )

    @property
    def command(self) -> str:
        """The command that makes this run."""
        config = self.folder.config()
        settings = configuration.changes(self.experiment, config["preset"])
        words = ["nablab", "run", self.experiment.name, *settings]
        words += ["--preset", config["preset"], "--seeds", str(self.seeds)]
        if config["device"] != "cpu":
            words += ["--device", config["device"]]
        if config["replicas"] != "auto":
            words += ["--replicas", config["replicas"]]
        return shlex.join(words)

    def write(self) -> Path:
        """Write verdicts, figures and the report into the run's folder; return the report's path."""
        from nablab.report.page import write_report

        view = self.view()
        self.folder.write_json(
            "verdicts.json", {"verdicts": [verdict.to_dict() for verdict in view.verdicts]}
        )
        return write_report(view, self.folder.path)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report to ``path``, or into the run's folder; return where it is."""
        from nablab.atomic import write_bytes
        from nablab.report.page import render

        if path is None:
            return self.write()
        write_bytes(Path(path), render(self.view()).encode())
        return Path(path)


def make_plan(
    name: str,
    *,
    preset: str = "standard",
    seeds: int | None = None,
    device: str = "cpu",
    replicas: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Check everything that can be wrong with a request before any work is done.

    Raises:
        UsageError: Unknown experiment, preset, key, device; a wrong value; no seeds.
    """
    experiment_class = catalogue.find(name)
    experiment = configuration.resolve(experiment_class, preset, dict(overrides or {}))
    if seeds is None:
        seeds = int(experiment_class.presets[preset].get("seeds", DEFAULT_SEEDS))
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}: it must be 1 or more (5 or more for a verdict).")
    if replicas not in REPLICAS:
        raise unknown("way to train replicas", replicas, REPLICAS)
    check_device(device)
    return Plan(experiment, preset, seeds, device, replicas)


def check_device(device: str) -> None:
    """Refuse a device that does not exist or is not here.

    Raises:
        UsageError: With the devices that are here.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cpu":
        return
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here[device]:
        found = ", ".join(["cpu", *(name for name, there in here.items() if there)])
        raise UsageError(f"This machine has no device '{device}' that PyTorch can use. Here: {found}.")


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
    **overrides: Any,
) -> Run:
    """Run an experiment, or what is still missing of it, and write its report.

    Args:
        name: The experiment, such as ``"deep-vs-shallow"``.
        preset: ``"quick"``, ``"standard"``, ``"paper"``, or another of the experiment's presets.
        seeds: Number of seeds per condition; the preset's if None.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        replicas: How the seeds of a condition are trained; ``"auto"`` takes the fastest way.
        jobs: Number of worker processes; 1 works in this process. ``"auto"`` works in this process too, and
            takes a worker for each further core once a run with several conditions lasts; on the CPU only.
            The numbers are the same, to the last bit.
        store: The folder of runs; ``NABLAB_STORE`` or ``runs`` if None.
        executor: Where to do the work; overrides ``jobs``.
        observer: Who is told of the progress.
        fresh: Forget earlier trials of the same run first.
        **overrides: Fields of the experiment, such as ``steps=2_000``.

    Raises:
        UsageError: Something is wrong with the request; nothing was done.
        StoreError: The store cannot be written; what was finished is kept.
    """
    plan = make_plan(name, preset=preset, seeds=seeds, device=device, replicas=replicas, overrides=overrides)
    return run_plan(plan, store=store, jobs=jobs, executor=executor, observer=observer, fresh=fresh)


def run_plan(
    plan: Plan,
    *,
    store: str | Path | None = None,
    jobs: int | Literal["auto"] = "auto",
    executor: Executor | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
) -> Run:
    """Run a checked plan; see `run`."""
    if jobs != "auto" and jobs < 1:
        raise UsageError(f"--jobs is {jobs}: it must be 1 or more, or auto.")
    _fetch(plan.experiment)
    executor = executor or _executor(jobs, plan.device, observer)
    outcome: Report = execute(plan, open_store(store), executor=executor, observer=observer, fresh=fresh)
    result = Run(outcome.folder, plan.experiment, plan.seeds, tuple(outcome.messages), outcome.state)
    if len(result.records):
        result.write()
    return result


def _executor(jobs: int | Literal["auto"], device: str, observer: Observer | None) -> Executor:
    """Who works: with ``auto`` helpers for every further core, where several processes gain anything."""
    if jobs == "auto":
        count = threads.cores() if device == "cpu" else 1
        on_start = observer.helped if observer else Silent().helped
        return WithHelpers(count, prepare=catalogue.scan, on_start=on_start) if count > 1 else InProcess()
    return ProcessPool(jobs, prepare=catalogue.scan) if jobs > 1 else InProcess()


def _fetch(experiment: Experiment) -> None:
    """Have all data on this machine before any worker starts."""
    from nablab import data

    for name in map(data.data_set_of, experiment.data_sets()):
        data.check_image_set(name)
        if name in data.image_set_names():
            for split in ("train", "test"):
                data.load(name, split=split)


def open_store(root: str | Path | None = None) -> Store:
    """The store at ``root``, or the default one."""
    return Store(Path(root) if root is not None else default_root())


def open_run(reference: str, store: str | Path | None = None) -> Run:
    """Open a run by its id, the beginning of its id, its experiment (the latest run), or its folder.

    Raises:
        UsageError: There is no such run.
        StoreError: It was written by a newer nablab, or its experiment has changed since.
    """
    folder = open_store(store).find(reference)
    config = folder.config()
    experiment_class = catalogue.find(config["experiment"])
    try:
        experiment = configuration.resolve(
            experiment_class, config["preset"], config["configuration"], validate=False
        )
    except UsageError as error:
        raise StoreError(
            f"The run in {folder.path} was made with an earlier version of {config['experiment']}: {error}"
        ) from error
    status = folder.read_json("status.json") or {}
    return Run(folder, experiment, int(status.get("seeds", 0)) or _seeds_there(folder))


@with_trial_threads
def rehearse(plan: Plan, *, on_condition: Callable[[Condition], None] = lambda _: None) -> list[Estimate]:
    """Measure a few steps of every condition and estimate the whole; one estimate per condition.

    ``on_condition`` hears of every condition before it is measured.
    """
    _fetch(plan.experiment)
    estimates = []
    for condition in plan.conditions:
        on_condition(condition)
        lab = Rehearsal(
            plan.experiment, condition, range(plan.seeds), device=plan.device, replicas=plan.replicas
        )
        estimates.append(lab.rehearse())
    return estimates


def _seeds_there(folder: RunFolder) -> int:
    from nablab.experiment import Record

    return max((trial.seed + 1 for trial in folder.trials() if isinstance(trial, Record)), default=0)
