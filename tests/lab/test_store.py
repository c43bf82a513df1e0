"""The store keeps records exactly, notices damage, and finds runs by what a user would
type.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nablab.contract import Condition, Curve, Experiment, Record
from nablab.errors import StoreError, UsageError
from nablab.lab import files
from nablab.lab.store import FORMAT, Identity, RunFolder, Store
from nablab.lab.trials import CorruptTrial

CONDITION = Condition(model="deep", rate=0.1)


def record(seed: int = 0) -> Record:
    return Record(
        CONDITION,
        seed,
        {"loss": 0.1 + 0.2, "never": float("inf"), "missing": float("nan")},
        {"stop": "budget"},
        {"loss": Curve(np.arange(5), np.linspace(1, 0, 5))},
        {"prediction": np.arange(6, dtype=np.float32).reshape(2, 3)},
    )


def identity(**changes: object) -> Identity:
    return Identity("toy", 1, {"steps": 10, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return Store(tmp_path).create(identity(), preset="quick")


def test_a_record_comes_back_exactly(folder: RunFolder) -> None:
    folder.write_trial(record())
    back = folder.read_trial(CONDITION, 0)
    assert back is not None
    assert back.condition == CONDITION
    assert back.scalars["loss"] == 0.1 + 0.2
    assert back.scalars["never"] == float("inf")
    assert np.isnan(back.scalars["missing"])
    assert back.notes == {"stop": "budget"}
    np.testing.assert_array_equal(back.curves["loss"].values, np.linspace(1, 0, 5))
    np.testing.assert_array_equal(
        back.arrays["prediction"], record().arrays["prediction"]
    )
    assert list(back.curves) == ["loss"]
    assert list(back.arrays) == ["prediction"]


def test_the_same_record_gives_the_same_bytes(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.write_trial(record())
    path = folder.trial_path(CONDITION, 0)
    first = {file.name: file.read_bytes() for file in path.iterdir()}
    folder.write_trial(record())
    assert {file.name: file.read_bytes() for file in path.iterdir()} == first


@pytest.mark.parametrize("name", ["trial.json", "arrays.npz"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_damage_is_noticed_and_named(folder: RunFolder, name: str, damage: str) -> None:
    folder.write_trial(record())
    path = folder.trial_path(CONDITION, 0) / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-20])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    if (name, damage) == ("trial.json", "remove"):
        # never finished, as after a kill
        assert folder.read_trial(CONDITION, 0) is None
        return
    with pytest.raises(CorruptTrial, match=name):
        folder.read_trial(CONDITION, 0)
    assert len(folder.records([CONDITION])) == 0


def test_records_are_ordered_by_condition_then_seed(folder: RunFolder) -> None:
    other = Condition(model="aaa", rate=0.1)
    for condition, seed in [(other, 1), (CONDITION, 10), (CONDITION, 2), (other, 0)]:
        folder.write_trial(Record(condition, seed, {"x": 1.0}))
    found = folder.records([CONDITION, other])
    assert [(r.condition, r.seed) for r in found] == [
        (CONDITION, 2),
        (CONDITION, 10),
        (other, 0),
        (other, 1),
    ]
    assert len(folder.records([CONDITION, other], seeds=2)) == 2


def test_an_unlisted_condition_is_left_out(folder: RunFolder) -> None:
    folder.write_trial(record())
    assert len(folder.records([Condition(model="other")])) == 0


def test_conditions_of_one_slug_have_different_keys() -> None:
    one, two = Condition(a="x y"), Condition(a="x-y")
    assert one.slug == two.slug
    assert RunFolder.condition_key(one) != RunFolder.condition_key(two)


@pytest.mark.parametrize(
    "level", ["../../etc", "a/b", ".", "x" * 300, "\N{SNOWMAN}", ""]
)
def test_levels_never_leave_the_folder(folder: RunFolder, level: str) -> None:
    condition = Condition(a=level)
    folder.write_trial(Record(condition, 0, {"x": 1.0}))
    path = folder.trial_path(condition, 0)
    assert path.resolve().parent == (folder.path / "trials").resolve()
    back = folder.read_trial(condition, 0)
    assert back is not None
    assert back.condition == condition


def test_the_run_id_depends_on_everything_that_decides_the_numbers() -> None:
    base = identity()
    assert identity().run_id == base.run_id
    assert Identity("toy", 1, {"steps": 10}).run_id == base.run_id
    others = [
        identity(steps=11),
        Identity("toy", 2, {"steps": 10}),
        Identity("other", 1, {"steps": 10}),
        Identity("toy", 1, {"steps": 10}, device="cuda"),
        Identity("toy", 1, {"steps": 10}, replicas="sequential"),
        Identity("toy", 1, {"steps": 10}, sources={"net.py": "abc"}),
    ]
    assert len({one.run_id for one in [base, *others]}) == 7


def test_the_run_id_depends_on_the_content_of_a_users_data(tmp_path: Path) -> None:
    class OnImages(Experiment):
        def data_sets(self) -> tuple[str, ...]:
            return ("mnist", str(tmp_path / "mine"))

    for place in ("cats/1.png", "dogs/1.png"):
        (tmp_path / "mine" / place).parent.mkdir(parents=True)
        (tmp_path / "mine" / place).write_bytes(place.encode())
    first = Identity.of(OnImages())
    assert set(first.sources) == {str(tmp_path / "mine"), "the experiment's code"}
    assert Identity.of(OnImages()).run_id == first.run_id
    (tmp_path / "mine" / "dogs" / "1.png").rename(tmp_path / "mine" / "cats" / "2.png")
    assert Identity.of(OnImages()).run_id != first.run_id


def test_the_run_id_stays_the_same_between_versions() -> None:
    assert identity().run_id == "5f6fb163ee"


def test_a_newer_store_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    path = folder.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    with pytest.raises(StoreError, match=r"newer nablab.*Upgrade"):
        Store(tmp_path).create(identity(), preset="quick")


def test_a_damaged_or_missing_config_is_said(folder: RunFolder) -> None:
    (folder.path / "config.json").write_text("{")
    with pytest.raises(
        StoreError,
        match=r"config.json is damaged: it is not complete JSON.*Remove this file",
    ):
        folder.config()
    (folder.path / "config.json").unlink()
    with pytest.raises(
        StoreError, match=r"config.json is missing: this folder is not a run"
    ):
        folder.config()


def test_find_by_id_beginning_experiment_and_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = store.create(identity(), preset="quick")
    two = store.create(identity(steps=11), preset="quick")
    one.write_json("status.json", {"state": "done"})
    assert store.find(one.path.name).path == one.path
    assert store.find(two.path.name[:6]).path == two.path
    assert store.find(f"toy/{two.path.name}").path == two.path
    assert store.find("toy").path == one.path  # the latest used
    assert store.find(str(two.path)).path == two.path


def test_an_unknown_or_ambiguous_reference_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="no runs here yet"):
        store.find("abc")
    for steps in range(40):
        store.create(identity(steps=steps), preset="quick")
    with pytest.raises(UsageError, match=r"There is no run 'zzz'.*Runs here: toy/"):
        store.find("zzz")
    names = [run.path.name for run in store.runs()]
    digit = next(
        d for d in "0123456789abcdef" if sum(n.startswith(d) for n in names) > 1
    )
    with pytest.raises(UsageError, match="several runs"):
        store.find(digit)


# --- a trial is held against its place, a run against its id ------------------


def copied(folder: RunFolder, source: Path, condition: Condition, seed: int) -> Path:
    target = folder.trial_path(condition, seed)
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def test_a_trial_copied_over_another_seed_is_not_believed(folder: RunFolder) -> None:
    folder.write_trial(record(0))
    copied(folder, folder.trial_path(CONDITION, 0), CONDITION, 1)
    with pytest.raises(
        CorruptTrial, match=r"model=deep, rate=0.1, seed 0, in another trial's folder"
    ):
        folder.read_trial(CONDITION, 1)
    records, damage = folder.survey([CONDITION])
    assert [one.seed for one in records] == [0]
    assert len(damage) == 1
    assert folder.count_trials()[0] == 1


def test_a_trial_copied_over_another_condition_is_not_believed(
    folder: RunFolder,
) -> None:
    other = Condition(model="shallow", rate=0.1)
    folder.write_trial(record(0))
    copied(folder, folder.trial_path(CONDITION, 0), other, 0)
    with pytest.raises(CorruptTrial, match="in another trial's folder"):
        folder.read_trial(other, 0)
    assert [one.condition for one in folder.records([CONDITION, other])] == [CONDITION]


def test_a_trial_of_other_settings_is_not_believed(
    folder: RunFolder, tmp_path: Path
) -> None:
    other = Store(tmp_path).create(identity(steps=11), preset="quick")
    other.write_trial(record(0))
    copied(folder, other.trial_path(CONDITION, 0), CONDITION, 0)
    with pytest.raises(
        CorruptTrial,
        match=f"it is a trial of the run {other.run_id}, not of {folder.run_id}",
    ):
        folder.read_trial(CONDITION, 0)


def test_a_folder_under_another_name_is_not_believed(folder: RunFolder) -> None:
    folder.write_trial(record(0))
    path = folder.trial_path(CONDITION, 0)
    shutil.copytree(path, path.with_name(f"{path.name} (copy)"))
    records, damage = folder.survey([CONDITION])
    assert len(records) == len(damage) == 1


def test_a_trial_of_the_first_format_is_still_read(folder: RunFolder) -> None:
    folder.write_trial(record(0))
    path = folder.trial_path(CONDITION, 0) / "trial.json"
    body = json.loads(path.read_text())
    for name in ("run", "arrays_bytes"):
        del body[name]
    files.write_json(path, files.sealed({**body, "format": 1}))
    back = folder.read_trial(CONDITION, 0)
    assert back is not None
    assert list(back.curves) == ["loss"]
    files.write_json(path, files.sealed({**body, "format": 2}))
    with pytest.raises(CorruptTrial, match="'run' is missing"):
        folder.read_trial(CONDITION, 0)


def test_a_trial_of_a_newer_format_is_refused_and_not_trained_over(
    folder: RunFolder,
) -> None:
    folder.write_trial(record(0))
    path = folder.trial_path(CONDITION, 0) / "trial.json"
    files.write_json(path, files.sealed({**json.loads(path.read_text()), "format": 3}))
    for read in (
        lambda: folder.read_trial(CONDITION, 0),
        lambda: folder.survey([CONDITION]),
    ):
        with pytest.raises(
            StoreError, match=r"newer nablab \(trial format 3.*Upgrade"
        ) as caught:
            read()
        assert not isinstance(caught.value, CorruptTrial)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", float("inf")),
        ("scalars", {"a": "1.5"}),
        ("notes", {"a": 1}),
    ],
)
def test_a_trial_of_wrong_fields_is_not_believed(
    folder: RunFolder, field: str, value: Any
) -> None:
    folder.write_trial(record(0))
    path = folder.trial_path(CONDITION, 0) / "trial.json"
    files.write_json(path, files.sealed({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CorruptTrial, match=f"trial.json is damaged: '{field}"):
        folder.read_trial(CONDITION, 0)


def test_infinite_levels_come_back(folder: RunFolder) -> None:
    condition = Condition(margin=float("inf"))
    folder.write_trial(Record(condition, 0, {"x": 1.0}))
    assert folder.records([condition])[0].condition == condition


def test_arrays_that_are_none_are_said_when_they_are_asked_for(
    folder: RunFolder,
) -> None:
    folder.write_trial(record(0))
    path = folder.trial_path(CONDITION, 0)
    body = json.loads((path / "trial.json").read_text())
    for content in (b"no arrays", b"PK\x03\x04 cut", pickle.dumps([1])):
        (path / "arrays.npz").write_bytes(content)
        files.write_json(
            path / "trial.json",
            files.sealed({**body, "arrays_sha256": files.sha256(content)}),
        )
        back = folder.read_trial(CONDITION, 0)
        assert back is not None
        with pytest.raises(CorruptTrial, match="holds no arrays"):
            list(back.arrays)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("configuration", {"steps": 70}),
        ("version", 2),
        ("device", "cuda"),
        ("sources", {"net.py": "abc"}),
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_settings_changed_in_a_config_are_noticed(
    folder: RunFolder, tmp_path: Path, field: str, value: Any, sealed: bool
) -> None:
    path = folder.path / "config.json"
    content = {**json.loads(path.read_text()), field: value}
    del content[files.SEAL]
    files.write_json(path, files.sealed(content) if sealed else content)
    with pytest.raises(
        StoreError,
        match="config.json is damaged: its settings are not those of the "
        f"run {folder.path.name}",
    ):
        folder.config()
    with pytest.raises(StoreError, match="its settings are not those"):
        Store(tmp_path).create(identity(), preset="quick")


def test_another_runs_config_is_noticed_and_can_be_written_anew(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.write_trial(record(0))
    other = Store(tmp_path).create(identity(steps=11), preset="quick")
    shutil.copy(other.path / "config.json", folder.path)
    with pytest.raises(
        StoreError, match=rf"it is of the run {other.run_id}.*Remove this file"
    ):
        Store(tmp_path).create(identity(), preset="quick")
    # nothing of it passes for the other run
    assert len(RunFolder(folder.path).records([CONDITION])) == 0
    (folder.path / "config.json").unlink()
    assert (
        len(Store(tmp_path).create(identity(), preset="quick").records([CONDITION]))
        == 1
    )


def test_a_store_that_cannot_be_read_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Store(tmp_path / "nothing").runs() == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be read: Not a directory"):
        Store(tmp_path / "file").runs()

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match=r"cannot be read: Permission denied.*--store"):
        Store(tmp_path).find("toy")


def test_a_run_that_lost_its_config_is_listed(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.write_trial(record(0))
    (folder.path / "config.json").unlink()
    assert [run.path for run in Store(tmp_path).runs()] == [folder.path]


def test_a_name_of_thousands_of_characters_is_answered_shortly(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no run 'a") as caught:
        Store(tmp_path).find("a" * 5_000)
    assert len(str(caught.value)) < 600
