"""Weights that one experiment leaves for another: which run they are of, that they are
those of the same seed, and what is said where they are missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import nablab
from nablab.contract import Condition, Experiment, Lab, Needs, Record, Trial, Trials
from nablab.errors import UsageError
from nablab.lab.notebook import Notebook
from nablab.lab.source_runs import SourceRun
from nablab.lab.store import Identity, Store
from nablab.runs import make_plan, rehearse, with_sources
from nablab.runs.open import open_store
from tests.conftest import Nablab

CHAIN = Path(__file__).parent / "chain"


@pytest.fixture(autouse=True)
def chain(_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(CHAIN))


def run(name: str, **options: object) -> nablab.Run:
    return nablab.run(name, jobs=1, **options)  # type: ignore[arg-type]


def test_every_trial_gets_the_weights_of_its_seed_and_its_level() -> None:
    run("giver", seeds=3)
    taken = run("taker", seeds=3)
    found = {
        (record.condition["data"], record.seed): record.scalars
        for record in taken.records
    }
    assert found == {
        (data, seed): {"product": 10 * power, "taken_seed": seed}
        for data, power in (("x", 9.0), ("y", 9.5))
        for seed in range(3)
    }
    assert taken.verdicts == []


def test_the_source_is_part_of_the_identity_and_of_the_report() -> None:
    squares = run("giver")
    first = run("taker")
    cubes = run("giver", exponent=3)
    second = run("taker")
    again = run("taker", weights_from=squares.folder.run_id)
    assert first.folder.run_id != second.folder.run_id
    assert again.folder.path == first.folder.path
    assert first.folder.config().sources["weights of giver"] == squares.folder.run_id
    assert [r.scalars["product"] for r in second.records][:1] == [270.0]
    note = f"The weights of giver are those of its run {cubes.folder.run_id}."
    assert note in second.view().notes
    assert f"--weights-from {squares.folder.run_id}" in first.command
    assert note in (second.folder.path / "report.html").read_text()


def test_the_command_of_a_run_makes_the_same_run(nablab: Nablab) -> None:
    run("giver")
    first = run("taker")
    run("giver", exponent=3)
    done = nablab(*first.command.split()[1:], "--json")
    assert json.loads(done.stdout)["run"] == first.folder.run_id


@pytest.mark.slow
def test_worker_processes_take_the_same_weights() -> None:
    run("giver")
    one = run("taker")
    products = [record.scalars for record in one.records]
    two = nablab.run("taker", jobs=2, fresh=True)
    assert two.state == "done"
    assert [record.scalars for record in two.records] == products


def test_a_dry_run_takes_them_too() -> None:
    run("giver")
    plan = with_sources(make_plan("taker"), open_store())
    assert len(rehearse(plan)) == 2


def test_one_command_may_make_the_source_first(nablab: Nablab) -> None:
    assert nablab("run", "giver", "taker").returncode == 0


def no_run() -> None:
    pass


def too_few_seeds() -> None:
    run("giver", seeds=2)


def damaged_trials() -> None:
    run("giver")
    for trial in open_store().find("giver").path.glob("trials/*/"):
        content = (trial / "trial.json").read_text()
        (trial / "trial.json").write_text(content.replace('"powers"', '"others"'))


def damaged_weights() -> None:
    run("giver")
    for path in open_store().find("giver").path.glob("trials/*/weights-*"):
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (no_run, "there is no finished run of it .* First: nablab run giver$"),
        (
            too_few_seeds,
            r"Seed 2 needs weights of giver/\w+, .* nablab run giver .*--seeds 3$",
        ),
        (damaged_trials, "The weights of giver/.* cannot be used: .* nablab run giver"),
        (
            damaged_weights,
            "The weights of giver/.* cannot be used: .* nablab run giver",
        ),
    ],
)
def test_what_is_missing_is_said_before_any_work(
    before: Callable[[], None], said: str
) -> None:
    before()
    with pytest.raises(UsageError, match=said):
        run("taker")
    assert not (open_store().root / "taker").exists()


def test_weights_of_another_name_are_not_there() -> None:
    source = with_sources(
        make_plan("taker"), Store(run("giver").folder.path.parents[1])
    )
    trial = Trial(Condition(data="x"), 1)
    with pytest.raises(UsageError, match=r"has no weights 'final'; .* kept: powers\."):
        source.sources["giver"].check(Needs("giver", where={"base": 3}), trial)


def test_weights_that_were_too_large_are_said_with_their_size(tmp_path: Path) -> None:
    condition = Condition(base=3)
    identity = Identity("giver", 1, {})
    folder = Store(tmp_path).create(identity, preset="quick")
    record = Record(condition, 0, {"power": 9.0}, weights_left_out={"final": 8_000_000})
    folder.write_trial(record)
    source = SourceRun(folder.path, folder.run_id, (condition,), "nablab run giver")
    with pytest.raises(
        UsageError, match=r"nablab run giver --keep-weights 16MB --fresh$"
    ):
        source.check(Needs("giver"), Trial(condition, 0))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["nothing"], "There is no run 'nothing'"),
        (["taker"], "is a run of taker, and taker takes weights of giver"),
        (["giver", "giver"], "is the second run of giver"),
    ],
)
def test_a_run_that_cannot_be_the_source(named: list[str], said: str) -> None:
    run("giver")
    run("taker")
    with pytest.raises(UsageError, match=said):
        run("taker", weights_from=named)


def test_an_experiment_without_needs_takes_no_source() -> None:
    run("giver")
    with pytest.raises(
        UsageError, match=r"giver takes weights of no other experiment\."
    ):
        run("giver", weights_from="giver")


def test_a_run_of_another_store_is_refused(tmp_path: Path) -> None:
    source = run("giver").folder.path
    elsewhere = tmp_path / "elsewhere" / source.name
    shutil.copytree(source, elsewhere)
    with pytest.raises(UsageError, match="outside the store"):
        run("taker", weights_from=str(elsewhere))


def test_an_unfinished_run_is_no_source() -> None:
    done = run("giver").folder
    later = run("giver", exponent=3).folder
    status = later.read_json("status.json")
    assert status is not None
    later.write_json("status.json", {**status, "state": "interrupted"})
    taken = run("taker")
    assert taken.folder.config().sources["weights of giver"] == done.run_id


CONDITIONS = (
    Condition(model="lstm", data="x"),
    Condition(model="lstm", data="y"),
    Condition(model="mean", data="x"),
)


@pytest.mark.parametrize(
    ("where", "own", "chosen"),
    [
        ({"model": "mean"}, Condition(corpus="a"), 2),
        ({"model": "lstm"}, Condition(data="y"), 1),
        ({"data": "y"}, Condition(data="x"), 1),  # what the need says goes first
        ({}, Condition(model="lstm", data="x"), 0),
    ],
)
def test_the_condition_that_fits(
    where: dict[str, str], own: Condition, chosen: int
) -> None:
    needed = Needs("sentiment", where=where)
    found = needed.condition_among(CONDITIONS, Trial(own, 0))
    assert found == CONDITIONS[chosen]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"model": "lstm"}, "several conditions fit: .*lstm.*lstm"),
        ({"model": "gru"}, "no condition fits"),
        ({"layers": 2}, "no condition fits"),
    ],
)
def test_no_single_condition_fits(where: dict[str, str | int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Needs("sentiment", where=where).condition_among(
            CONDITIONS, Trial(Condition(size=1), 0)
        )


@dataclass(frozen=True)
class Forgetful(Experiment):
    """Asks for what it did not list."""

    needs: ClassVar[tuple[Needs, ...]] = (Needs("giver"),)

    def conditions(self) -> list[Condition]:
        return [Condition(a=1)]

    def run(self, trials: Trials, lab: Lab) -> None:
        lab.weights_of(Needs("other"), next(iter(trials)))


def test_what_is_not_listed_or_not_given_is_refused() -> None:
    trials = Trials([Condition(a=1)], [0])
    lab = Notebook(Forgetful(), trials)
    with pytest.raises(UsageError, match="does not list"):
        Forgetful().run(trials, lab)
    with pytest.raises(UsageError, match="was given no run of giver"):
        lab.weights_of(Needs("giver"), next(iter(trials)))
