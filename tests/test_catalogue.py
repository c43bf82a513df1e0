"""One battery that every experiment of the catalogue passes, and what happens to broken files."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from nablab import catalogue, configuration, data
from nablab.experiment import Claim, Condition, Experiment

BUILT_IN = [entry for entry in catalogue.scan().values() if entry.path.parent == catalogue.BUILT_IN]


@pytest.fixture(params=BUILT_IN, ids=lambda entry: entry.name)
def experiment(request: pytest.FixtureRequest) -> type[Experiment]:
    entry: catalogue.Entry = request.param
    assert entry.error == ""
    assert entry.experiment is not None
    return entry.experiment


def test_there_are_experiments() -> None:
    assert "deep-vs-shallow" in [entry.name for entry in BUILT_IN]


def test_the_page_teaches(experiment: type[Experiment]) -> None:
    assert experiment.question().endswith("?")
    assert len(inspect.cleandoc(experiment.__doc__ or "").splitlines()) > 20
    assert experiment.exercises
    assert experiment.references


def test_every_setting_is_explained(experiment: type[Experiment]) -> None:
    unexplained = [field.name for field in configuration.describe(experiment) if not field.help]
    assert unexplained == []


def test_the_presets_are_there_and_make_sense(experiment: type[Experiment]) -> None:
    assert {"quick", "standard", "paper"} <= set(experiment.presets)
    for preset in experiment.presets:
        configured = configuration.resolve(experiment, preset, {})
        conditions = configured.conditions()
        assert conditions
        assert len(set(conditions)) == len(conditions)
        assert all(isinstance(condition, Condition) for condition in conditions)
        assert all(isinstance(claim, Claim) for claim in configured.active_claims())


def test_the_quick_preset_needs_no_download(experiment: type[Experiment]) -> None:
    named = configuration.resolve(experiment, "quick", {}).data_sets()
    assert {data.data_set_of(spec) for spec in named} <= {"digits"}


def test_the_configuration_survives_json_and_pickle(experiment: type[Experiment]) -> None:
    import json

    for preset in experiment.presets:
        configured = configuration.resolve(experiment, preset, {})
        stored = json.loads(json.dumps(configured.configuration()))
        assert configuration.resolve(experiment, preset, stored) == configured
        assert pickle.loads(pickle.dumps(configured)) == configured
        words = configuration.changes(configured, "standard")
        settings = configuration.parse_overrides(experiment, words)
        assert configuration.resolve(experiment, "standard", settings) == configured


def test_files_stay_small_and_import_nothing_heavy(experiment: type[Experiment]) -> None:
    path = Path(inspect.getfile(experiment))
    assert len(path.read_text().splitlines()) <= 300
    program = (
        f"import sys, {experiment.__module__}; "
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_broken_files_are_listed_with_their_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_import.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "broken_syntax.py").write_text("def (:\n")
    (tmp_path / "exits.py").write_text("raise SystemError('bad day')\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "_private.py").write_text("raise RuntimeError\n")
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path))
    entries = catalogue.scan()
    assert "nothing_of_this_name" in entries["broken-import"].error
    assert "SyntaxError" in entries["broken-syntax"].error
    assert "bad day" in entries["exits"].error
    assert "no Experiment" in entries["empty"].error
    assert entries["deep-vs-shallow"].error == ""
    assert not any("private" in name for name in entries)
    with pytest.raises(catalogue.UsageError, match=r"cannot be imported.*bad day"):
        catalogue.find("exits")


def test_a_taken_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from dataclasses import dataclass\nfrom nablab.experiment import Experiment\n"
        "@dataclass(frozen=True)\nclass Mine(Experiment):\n    '''Is it?'''\n    name = 'deep-vs-shallow'\n"
    )
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path))
    assert "is taken by" in catalogue.scan()["mine"].error
