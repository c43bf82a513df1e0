"""A trial on the disk.

It consists of ``trial.json``, which is written last and says "done", ``arrays.npz``,
and weights.

A trial is trusted if all files have the bytes that were written, and if it lies where
it belongs: in the folder of its condition and seed, in the run that it names.
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablab.contract import Condition, Curve, Record
from nablab.errors import StoreError
from nablab.files.atomic import write_bytes
from nablab.lab import contents, files, reading
from nablab.lab.kept_weights import Packed, check_name, pack

if TYPE_CHECKING:
    import numpy.typing as npt

TRIAL_FORMAT = 2  # since 2 a trial names its run
# Arrays and curves of the trials that were asked for last: a drawing goes through some
# of them several times, and those of thousands of trials are gigabytes.
TRIALS_KEPT = 32


class CorruptTrial(reading.Damaged):
    """A trial's files disagree with their checksums or place, or cannot be read."""


def condition_key(condition: Condition) -> str:
    """Make a name for files: readable first, unique by the hash at its end."""
    digest = files.sha256(files.canonical_json(dict(condition)))[:8]
    return f"{condition.slug}-{digest}"


def write(folder: Path, record: Record, *, run_id: str) -> None:
    """Keep a finished trial in its folder.

    Arrays and weights are written first, then ``trial.json``, which makes it count.
    """
    arrays = {f"array.{name}": values for name, values in record.arrays.items()}
    for name, curve in record.curves.items():
        arrays[f"curve.{name}.steps"] = curve.steps
        arrays[f"curve.{name}.values"] = curve.values
    content = files.npz_bytes(arrays)
    body = {
        "format": TRIAL_FORMAT,
        "run": run_id,
        "condition": dict(record.condition),
        "seed": record.seed,
        "scalars": {name: float(value) for name, value in record.scalars.items()},
        "notes": dict(record.notes),
        "arrays_bytes": len(content),
        "arrays_sha256": files.sha256(content),
    }
    write_bytes(folder / "arrays.npz", content)
    weights = _write_weights(folder, record)
    if weights:
        body["weights"] = weights
    if record.weights_left_out:
        body["weights_left_out"] = dict(record.weights_left_out)
    files.write_json(folder / "trial.json", files.sealed(body))
    named = {facts["file"] for facts in weights.values()}
    # files of the damaged trial that this one replaces
    for path in folder.glob("weights-*.safetensors"):
        if path.name not in named:
            path.unlink(missing_ok=True)


def _write_weights(folder: Path, record: Record) -> dict[str, dict[str, Any]]:
    """Write each of the weights once.

    Returns:
        What ``trial.json`` says of them, by name.
    """
    found: dict[str, dict[str, Any]] = {}
    by_content: dict[str, dict[str, Any]] = {}
    for name, tensors in record.weights.items():
        content = (tensors if isinstance(tensors, Packed) else pack(tensors)).content
        digest = files.sha256(content)
        if digest not in by_content:
            file = f"weights-{check_name(name)}.safetensors"
            write_bytes(folder / file, content)
            by_content[digest] = {"file": file, "bytes": len(content), "sha256": digest}
        found[name] = by_content[digest]
    return found


class StoredWeights(Mapping[str, Packed]):
    """The weights of a trial by name; a file is read when its name is asked for.

    Raises:
        CorruptTrial: A file has been damaged since the trial was read.
    """

    def __init__(self, folder: Path, facts: Mapping[str, contents.Weights]) -> None:
        self._folder, self._facts = folder, facts

    def __getitem__(self, name: str) -> Packed:
        facts = self._facts[name]
        return Packed(checked_bytes(self._folder / facts.file, facts.sha256))

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


class StoredArrays(Mapping[str, Any]):
    """The arrays or curves of a trial, read from its npz file when they are asked for.

    Raises:
        CorruptTrial: The file has been damaged since the trial was read.
    """

    def __init__(self, path: Path, digest: str, prefix: str, build: Any) -> None:
        self._path, self._digest, self._prefix, self._build = (
            path,
            digest,
            prefix,
            build,
        )

    def _arrays(self) -> dict[str, Any]:
        raw = load_arrays(self._path, self._digest)
        mine = {
            k.removeprefix(self._prefix): v
            for k, v in raw.items()
            if k.startswith(self._prefix)
        }
        try:
            found: dict[str, Any] = self._build(mine)
        except KeyError as error:
            raise CorruptTrial(f"{self._path} is damaged: it lacks {error}.") from error
        return found

    def __getitem__(self, name: str) -> Any:
        return self._arrays()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays())

    def __len__(self) -> int:
        return len(self._arrays())


def checked_bytes(path: Path, digest: str) -> bytes:
    """Return the bytes of a trial's arrays or weights, after checking the file's hash.

    Raises:
        CorruptTrial: The file is absent, or is not what was written.
    """
    try:
        content = reading.read_bytes(path)
    except reading.Misfit as error:
        raise CorruptTrial(f"{path} is damaged: {error}.") from error
    if content is None:
        raise CorruptTrial(f"{path} is missing.")
    if files.sha256(content) != digest:
        raise CorruptTrial(f"{path} is damaged: its checksum is wrong.")
    return content


@functools.lru_cache(maxsize=TRIALS_KEPT)
def load_arrays(path: Path, digest: str) -> dict[str, npt.NDArray[Any]]:
    """Read an npz file, without pickle, after checking its hash.

    Raises:
        CorruptTrial: The file is absent, or is not what was written.
    """
    import numpy as np

    content = checked_bytes(path, digest)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise CorruptTrial(
            f"{path} is damaged: it holds no arrays ({error})."
        ) from error


def read_facts(folder: Path, run_id: str) -> contents.Trial | None:
    """Read ``trial.json`` in a trial's folder and check that it belongs there.

    Args:
        folder: The trial's folder, whose name says condition and seed.
        run_id: The run that it lies in.

    Returns:
        What it says; None if the trial is not finished.

    Raises:
        CorruptTrial: It is damaged or another trial's.
        StoreError: A newer nablab wrote it.
    """
    path = folder / "trial.json"
    try:
        value = reading.read_object(path)
        if value is None:
            return None
        if files.SEAL not in value:
            raise reading.Misfit(f"'{files.SEAL}' is missing")
        body = reading.unsealed(value)
        if isinstance(body.get("format"), int) and body["format"] > TRIAL_FORMAT:
            raise StoreError(
                f"{path} was written by a newer nablab (trial format {body['format']}; "
                f"this one knows up to {TRIAL_FORMAT}). Upgrade nablab, or choose "
                "another folder with --store."
            )
        trial: contents.Trial = reading.fit(body, contents.Trial)
        _check_place(trial, folder, run_id)
    except reading.Misfit as error:
        raise CorruptTrial(f"{path} is damaged: {error}.") from error
    return trial


def _check_place(trial: contents.Trial, folder: Path, run_id: str) -> None:
    """Refuse a folder that was copied or renamed: it must not pass as another trial.

    Raises:
        Misfit: It is not the folder of this trial, or not in its run.
    """
    if "self" in trial.condition:
        raise reading.Misfit("a factor cannot be called 'self'")
    condition = Condition(**trial.condition)
    if folder.name != f"{condition_key(condition)}-s{trial.seed}":
        raise reading.Misfit(
            f"it is the trial {condition}, seed {trial.seed}, in another trial's folder"
        )
    if trial.run is None and trial.format > 1:
        raise reading.Misfit("'run' is missing")
    if trial.run not in (None, run_id):
        raise reading.Misfit(f"it is a trial of the run {trial.run}, not of {run_id}")


def check(folder: Path, run_id: str) -> bool:
    """Tell whether a trial is finished.

    Of arrays and weights only the sizes are checked, which costs little.

    Raises:
        CorruptTrial: A file is damaged, absent or another trial's.
        StoreError: A newer nablab wrote it.
    """
    trial = read_facts(folder, run_id)
    if trial is None:
        return False
    _check_size(folder / "arrays.npz", trial.arrays_bytes)
    for facts in (trial.weights or {}).values():
        _check_size(folder / facts.file, facts.bytes)
    return True


def _check_size(path: Path, expected: int | None) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CorruptTrial(f"{path} cannot be read: {error.strerror}.") from error
    if expected not in (None, size):
        raise CorruptTrial(
            f"{path} is damaged: it has {size:,} bytes instead of {expected:,}."
        )


def read(folder: Path, run_id: str) -> Record | None:
    """Read a trial's folder and check all of its files.

    Returns:
        The record; None if the trial is not finished.

    Raises:
        CorruptTrial: A file is damaged, absent or another trial's.
        StoreError: A newer nablab wrote it.
    """
    trial = read_facts(folder, run_id)
    if trial is None:
        return None
    arrays_path, digest = folder / "arrays.npz", trial.arrays_sha256
    checked_bytes(arrays_path, digest)
    kept = trial.weights or {}
    for file, weights_digest in {(facts.file, facts.sha256) for facts in kept.values()}:
        checked_bytes(folder / file, weights_digest)
    return Record(
        condition=Condition(**trial.condition),
        seed=trial.seed,
        scalars=trial.scalars,
        notes=trial.notes,
        curves=StoredArrays(arrays_path, digest, "curve.", _curves),
        arrays=StoredArrays(arrays_path, digest, "array.", dict),
        weights=StoredWeights(folder, kept),
        weights_left_out=trial.weights_left_out or {},
    )


def _curves(arrays: Mapping[str, Any]) -> dict[str, Curve]:
    names = [name.removesuffix(".steps") for name in arrays if name.endswith(".steps")]
    return {
        name: Curve(arrays[f"{name}.steps"], arrays[f"{name}.values"]) for name in names
    }
