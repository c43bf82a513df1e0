"""The store: files are the truth.

::

    <root>/<experiment>/<run id>/
        config.json        what was asked for; its hash is the run id
        environment.json   versions, device, threads, git state
        status.json        state, process, heartbeat
        trials/<key>/      trial.json (written last: its presence says "done") and arrays.npz
        checkpoints/       one file per condition in training; gone when its trials are done
        progress/          one small file per condition in training, for whoever watches
        locks/             who works on which condition
        failures/          the traceback of a condition that raised an error
        verdicts.json, figures/, report.html
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablab import user_code
from nablab.atomic import remove_leftovers, write_bytes
from nablab.errors import StoreError, UsageError
from nablab.experiment import Condition, Curve, Experiment, Record, Records
from nablab.lab import files

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 1


class CorruptTrial(Exception):
    """A trial's files do not agree with their checksums, or cannot be read."""


def _own_data(experiment: Experiment) -> dict[str, str]:
    """Hashes of the user's own data among what the experiment reads."""
    from nablab.data import data_set_of, source_hash

    hashes = {name: source_hash(name) for name in map(data_set_of, experiment.data_sets())}
    return {name: value for name, value in hashes.items() if value}


def _own_code(experiment: Experiment) -> dict[str, str]:
    """The hash of the user's code that defines the experiment; nablab's own have a ``version``."""
    code = user_code.code_of_class(type(experiment))
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
        sources: Hashes of the user's files that take part.
    """

    experiment: str
    version: int
    configuration: Mapping[str, Any]
    device: str = "cpu"
    replicas: str = "auto"
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, *, device: str = "cpu", replicas: str = "auto") -> Identity:
        """The identity of a configured experiment on a device."""
        return cls(
            experiment.name,
            experiment.version,
            experiment.configuration(),
            device,
            replicas,
            {**experiment.sources(), **_own_data(experiment), **_own_code(experiment)},
        )

    @property
    def run_id(self) -> str:
        """Ten hexadecimal digits of the hash of everything here."""
        return files.sha256(files.canonical_json(self.to_dict()))[:10]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
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
            StoreError: The folder cannot be written, or a newer nablab wrote it.
        """
        folder = RunFolder(self.root / identity.experiment / identity.run_id)
        if (folder.path / "config.json").exists():
            folder.config()  # refuses a newer format
            return folder
        content = {"format": FORMAT, "run_id": identity.run_id, "preset": preset, **identity.to_dict()}
        files.write_json(folder.path / "config.json", content)
        return folder

    def runs(self) -> list[RunFolder]:
        """All runs here, the latest used first."""
        found = [RunFolder(path.parent) for path in self.root.glob("*/*/config.json")]
        return sorted(found, key=lambda run: run.changed, reverse=True)

    def find(self, reference: str) -> RunFolder:
        """The run that a user means: a run id or its beginning, an experiment (its latest run), or a folder.

        Raises:
            UsageError: Nothing or more than one run fits.
        """
        if (Path(reference) / "config.json").is_file():
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
            raise UsageError(f"'{reference}' fits several runs: {names}. Give more of the id.")
        listed = ", ".join(f"{run.path.parent.name}/{run.path.name}" for run in runs[:8])
        remedy = (
            f"Runs here: {listed}."
            if runs
            else "There are no runs here yet: 'nablab run deep-vs-shallow' makes one."
        )
        raise UsageError(f"There is no run '{reference}' in {self.root}. {remedy}")


class RunFolder:
    """One run on the disk. Reading never changes it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # What was asked for

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            StoreError: It cannot be read, or a newer nablab wrote it.
        """
        config = self.read_json("config.json")
        if config is None:
            raise StoreError(f"{self.path / 'config.json'} is missing or damaged: this folder is no run.")
        if config.get("format", 0) > FORMAT:
            raise StoreError(
                f"The run in {self.path} was written by a newer nablab (store format {config['format']}; "
                f"this one knows up to {FORMAT}). Upgrade nablab, or choose another folder with --store."
            )
        return config

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, or None if it is absent or damaged."""
        try:
            value = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write_json(self, name: str, value: Any, *, durable: bool = True) -> None:
        """Write a JSON file of the run atomically."""
        files.write_json(self.path / name, value, durable=durable)

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
        """A name for files: readable first, unique by the hash at its end."""
        digest = files.sha256(files.canonical_json(dict(condition)))[:8]
        return f"{condition.slug}-{digest}"

    def trial_path(self, condition: Condition, seed: int) -> Path:
        """The folder of one trial."""
        return self.path / "trials" / f"{self.condition_key(condition)}-s{seed}"

    def write_trial(self, record: Record) -> None:
        """Keep a finished trial: its arrays first, then ``trial.json``, which makes it count."""
        arrays = {f"array.{name}": values for name, values in record.arrays.items()}
        for name, curve in record.curves.items():
            arrays[f"curve.{name}.steps"] = curve.steps
            arrays[f"curve.{name}.values"] = curve.values
        content = files.npz_bytes(arrays)
        body = {
            "format": FORMAT,
            "condition": dict(record.condition),
            "seed": record.seed,
            "scalars": {name: float(value) for name, value in record.scalars.items()},
            "notes": dict(record.notes),
            "arrays_sha256": files.sha256(content),
        }
        body["sha256"] = files.sha256(files.canonical_json(body))
        folder = self.trial_path(record.condition, record.seed)
        write_bytes(folder / "arrays.npz", content)
        files.write_json(folder / "trial.json", body)

    def read_trial(self, condition: Condition, seed: int) -> Record | None:
        """One trial, or None if it was not finished.

        Raises:
            CorruptTrial: Its files are damaged.
        """
        folder = self.trial_path(condition, seed)
        if not (folder / "trial.json").exists():
            return None
        return read_trial_folder(folder)

    def trials(self) -> Iterator[Record | CorruptTrial]:
        """All finished trials in the folder, damaged ones as the error that says what is wrong."""
        for path in sorted((self.path / "trials").glob("*/trial.json")):
            try:
                yield read_trial_folder(path.parent)
            except CorruptTrial as damage:
                yield damage

    def records(self, conditions: Sequence[Condition], seeds: int | None = None) -> Records:
        """The finished, undamaged trials of these conditions, in their order, then by seed.

        Args:
            conditions: What the experiment lists.
            seeds: Only seeds below this number; None for all.
        """
        order = {condition: place for place, condition in enumerate(conditions)}
        found = [
            trial
            for trial in self.trials()
            if isinstance(trial, Record)
            and trial.condition in order
            and (seeds is None or trial.seed < seeds)
        ]
        return Records(sorted(found, key=lambda record: (order[record.condition], record.seed)))

    # Work in progress

    def checkpoint_path(self, condition: Condition, part: int) -> Path:
        """The checkpoint of the ``part``-th training within a condition."""
        return self.path / "checkpoints" / f"{self.condition_key(condition)}-{part}.safetensors"

    def checkpoints(self, condition: Condition) -> list[Path]:
        """The checkpoints there are of a condition, and the file that says which seeds they are of."""
        key, folder = glob.escape(self.condition_key(condition)), self.path / "checkpoints"
        return sorted([*folder.glob(f"{key}-*.safetensors"), *folder.glob(f"{key}.json")])

    def remove_leftovers(self, condition: Condition) -> None:
        """Remove what a killed process was writing for this condition; only for who holds its lock."""
        key = self.condition_key(condition)
        for folder in self.path.glob(f"trials/{glob.escape(key)}-s*"):
            remove_leftovers(folder)
        for name in ("checkpoints", "progress", "failures"):
            remove_leftovers(self.path / name, f"{glob.escape(key)}*")

    def lock_path(self, condition: Condition) -> Path:
        """The lock file of a condition."""
        return self.path / "locks" / f"{self.condition_key(condition)}.lock"

    def progress_path(self, condition: Condition) -> Path:
        """The progress file of a condition."""
        return self.path / "progress" / f"{self.condition_key(condition)}.json"

    def failure_path(self, condition: Condition) -> Path:
        """The failure file of a condition."""
        return self.path / "failures" / f"{self.condition_key(condition)}.json"


class StoredArrays(Mapping[str, Any]):
    """The arrays or curves of a trial, read from its npz file when first asked for."""

    def __init__(self, path: Path, digest: str, prefix: str, build: Any) -> None:
        self._path, self._digest, self._prefix, self._build = path, digest, prefix, build
        self._loaded: dict[str, Any] | None = None

    def _arrays(self) -> dict[str, Any]:
        if self._loaded is None:
            raw = load_arrays(self._path, self._digest)
            mine = {k.removeprefix(self._prefix): v for k, v in raw.items() if k.startswith(self._prefix)}
            self._loaded = self._build(mine)
        return self._loaded

    def __getitem__(self, name: str) -> Any:
        return self._arrays()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays())

    def __len__(self) -> int:
        return len(self._arrays())


def load_arrays(path: Path, digest: str) -> dict[str, npt.NDArray[Any]]:
    """Read an npz file, without pickle, after checking its hash.

    Raises:
        CorruptTrial: The file is absent, or is not what was written.
    """
    import numpy as np

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptTrial(f"{path} cannot be read: {error.strerror}") from error
    if files.sha256(content) != digest:
        raise CorruptTrial(f"{path} is damaged: its checksum is wrong")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def read_trial_folder(folder: Path) -> Record:
    """Read a trial's folder and check both of its files.

    Raises:
        CorruptTrial: A file is damaged or absent.
    """
    path = folder / "trial.json"
    try:
        body = json.loads(path.read_bytes())
        claimed = body.pop("sha256")
        whole = claimed == files.sha256(files.canonical_json(body))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptTrial(f"{path} is damaged: it is no readable trial") from error
    if not whole:
        raise CorruptTrial(f"{path} is damaged: its checksum is wrong")
    arrays_path, digest = folder / "arrays.npz", body["arrays_sha256"]
    load_arrays(arrays_path, digest)
    return Record(
        condition=Condition(**body["condition"]),
        seed=body["seed"],
        scalars={name: float(value) for name, value in body["scalars"].items()},
        notes=body["notes"],
        curves=StoredArrays(arrays_path, digest, "curve.", _curves),
        arrays=StoredArrays(arrays_path, digest, "array.", dict),
    )


def _curves(arrays: Mapping[str, Any]) -> dict[str, Curve]:
    names = [name.removesuffix(".steps") for name in arrays if name.endswith(".steps")]
    return {name: Curve(arrays[f"{name}.steps"], arrays[f"{name}.values"]) for name in names}


def default_root() -> Path:
    """Where runs go: ``NABLAB_STORE``, else ``runs`` in the current folder."""
    return Path(os.environ.get("NABLAB_STORE") or "runs")
