"""The runner does what is pending, once, and says truly how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablab
from nablab import runs
from nablab.errors import StoreError, UsageError
from nablab.lab.runner import Silent
from nablab.lab.work import Outcome


def trial_bytes(folder: Path) -> dict[str, bytes]:
    """Every byte that a run's trials left, by file."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.glob("trials/*/*"))
    }


class Witness(Silent):
    """Counts what was trained."""

    def __init__(self) -> None:
        self.trained: list[tuple[Any, int]] = []

    def finished(self, conditions: Any, outcome: Outcome) -> None:
        self.trained += outcome.trained


def run_toy(**options: Any) -> runs.Run:
    return nablab.run("toy", **{"preset": "quick", **options})


def test_a_run_leaves_records_verdicts_and_a_report() -> None:
    run = run_toy()
    assert run.state == "done"
    assert len(run.records) == 6
    assert {(v.scope and "") or v.outcome for v in run.verdicts} <= {
        "supported",
        "refuted",
        "inconclusive",
    }
    assert (run.folder.path / "report.html").stat().st_size > 5_000
    names = {path.name for path in run.folder.path.iterdir()}
    assert {
        "config.json",
        "provenance",
        "status.json",
        "verdicts.json",
        "trials",
    } <= names
    assert not list(run.folder.path.glob("checkpoints/*"))
    assert not list(run.folder.path.glob("progress/*"))
    assert not list(run.folder.path.glob("go-*"))


def test_data_that_is_not_there_is_said_before_any_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nablab import catalogue

    monkeypatch.setattr(
        catalogue.find("toy"), "data_sets", lambda self: (str(tmp_path / "images"),)
    )
    with pytest.raises(UsageError, match="There is nothing at"):
        run_toy(store=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_scalars_and_curves_are_tidy() -> None:
    run = run_toy()
    scalars = run.scalars
    assert list(scalars.columns) == ["width", "seed", "metric", "value"]
    assert len(scalars) == 6 * 3
    assert np.isinf(scalars.query("metric == 'never'")["value"]).all()
    curves = run.curves("train_mse")
    assert list(curves.columns) == ["width", "seed", "steps", "values"]
    assert len(curves) == 6 * 200
    with pytest.raises(UsageError, match="Did you mean 'train_mse'"):
        run.curves("train_mes")


def test_the_same_request_does_nothing_twice() -> None:
    first, second = Witness(), Witness()
    run = run_toy(observer=first)
    before = trial_bytes(run.folder.path)
    run_toy(observer=second)
    assert len(first.trained) == 6
    assert second.trained == []
    assert trial_bytes(run.folder.path) == before


def test_seeds_can_be_added_and_keep_the_earlier_ones() -> None:
    run = run_toy(seeds=2)
    before = trial_bytes(run.folder.path)
    witness = Witness()
    more = run_toy(seeds=4, observer=witness)
    assert sorted({seed for _, seed in witness.trained}) == [2, 3]
    after = trial_bytes(more.folder.path)
    assert more.folder.path == run.folder.path
    assert {name: after[name] for name in before} == before


def test_fresh_starts_over_with_the_same_numbers() -> None:
    run = run_toy()
    before = trial_bytes(run.folder.path)
    witness = Witness()
    run_toy(observer=witness, fresh=True)
    assert len(witness.trained) == 6
    assert trial_bytes(run.folder.path) == before


def test_fresh_is_refused_while_another_process_works() -> None:
    run = run_toy()
    status = run.folder.read_json("status.json") or {}
    parent = {"state": "running", "pid": os.getppid(), "process_started": None}
    run.folder.write_json("status.json", {**status, **parent})
    with pytest.raises(StoreError, match="Another process"):
        run_toy(fresh=True)


def test_a_failing_condition_leaves_the_others_alone() -> None:
    run = run_toy(fail=4)
    assert run.state == "failed"
    assert len(run.records) == 3
    assert "width=4: RuntimeError: this width was asked to fail" in run.messages[0]
    failure = json.loads(next(run.folder.path.glob("failures/*")).read_text())
    assert "Traceback" in failure["traceback"]


def test_a_diverging_replica_is_a_record_not_an_error() -> None:
    run = run_toy(learning_rate=1e30, seeds=1)
    assert run.state == "done"
    assert {record.notes["stop_reason"] for record in run.records} == {"diverged"}
    assert all(not np.isfinite(record.scalars["train_mse"]) for record in run.records)


def test_a_damaged_trial_is_named_and_run_again() -> None:
    run = run_toy()
    before = trial_bytes(run.folder.path)
    victim = next(run.folder.path.glob("trials/*-s1/trial.json"))
    victim.write_text(victim.read_text()[:-30])
    witness = Witness()
    again = run_toy(observer=witness)
    assert [seed for _, seed in witness.trained] == [1]
    assert trial_bytes(again.folder.path) == before
    notes = again.view().notes
    assert any(str(victim) in note and "run again" in note for note in notes)


def test_two_processes_give_the_bytes_of_one() -> None:
    one = run_toy()
    before = trial_bytes(one.folder.path)
    two = run_toy(fresh=True, jobs=2)
    assert two.state == "done"
    assert trial_bytes(two.folder.path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0 is impossible: it must be 1 or more"),
        ({"seeds": -3}, "seeds=-3 is impossible"),
        ({"preset": "qiuck"}, "Did you mean 'quick'"),
        ({"device": "gpu"}, r"There is no device 'gpu'.*cpu, cuda, mps"),
        ({"replicas": "batch"}, "Did you mean 'batched'"),
        ({"jobs": 0}, "jobs=0 is impossible"),
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"steps": "many"}, "steps"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run_toy(**options)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_experiment_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'toy'"):
        nablab.run("tyo")


def test_the_command_of_a_run_makes_the_same_run() -> None:
    import shlex

    from nablab.contract import configuration

    run = run_toy(steps=150, widths=(2, 3), seeds=2)
    words = shlex.split(run.command)
    assert words[:3] == ["nablab", "run", "toy"]
    settings = configuration.parse_overrides(
        type(run.experiment), [w for w in words if "=" in w]
    )
    assert settings == {"steps": 150, "widths": (2, 3)}


def test_a_run_can_be_opened_again() -> None:
    run = run_toy(widths=(2, 3))
    again = nablab.open_run(run.folder.path.name[:5])
    assert again.experiment == run.experiment
    assert len(again.records) == 6
    assert again.report(run.folder.path.parent / "out.html").stat().st_size > 5_000


def test_a_failing_figure_loses_no_trial() -> None:
    run = run_toy(bad_figure=True)
    assert run.state == "done"
    assert len(run.records) == 6
    page = (run.folder.path / "report.html").read_text()
    assert "this figure was asked to fail" in page
    assert "toy.py, line" in page


def test_a_run_knows_how_it_ended_while_another_process_goes_on() -> None:
    run = run_toy()
    status = run.folder.read_json("status.json") or {}
    other = {"state": "running", "pid": os.getppid(), "process_started": None}
    run.folder.write_json("status.json", {**status, **other})
    assert nablab.open_run(str(run.folder.path)).state == "running"
    assert run.state == "done"
