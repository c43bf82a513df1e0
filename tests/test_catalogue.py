"""One battery that every experiment of the catalogue passes, and what happens to broken
files.
"""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nablab
from nablab import catalogue, data, runs
from nablab.contract import TOPICS, Claim, Condition, Experiment, configuration
from nablab.errors import UsageError

BUILT_IN = [
    entry
    for entry in catalogue.scan().values()
    if entry.path.parent == catalogue.BUILT_IN
]


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
    unexplained = [
        field.name for field in configuration.describe(experiment) if not field.help
    ]
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
    assert {data.data_set_of(spec) for spec in named} <= {"digits", "king-james"}


def test_the_configuration_survives_json_and_pickle(
    experiment: type[Experiment],
) -> None:
    import json

    for preset in experiment.presets:
        configured = configuration.resolve(experiment, preset, {})
        stored = json.loads(json.dumps(configured.configuration()))
        assert configuration.resolve(experiment, preset, stored) == configured
        assert pickle.loads(pickle.dumps(configured)) == configured
        words = configuration.changes(configured, "standard")
        settings = configuration.parse_overrides(experiment, words)
        assert configuration.resolve(experiment, "standard", settings) == configured


def test_files_import_nothing_heavy(experiment: type[Experiment]) -> None:
    program = (
        f"import sys, {experiment.__module__}; "
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_broken_files_are_listed_with_their_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        "from dataclasses import dataclass\n"
        "from nablab.contract import Experiment\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Experiment):\n"
        "    '''Is it?'''\n"
        "    name = 'deep-vs-shallow'\n"
    )
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path))
    assert "is taken by" in catalogue.scan()["mine"].error


def test_a_file_called_like_an_experiment_of_nablabs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path))
    own = tmp_path / "random_labels.py"
    built_in = catalogue.BUILT_IN / "random_labels.py"
    own.write_text(built_in.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"random_labels\.py is called like it"):
        catalogue.find("random-labels")
    entries = catalogue.scan()
    assert entries["random-labels"].path == built_in
    assert "is taken by" in entries[str(own)].error


MINE = """
from dataclasses import dataclass
from nablab.contract import Condition, Experiment
from _constant import VALUE

@dataclass(frozen=True)
class Mine(Experiment):
    '''Is it one?'''

    def conditions(self):
        return [Condition(part="all")]

    def run(self, trials, lab):
        from _late import FACTOR
        for trial in trials:
            lab.record(trial, value=1 * VALUE * FACTOR)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment of the user's that imports two files beside it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    (folder / "_constant.py").write_text("VALUE = 1")
    (folder / "_late.py").write_text("FACTOR = 1")
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def test_an_edited_experiment_makes_a_new_run_with_new_numbers(own: Path) -> None:
    def outcome() -> tuple[str, float]:
        run = nablab.run("mine", preset="quick", seeds=1)
        return run.folder.path.name, run.records[0].scalars["value"]

    first = outcome()
    assert first[1] == 1
    assert outcome() == first
    edited = MINE.replace("1 * VALUE", "2 * VALUE")
    edits = {"mine.py": edited, "_constant.py": "VALUE = 3", "_late.py": "FACTOR = 5"}
    found = [first]
    for name, text in edits.items():
        (own / name).write_text(text)
        found.append(outcome())
    assert [value for _, value in found] == [1, 2, 6, 30]
    assert len({run_id for run_id, _ in found}) == 4
    for name, text in {
        "mine.py": MINE,
        "_constant.py": "VALUE = 1",
        "_late.py": "FACTOR = 1",
    }.items():
        (own / name).write_text(text)
    assert outcome() == first


def test_nablabs_own_experiments_are_known_by_their_version() -> None:
    plan = runs.make_plan("deep-vs-shallow", preset="quick")
    assert plan.identity.sources == {}
    assert plan.identity.run_id == "13e37ba554"


def test_a_plan_of_an_edited_experiment_is_refused(own: Path) -> None:
    plan = runs.make_plan("mine", preset="quick")
    (own / "_constant.py").write_text("VALUE = 22")
    with pytest.raises(
        UsageError,
        match=r"mine\.py, or what it imports, was edited after Mine was loaded",
    ):
        runs.run_plan(plan)
    runs.make_plan("mine", preset="quick")
    with pytest.raises(UsageError, match="was edited after Mine was loaded"):
        runs.run_plan(plan)


def test_files_edited_while_a_run_works_end_it(own: Path) -> None:
    text = MINE.replace(
        '[Condition(part="all")]', '[Condition(part=part) for part in ("a", "b")]'
    )
    late = (
        "import pathlib\n"
        f"pathlib.Path({str(own / '_constant.py')!r}).write_text('VALUE = 2')\n"
        "FACTOR = 1"
    )
    (own / "mine.py").write_text(text)
    (own / "_late.py").write_text(late)
    run = nablab.run("mine", preset="quick", seeds=1)
    assert run.state == "failed"
    assert [record.condition["part"] for record in run.records] == ["a"]
    assert "part=b" in run.messages[0]


def test_data_that_change_while_a_run_works_end_it(own: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (images / "a" / "1.png").write_bytes(b"one")
    text = MINE.replace(
        '[Condition(part="all")]', '[Condition(part=part) for part in ("a", "b")]'
    )
    (own / "mine.py").write_text(
        f"{text}\n    def data_sets(self):\n        return ({str(images)!r},)\n"
    )
    late = (
        "import pathlib\n"
        f"pathlib.Path({str(images)!r}, 'a', '2.png').write_text('2')\n"
        "FACTOR = 1"
    )
    (own / "_late.py").write_text(late)
    run = nablab.run("mine", preset="quick", seeds=1)
    assert run.state == "failed"
    assert [record.condition["part"] for record in run.records] == ["a"]
    assert "your code or data were changed after the run began" in run.messages[0]


def test_what_an_experiment_reads_unseen_is_noted(own: Path) -> None:
    (own / "_late.py").write_text(
        "import os\nFACTOR = int(os.environ.get('FACTOR', 1))"
    )
    run = nablab.run("mine", preset="quick", seeds=1)
    assert any(
        "_late.py, line 2, reads an environment variable" in note
        for note in run.view().notes
    )


def test_nablabs_own_experiments_have_a_topic_of_the_list() -> None:
    for entry in catalogue.scan().values():
        if entry.path.parent == catalogue.BUILT_IN:
            assert entry.topic in TOPICS, entry.name


def test_topics_come_in_their_order_and_those_of_users_last() -> None:
    def entry(name: str, topic: str) -> catalogue.Entry:
        made = type(name, (Experiment,), {"__doc__": "Why?", "topic": topic})
        return catalogue.Entry(name, Path(name), made)

    broken = catalogue.Entry("broken", Path("broken.py"), None, "no such module")
    entries = [entry("a", "mine"), entry("b", "images"), broken, entry("c", TOPICS[0])]
    names = {
        topic: [one.name for one in found]
        for topic, found in catalogue.by_topic(entries).items()
    }
    assert list(names.items()) == [
        (TOPICS[0], ["c"]),
        ("images", ["b"]),
        ("mine", ["a"]),
        ("other", ["broken"]),
    ]
