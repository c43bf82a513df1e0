"""Notes, time and environment belong to the trials that were trained, whatever came
after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import nablab
from nablab import runs
from nablab.contract import Condition
from nablab.lab import environment
from nablab.lab.provenance import Journal
from nablab.lab.runner import Silent
from nablab.lab.store import RunFolder
from nablab.lab.work import Outcome
from nablab.report import sections
from tests.lab.test_runner import trial_bytes


class Killed(BaseException):
    """Ends the process that works on a run, as far as the run can see."""


class Killer(Silent):
    """Kills when so many conditions are done."""

    def __init__(self, after: int) -> None:
        self.left = after

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def run_toy(**options: Any) -> runs.Run:
    return nablab.run(
        "toy", **{"preset": "quick", "steps": 20, "caveats": True, **options}
    )


def said(run: runs.Run) -> list[str]:
    return [note for note in run.view().notes if "a caveat" in note]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Moves to a machine with another processor."""

    def move(name: str) -> None:
        environment._lasting.cache_clear()
        monkeypatch.setattr(environment, "processor", lambda: name)

    yield move
    environment._lasting.cache_clear()


def test_a_resumed_run_says_what_the_killed_one_had_to_say() -> None:
    with pytest.raises(Killed):
        run_toy(widths=(2, 3, 4), observer=Killer(after=2))
    run = run_toy(widths=(2, 3, 4))
    expected = [f"width {width}, seeds [0, 1, 2]: a caveat" for width in (2, 3, 4)]
    assert said(run) == expected
    page = (run.folder.path / "report.html").read_text()
    assert all(note in page for note in expected)


def test_seeds_that_were_killed_at_once_take_no_note_away() -> None:
    run = run_toy()
    before = said(run)
    assert len(before) == 2
    with pytest.raises(Killed):
        run_toy(seeds=5, observer=Killer(after=1))
    assert set(before) < set(said(nablab.open_run(str(run.folder.path))))
    added = said(run_toy(seeds=5))
    assert added == [
        f"width {w}, seeds {s}: a caveat" for w in (2, 4) for s in ([0, 1, 2], [3, 4])
    ]
    # the report of two seeds says nothing of the later ones
    assert said(run_toy(seeds=2)) == before


def test_a_note_goes_with_its_trial() -> None:
    run = run_toy(seeds=2)
    for victim in run.folder.path.glob("trials/2-*-s*/trial.json"):
        victim.write_text("damaged")
    notes = run_toy(seeds=2).view().notes
    assert sum("run again" in note for note in notes) == 2
    assert said(run_toy(seeds=2, fresh=True)) == said(run)
    assert not any("run again" in note for note in run_toy(seeds=2).view().notes)


def test_repeating_a_finished_command_changes_neither_time_nor_machine(
    machine: Any,
) -> None:
    machine("Abacus 1")
    run = run_toy()
    before, page = (
        run.view().environment,
        (run.folder.path / "report.html").read_bytes(),
    )
    assert before["processor"] == "Abacus 1"
    assert before["seconds"] > 0
    machine("Abacus 2")
    again = run_toy()
    assert again.view().environment == before
    assert (run.folder.path / "report.html").read_bytes() == page


def test_trials_of_two_machines_name_both(machine: Any) -> None:
    machine("Abacus 1")
    first = run_toy(seeds=2).view().environment
    machine("Abacus 2")
    view = run_toy(seeds=3).view()
    assert view.environment["processor"] == "Abacus 1 (4 trials); Abacus 2 (2 trials)"
    assert view.environment["torch"] == first["torch"]
    assert view.environment["seconds"] > first["seconds"]
    assert any("what differs: processor" in note for note in view.notes)
    assert "Abacus 1 (4 trials); Abacus 2 (2 trials)" in sections.summary(view)
    assert run_toy(seeds=2).view().environment == first


def test_the_parts_of_a_resumed_trial_add_up(tmp_path: Path) -> None:
    folder, condition = RunFolder(tmp_path), Condition(width=2)
    for machine, goes_on, seconds in (("A", False, 30.0), ("B", True, 12.0)):
        journal = Journal(
            folder,
            condition,
            [0, 1],
            environment={"processor": machine},
            goes_on=goes_on,
            every_seconds=1.0,
        )
        journal._begin -= seconds
        journal.write([f"on {machine}"])
    found = nablab.lab.provenance.provenance(
        folder, _records(condition, 2), [(condition,)]
    )
    assert found.seconds == pytest.approx(42.0, abs=1.0)
    assert found.facts() == {"processor": "A (2 trials); B (2 trials)"}
    assert found.notes[:2] == ["on A", "on B"]


def test_seeds_trained_again_leave_their_first_group(tmp_path: Path) -> None:
    folder, condition = RunFolder(tmp_path), Condition(width=2)
    for machine, seeds in (("A", [0, 1, 2]), ("B", [1])):
        Journal(
            folder,
            condition,
            seeds,
            environment={"processor": machine},
            goes_on=False,
            every_seconds=1.0,
        ).write([])
    found = nablab.lab.provenance.provenance(
        folder, _records(condition, 3), [(condition,)]
    )
    assert found.facts() == {"processor": "A (2 trials); B (1 trial)"}


def test_a_training_says_how_long_it_took_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NABLAB_CHECKPOINT_SECONDS", "0.000001")
    written: list[Journal] = []
    write = Journal.write

    def watched(self: Journal, notes: Sequence[str]) -> None:
        written.append(self)
        write(self, notes)

    monkeypatch.setattr(Journal, "write", watched)
    run_toy(seeds=1, widths=(2,), steps=3_000, replicas="sequential")
    assert len(written) > 2  # begin, end, and between them: what a kill -9 leaves


@pytest.mark.parametrize(
    "content",
    [
        "half a fil",
        "[]",
        '{"format": 1, "groups": 3}',
        '{"format": 99, "groups": []}',
        '{"format": 1, "groups": [{"seeds": [0, 1, 2], "parts": []}]}',
        '{"format": 1, "groups": [{"seeds": ["0"], "parts": [{}]}]}',
    ],
)
def test_a_damaged_file_is_named_and_the_rest_stands(content: str) -> None:
    run = run_toy()
    path = next(run.folder.path.glob("provenance/2-*.json"))
    if content.startswith('{"format'):
        content = json.dumps({**json.loads(content), "condition": {"width": 2}})
    path.write_text(content)
    view = run.view()
    assert any(str(path) in note and "damaged" in note for note in view.notes)
    assert any("3 trials ran is not known" in note for note in view.notes)
    assert view.environment["seconds"] > 0  # of the other condition
    assert len(view.records) == 6
    assert run.write().exists()


def test_another_conditions_file_is_not_believed() -> None:
    run = run_toy()
    first, second = sorted(run.folder.path.glob("provenance/*.json"))
    first.write_bytes(second.read_bytes())
    assert any(str(first) in note for note in run.view().notes)


def test_a_run_of_an_earlier_nablab_keeps_its_notes_and_says_what_is_not_known() -> (
    None
):
    run = run_toy()
    for path in run.folder.path.glob("provenance/*.json"):
        path.unlink()
    run.folder.write_json(
        "environment.json", {"processor": "Abacus 0", "cores": 2, "git": ""}
    )
    status = run.folder.read_json("status.json") or {}
    run.folder.write_json("status.json", {**status, "notes": ["an old caveat"]})
    for _ in range(2):  # repeating the command takes nothing away
        view = run_toy().view()
        assert view.environment["processor"] == "Abacus 0"
        assert view.environment["seconds"] is None
        assert "an old caveat" in view.notes
        assert any(
            "6 trials ran under an earlier nablab" in note for note in view.notes
        )


def test_trials_are_the_same_bytes_however_long_they_took(machine: Any) -> None:
    machine("Abacus 1")
    run = run_toy()
    before = trial_bytes(run.folder.path)
    machine("Abacus 2")
    assert trial_bytes(run_toy(fresh=True).folder.path) == before


def _records(condition: Condition, seeds: int) -> list[Any]:
    return [
        nablab.contract.Record(condition, seed, {"a": 1.0}) for seed in range(seeds)
    ]
