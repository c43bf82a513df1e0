"""The store: files are the truth.

::

    <root>/<experiment>/<run id>/
        config.json        what was asked for; its hash is the run id
        status.json        state, process, heartbeat
        trials/<key>/      trial.json (written last: that says "done"), arrays.npz,
                           and the weights that were kept
        provenance/        per condition: where and how long its trials were trained,
                           and their notes
        checkpoints/       of unfinished trainings and loops; gone when the condition's
                           trials are done
        progress/          one small file per condition in training, for whoever watches
        locks/             who works on which condition
        failures/          the traceback of a condition that raised an error
        verdicts.json, figures/, report.html
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nablab.contract import Condition, Experiment, Level, Record, Records
from nablab.errors import StoreError, UsageError
from nablab.files.atomic import remove_leftovers
from nablab.importing import fresh_imports
from nablab.lab import contents, files, reading, trials
from nablab.lab.trials import CorruptTrial

FORMAT = 1
LONGEST_NAME = 200  # characters of a name that a message repeats
ID_DIGITS = 10
# fields of config.json that its hash leaves out
NO_IDENTITY = ("format", "run_id", "preset")
# begins the name of a source that is a run, before the name of its experiment
WEIGHTS_OF = "weights of "
# what file systems keep at their root, which only root may read
SYSTEM = ("lost+found",)


def _own_data(experiment: Experiment) -> dict[str, str]:
    """Return hashes of the user's own data among what the experiment reads."""
    from nablab.data import data_set_of, source_hash

    hashes = {
        name: source_hash(name) for name in map(data_set_of, experiment.data_sets())
    }
    return {name: value for name, value in hashes.items() if value}


def _own_code(experiment: Experiment) -> dict[str, str]:
    """Return the hash of the user's code that defines the experiment.

    Nablab's own experiments have a ``version`` instead.
    """
    code = fresh_imports.code_of_class(type(experiment))
    return {"the experiment's code": code.sha256} if code else {}


@dataclass(frozen=True)
class Identity:
    """Everything that decides a run's numbers, and so its id.

    Attributes:
        experiment: Name of the experiment.
        version: The experiment's version.
        configuration: The resolved fields as plain JSON types.
        device: ``cpu``, ``cuda`` or ``mps``.
        replicas: ``auto``, ``batched`` or ``sequential``.
        sources: Hashes of the user's files that take part, and ids of the runs that
            weights are taken from.
    """

    experiment: str
    version: int
    configuration: Mapping[str, Any]
    device: str = "cpu"
    replicas: str = "auto"
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        *,
        device: str = "cpu",
        replicas: str = "auto",
        weights_from: Mapping[str, str] | None = None,
    ) -> Identity:
        """Return the identity of a configured experiment on a device.

        Args:
            experiment: The configured experiment.
            device: ``cpu``, ``cuda`` or ``mps``.
            replicas: ``auto``, ``batched`` or ``sequential``.
            weights_from: The ids of the runs that it takes weights from, by their
                experiments.
        """
        runs = {
            f"{WEIGHTS_OF}{name}": run_id
            for name, run_id in (weights_from or {}).items()
        }
        return cls(
            experiment.name,
            experiment.version,
            experiment.configuration(),
            device,
            replicas,
            {
                **experiment.sources(),
                **_own_data(experiment),
                **_own_code(experiment),
                **runs,
            },
        )

    @property
    def run_id(self) -> str:
        """The first hexadecimal digits of the hash of everything here."""
        return files.seal(self.to_dict())[:ID_DIGITS]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {
            "experiment": self.experiment,
            "version": self.version,
            "configuration": dict(self.configuration),
            "device": self.device,
            "replicas": self.replicas,
            "sources": dict(self.sources),
        }


class Store:
    """A folder of runs."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def create(self, identity: Identity, *, preset: str) -> RunFolder:
        """Open the folder of this identity, making it if absent.

        Raises:
            StoreError: The folder cannot be written, is damaged or another run's, or a
                newer nablab wrote it.
        """
        folder = RunFolder(self.root / identity.experiment / identity.run_id)
        path = folder.path / "config.json"
        if os.path.lexists(path):
            config = folder.config()  # refuses a newer format
            if config.run_id != identity.run_id:
                reason = f"it is of the run {config.run_id}, not of {identity.run_id}"
                raise reading.damaged(path, reason, contents.Config)
            return folder
        content = {
            "format": FORMAT,
            "run_id": identity.run_id,
            "preset": preset,
            **identity.to_dict(),
        }
        folder.write_json("config.json", content)
        return folder

    def runs(self) -> list[RunFolder]:
        """Return all runs here, the latest used first.

        Raises:
            StoreError: The store or a folder in it cannot be read.
        """
        found = [
            RunFolder(Path(run))
            for experiment in _folders(self.root)
            for run in _folders(experiment)
            if os.path.lexists(os.path.join(run, "config.json"))  # noqa: PTH118 - thousands of runs
            or os.path.lexists(os.path.join(run, "trials"))  # noqa: PTH118
        ]
        return sorted(found, key=lambda run: run.changed, reverse=True)

    def find(self, reference: str) -> RunFolder:
        """Find the run that a user means.

        Args:
            reference: A run id or its beginning, an experiment (its latest run is
                meant), or a folder.

        Raises:
            UsageError: Nothing or more than one run fits.
            StoreError: The store cannot be read.
        """
        if os.path.isfile(os.path.join(reference, "config.json")):  # noqa: PTH113, PTH118 - raises for no text
            return RunFolder(Path(reference))
        runs = self.runs()
        by_experiment = [run for run in runs if run.path.parent.name == reference]
        if by_experiment:
            return by_experiment[0]
        prefix = reference.rsplit("/", 1)[-1]
        fitting = [run for run in runs if run.path.name.startswith(prefix) and prefix]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(run.path.name for run in fitting)
            raise UsageError(
                f"'{reference}' fits several runs: {names}. Give more of the id."
            )
        listed = ", ".join(
            f"{run.path.parent.name}/{run.path.name}" for run in runs[:8]
        )
        remedy = (
            f"Runs here: {listed}."
            if runs
            else "There are no runs here yet: 'nablab run deep-vs-shallow' makes one."
        )
        shown = (
            reference
            if len(reference) <= LONGEST_NAME
            else f"{reference[:LONGEST_NAME]}…"
        )
        raise UsageError(f"There is no run '{shown}' in {self.root}. {remedy}")


def _folders(parent: Path | str) -> list[str]:
    """Return the folders in a folder, by name; none if it does not exist.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        with os.scandir(parent) as entries:
            return sorted(
                entry.path
                for entry in entries
                if entry.is_dir() and entry.name not in SYSTEM
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"The store cannot be read: {error.strerror} ({parent}). "
            "Choose a folder that you may read with --store FOLDER or NABLAB_STORE."
        ) from error


def _read_provenance(path: Path) -> contents.Provenance | None:
    return reading.read(path, contents.Provenance)


class RunFolder:
    """One run on the disk. Reading never changes it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # What was asked for

    def config(self) -> contents.Config:
        """Return the content of ``config.json``.

        Raises:
            StoreError: It is missing, damaged, or belongs to another id than it says;
                or a newer nablab wrote it.
        """
        path = self.path / "config.json"
        try:
            value = reading.read_object(path)
            if value is None:
                raise StoreError(
                    f"{path} is missing: this folder is not a run, or the file was "
                    "lost. The run's command writes it again and keeps every trial."
                )
            written = value.get("format")
            if isinstance(written, int) and written > FORMAT:
                raise StoreError(
                    f"The run in {self.path} was written by a newer nablab (store "
                    f"format {written}; this one knows up to {FORMAT}). Upgrade "
                    "nablab, or choose another folder with --store."
                )
            body = reading.unsealed(value)
            config: contents.Config = reading.fit(body, contents.Config)
            # Whatever an identity holds is under the hash, including what this version
            # does not know.
            identity = {
                name: part for name, part in body.items() if name not in NO_IDENTITY
            }
            if files.seal(identity)[:ID_DIGITS] != config.run_id:
                raise reading.Misfit(
                    f"its settings are not those of the run {config.run_id}"
                )
        except reading.Misfit as error:
            raise reading.damaged(path, error, contents.Config) from error
        return config

    @functools.cached_property
    def run_id(self) -> str:
        """The id that ``config.json`` says, read once."""
        return self.config().run_id

    def status(self) -> contents.Status | None:
        """Return the content of ``status.json``, or None if the file is absent.

        Raises:
            Damaged: It cannot be read or does not fit.
        """
        return reading.read(self.path / "status.json", contents.Status)

    def environment(self) -> Mapping[str, Level]:
        """Return the facts in ``environment.json``, which earlier versions wrote.

        There are none if the file is absent.

        Raises:
            Damaged: It cannot be read or does not fit.
        """
        path = self.path / "environment.json"
        try:
            body = reading.unsealed(reading.read_object(path) or {})
            found: contents.Environment = reading.fit(
                {"facts": body}, contents.Environment
            )
        except reading.Misfit as error:
            raise reading.damaged(path, error, contents.Environment) from error
        return found.facts

    def verdicts(self) -> contents.Verdicts | None:
        """Return what ``verdicts.json`` says of each claim, or None if it is absent.

        Raises:
            Damaged: It cannot be read or does not fit.
        """
        return reading.read(self.path / "verdicts.json", contents.Verdicts)

    def damage(self) -> list[str]:
        """Return a sentence for every damaged file.

        Trials are not looked at here, nor is ``config.json``, which a report needs.
        """
        found = []
        made = sorted((self.path / "provenance").glob("*.json"))
        looks: list[Callable[[], object]] = [self.status, self.environment]
        looks += [functools.partial(_read_provenance, path) for path in made]
        for look in looks:
            try:
                look()
            except reading.Damaged as error:
                found.append(str(error))
        return found

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the fields of a JSON file of the run; None if absent or damaged."""
        try:
            value = reading.read_object(self.path / name)
            return None if value is None else reading.unsealed(value)
        except reading.Misfit:
            return None

    def write_json(
        self, name: str, value: Mapping[str, Any], *, durable: bool = True
    ) -> None:
        """Write a JSON file of the run atomically, with its checksum."""
        files.write_json(self.path / name, files.sealed(value), durable=durable)

    @property
    def changed(self) -> float:
        """When the status last changed, in seconds since the epoch."""
        try:
            return (self.path / "status.json").stat().st_mtime
        except OSError:
            return 0.0

    # Trials

    @staticmethod
    def condition_key(condition: Condition) -> str:
        """See `nablab.lab.trials.condition_key`."""
        return trials.condition_key(condition)

    def trial_path(self, condition: Condition, seed: int) -> Path:
        """Return the folder of one trial."""
        return self.path / "trials" / f"{self.condition_key(condition)}-s{seed}"

    def write_trial(self, record: Record) -> None:
        """Keep a finished trial.

        Arrays and weights are written first, then ``trial.json``, which makes it count.
        """
        trials.write(
            self.trial_path(record.condition, record.seed), record, run_id=self.run_id
        )

    def read_trial(self, condition: Condition, seed: int) -> Record | None:
        """Return one trial, or None if it was not finished.

        Raises:
            CorruptTrial: Its files are damaged or another trial's.
            StoreError: A newer nablab wrote it.
        """
        record = trials.read(self.trial_path(condition, seed), self.run_id)
        return record and replace(record, condition=condition)

    def trials(self) -> Iterator[Record | CorruptTrial]:
        """Yield all finished trials in the folder.

        For a damaged one it yields the error that says what is wrong.

        Raises:
            StoreError: The folder cannot be read, or a newer nablab wrote a trial.
        """
        for folder in _folders(self.path / "trials"):
            try:
                record = trials.read(Path(folder), self.run_id)
            except CorruptTrial as damage:
                yield damage
            else:
                if record is not None:
                    yield record

    def count_trials(self) -> tuple[int, list[CorruptTrial]]:
        """Count the trials that are finished and seem whole; name what is damaged.

        This reads no arrays.

        Raises:
            StoreError: The folder or ``config.json`` cannot be read, or a newer nablab
                wrote a trial.
        """
        whole, damage = 0, []
        for folder in _folders(self.path / "trials"):
            try:
                whole += trials.check(Path(folder), self.run_id)
            except CorruptTrial as error:
                damage.append(error)
        return whole, damage

    def records(
        self, conditions: Sequence[Condition], seeds: int | None = None
    ) -> Records:
        """Return the finished, undamaged trials of these conditions; see `survey`."""
        return self.survey(conditions, seeds)[0]

    def survey(
        self, conditions: Sequence[Condition], seeds: int | None = None
    ) -> tuple[Records, list[CorruptTrial]]:
        """Read the trials of these conditions, and find what is damaged.

        Args:
            conditions: What the experiment lists.
            seeds: Only seeds below this number; None for all.

        Returns:
            The finished trials, in the order of the conditions, then by seed; and what
            is damaged.
        """
        order = {
            self.condition_key(condition): place
            for place, condition in enumerate(conditions)
        }
        found: list[tuple[int, int, Record]] = []
        damage = []
        for trial in self.trials():
            if isinstance(trial, CorruptTrial):
                damage.append(trial)
                continue
            place = order.get(self.condition_key(trial.condition))
            if place is not None and (seeds is None or trial.seed < seeds):
                # The levels are taken from the experiment: JSON lacks infinity.
                found.append(
                    (place, trial.seed, replace(trial, condition=conditions[place]))
                )
        return Records(
            record for _, _, record in sorted(found, key=lambda one: one[:2])
        ), damage

    # Work in progress

    def checkpoint_path(self, condition: Condition, part: int) -> Path:
        """Return the checkpoint of the ``part``-th training within a condition."""
        return (
            self.path
            / "checkpoints"
            / f"{self.condition_key(condition)}-{part}.safetensors"
        )

    def checkpoints(self, condition: Condition) -> list[Path]:
        """Return the checkpoints of a condition and the file that names their seeds."""
        key, folder = (
            glob.escape(self.condition_key(condition)),
            self.path / "checkpoints",
        )
        return sorted(
            [*folder.glob(f"{key}-*.safetensors"), *folder.glob(f"{key}.json")]
        )

    def remove_leftovers(self, condition: Condition) -> None:
        """Remove what a killed process was writing for this condition.

        Only the holder of its lock may do this.
        """
        key = self.condition_key(condition)
        for folder in self.path.glob(f"trials/{glob.escape(key)}-s*"):
            remove_leftovers(folder)
        for name in ("checkpoints", "progress", "failures"):
            remove_leftovers(self.path / name, f"{glob.escape(key)}*")

    def lock_path(self, condition: Condition) -> Path:
        """Return the lock file of a condition."""
        return self.path / "locks" / f"{self.condition_key(condition)}.lock"

    def progress_path(self, condition: Condition) -> Path:
        """Return the progress file of a condition."""
        return self.path / "progress" / f"{self.condition_key(condition)}.json"

    def failure_path(self, condition: Condition) -> Path:
        """Return the failure file of a condition."""
        return self.path / "failures" / f"{self.condition_key(condition)}.json"


def default_root() -> Path:
    """Return where runs go: ``NABLAB_STORE``, else ``runs`` in the current folder."""
    return Path(os.environ.get("NABLAB_STORE") or "runs")
