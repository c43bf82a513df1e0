"""Weights are kept with their trials and given back as they were, or a sentence says
why not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nablab
from nablab import catalogue, training
from nablab.contract import Condition, Experiment, Lab, Record, Trial, Trials
from nablab.errors import UsageError
from nablab.lab.executors import ProcessPool
from nablab.lab.kept_weights import MOST_BYTES, bytes_of, in_words, pack
from nablab.lab.notebook import Notebook
from nablab.lab.runner import Plan, execute
from nablab.lab.store import Store
from nablab.lab.trained_weights import Owners
from nablab.lab.trials import CorruptTrial
from nablab.runs import Run
from tests.conftest import Nablab
from tests.lab.disks import small_disk
from tests.lab.test_runner import trial_bytes

X = torch.linspace(-1, 1, 16)[:, None]


@pytest.fixture(autouse=True)
def _no_power_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def toy(store: Path, **options: Any) -> Run:
    return nablab.run("toy", preset="quick", steps=30, jobs=1, store=store, **options)


def only_trial(run: Run, width: int, seed: int) -> Path:
    return run.folder.trial_path(Condition(width=width), seed)


# What lab.train leaves


def test_final_and_best_weights_of_every_trial_are_given_back(tmp_path: Path) -> None:
    run = nablab.run(
        "toy", preset="quick", steps=120, learning_rate=2.0, jobs=1, store=tmp_path
    )
    differing = 0
    for record in run.records:
        model = run.model(record.condition, record.seed)
        assert not model.training
        with torch.no_grad():
            error = float((model(X) - X**2).square().mean())
        assert error == pytest.approx(record.scalars["train_mse"], rel=1e-5)
        final = run.weights(record.condition, record.seed)
        best = run.weights(record.condition, record.seed, "best")
        assert all(
            torch.equal(final[name], tensor)
            for name, tensor in model.state_dict().items()
        )
        with torch.no_grad():
            best_error = float(
                (run.model(record.condition, record.seed, at="best")(X) - X**2)
                .square()
                .mean()
            )
        assert best_error <= error * (1 + 1e-5)
        differing += any(not final[name].equal(best[name]) for name in final)
    assert differing  # or the best ones were never looked at


def test_best_weights_that_are_the_final_ones_take_no_room(tmp_path: Path) -> None:
    run = toy(tmp_path)  # the loss falls to the end
    folder = only_trial(run, 2, 0)
    kept = json.loads((folder / "trial.json").read_text())["weights"]
    assert kept["best"] == kept["final"]
    assert [path.name for path in folder.glob("weights-*")] == [
        "weights-final.safetensors"
    ]
    assert run.weights("width=2", 0, "best").keys() == run.weights("width=2", 0).keys()


def test_what_is_kept_decides_no_number_and_is_no_part_of_the_run(
    tmp_path: Path,
) -> None:
    kept, none = toy(tmp_path / "a"), toy(tmp_path / "b", keep_weights=0)
    assert kept.folder.run_id == none.folder.run_id
    for path in none.folder.path.glob("trials/*/*"):
        twin = kept.folder.path / path.relative_to(none.folder.path)
        if path.name == "trial.json":
            with_weights, without = (json.loads(p.read_text()) for p in (twin, path))
            assert with_weights.keys() - without.keys() == {"weights"}
            del with_weights["weights"], with_weights["sha256"], without["sha256"]
            assert with_weights == without
        else:
            assert path.name == "arrays.npz"
            assert path.read_bytes() == twin.read_bytes()


def test_a_run_without_weights_says_how_to_get_them(
    tmp_path: Path, nablab_here: Nablab
) -> None:
    run = toy(tmp_path / "runs", keep_weights=0)
    assert "--keep-weights 0MB" in run.command
    assert nablab.open_run("toy", tmp_path / "runs").command == run.command
    with pytest.raises(
        UsageError, match="No weights were kept of width=2, seed 1"
    ) as said:
        run.weights("width=2", 1)
    command = str(said.value).rpartition(": ")[2]
    assert nablab_here(*command.split()[1:]).returncode == 0
    assert nablab.open_run("toy", tmp_path / "runs").model("width=2", 1)


def test_what_is_too_large_is_left_out_and_the_remedy_works(
    tmp_path: Path, nablab_here: Nablab
) -> None:
    run = toy(tmp_path / "runs", keep_weights=290)
    assert run.weights("width=2", 0)
    assert any(
        "Weights beyond 0.01MB a trial were not kept" in note
        for note in run.view().notes
    )
    with pytest.raises(UsageError, match="were not kept: they take") as said:
        run.weights("width=4", 0)
    assert not list(only_trial(run, 4, 0).glob("weights-*"))
    command = str(said.value).rpartition(": ")[2]
    assert nablab_here(*command.split()[1:]).returncode == 0
    assert nablab.open_run("toy", tmp_path / "runs").weights("width=4", 0)


def test_the_same_bytes_by_one_process_and_by_two(tmp_path: Path) -> None:
    plan = nablab.runs.make_plan("toy", preset="quick", overrides={"steps": 30})
    one = execute(plan, Store(tmp_path / "one")).folder.path
    workers = ProcessPool(2, prepare=catalogue.scan)
    two = execute(plan, Store(tmp_path / "two"), executor=workers).folder.path
    assert any("weights-final" in name for name in trial_bytes(one))
    assert trial_bytes(one) == trial_bytes(two)


@pytest.mark.slow
def test_two_processes_on_one_store_leave_whole_weights(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "nablab",
        "run",
        "toy",
        "--preset",
        "quick",
        "--jobs",
        "1",
        "steps=300",
    ]
    running = [subprocess.Popen([*words, "--store", str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    run = nablab.open_run("toy", tmp_path)
    assert not run.damage
    assert len(run.records) == 6
    assert all(run.model(record.condition, record.seed) for record in run.records)


@dataclass(frozen=True)
class Pairs(Experiment):
    """Two networks for each trial, in every way in which experiments train them."""

    way: str = "two trainings"
    batch_over = ("level",)

    def conditions(self) -> list[Condition]:
        return [Condition(level=level) for level in (1, 2)]

    def run(self, trials: Trials, lab: Lab) -> None:
        shared = {"by": ()} if self.way != "roles of one training" else {}
        roles = [
            [lab.seed(trial, role, **shared) for trial in trials] for role in ("a", "b")
        ]
        for trial in trials:
            lab.record(trial, one=1.0)
        if self.way == "roles of one training":
            self.train(lab, [*roles[0], *roles[1]])
        elif self.way == "two trainings":
            for own in roles:
                self.train(lab, own)
        elif self.way == "asked for again":
            for trial in trials:
                for role in ("a", "b"):
                    self.train(lab, [lab.seed(trial, role)])
        elif self.way == "asked for before":
            for seed in roles[0]:
                self.train(lab, [seed])

    def train(self, lab: Lab, seeds: list[int]) -> None:
        recipe = training.Recipe(steps=2, optimizer=training.SGD(learning_rate=0.1))
        lab.train(
            training.Supervised(lambda: nn.Linear(1, 1)), (X, X), recipe, seeds=seeds
        )


def kept_by(way: str, store: Path) -> dict[Trial, Record]:
    plan = Plan(Pairs(way=way), "quick", 2)
    report = execute(plan, Store(store))
    assert report.state == "done", report.messages
    records = [
        record for record in report.folder.trials() if isinstance(record, Record)
    ]
    return {Trial(record.condition, record.seed): record for record in records}


def trained_alone(seed: int) -> torch.Tensor:
    """The weights of the network of a seed, in a training of its own."""
    recipe = training.Recipe(steps=2, optimizer=training.SGD(learning_rate=0.1))
    done = training.train(
        training.Supervised(lambda: nn.Linear(1, 1)), (X, X), recipe, seeds=[seed]
    )
    return done.parameters()["weight"][0]


@pytest.mark.parametrize(
    "way", ["two trainings", "roles of one training", "asked for again"]
)
def test_each_network_is_kept_with_its_own_trial(way: str, tmp_path: Path) -> None:
    found = kept_by(way, tmp_path)
    experiment = Pairs(way=way)
    by: Any = {"by": ()} if way == "two trainings" else {}
    assert len(found) == 4
    for trial, record in found.items():
        lab = Notebook(experiment, Trials([trial.condition], [trial.seed]))
        for name, role in (("final", "a"), ("final-2", "b")):
            expected = trained_alone(lab.seed(trial, role, **by))
            torch.testing.assert_close(record.weights[name]["weight"], expected)


def test_weights_of_nobody_knows_whom_are_not_kept(tmp_path: Path) -> None:
    plan = Plan(Pairs(way="asked for before"), "quick", 1)  # both levels share the seed
    report = execute(plan, Store(tmp_path))
    assert not any(
        record.weights
        for record in report.folder.trials()
        if isinstance(record, Record)
    )
    made = json.loads(next(report.folder.path.glob("provenance/*.json")).read_text())
    assert "do not tell whose they are" in str(made["groups"][0]["parts"][0]["notes"])


def test_a_seed_that_was_asked_for_once_may_train_twice() -> None:
    trials = Trials([Condition(a=1)], [0, 1])
    owners = Owners(trials)
    for trial, seed in zip(trials, (10, 11), strict=True):
        owners.ask(seed, trial)
    assert owners.of([11, 10]) == [trials[1], trials[0]]
    assert owners.of([10, 11]) == list(trials)
    assert owners.of([12, 13]) == list(trials)  # not of the lab, but one for each trial
    assert owners.of([12, 10]) is None
    assert owners.of([12]) is None


# What an experiment gives


@dataclass(frozen=True)
class Giving(Experiment):
    """Gives weights in a loop of its own."""

    numbers: int = 4

    def conditions(self) -> list[Condition]:
        return [Condition(a=1)]

    def run(self, trials: Trials, lab: Lab) -> None:
        for trial in trials:
            values = np.zeros(self.numbers)
            for _ in lab.steps(3, state={}):
                values += 1
                lab.weights(
                    trial,
                    "last",
                    {"values": values, "half": torch.ones(2, dtype=torch.bfloat16)},
                )
            values += 100
            lab.record(trial, total=float(values.sum()))
            lab.weights(trial, "module", nn.BatchNorm1d(2))


def test_an_experiment_keeps_arrays_tensors_and_modules(tmp_path: Path) -> None:
    report = execute(Plan(Giving(), "quick", 2, keep_weights=0), Store(tmp_path))
    assert report.state == "done", report.messages
    run = Run(report.folder, Giving(), 2)
    for seed in (0, 1):
        last = run.weights({"a": 1}, seed, "last")
        assert last["values"].tolist() == [3.0] * 4  # a copy, and of the last call
        assert last["half"].dtype == torch.bfloat16
        assert (
            run.weights({}, seed, "module").keys()
            == nn.BatchNorm1d(2).state_dict().keys()
        )
    with pytest.raises(
        UsageError, match=r"no set of weights 'lst'. Did you mean 'last'\?"
    ):
        run.weights({}, 0, "lst")
    with pytest.raises(
        UsageError, match=r"give Giving a method network_of\(condition\)"
    ):
        run.model({}, 0, at="last")
    with pytest.raises(
        UsageError, match=r"no finished trial with a=1, seed 7 .*--seeds 8"
    ):
        run.weights({}, 7, "last")


def test_a_loop_that_is_taken_up_has_what_its_body_kept() -> None:
    from nablab.lab import drafts

    draft = drafts.Draft(
        weights={"a": pack({"x": torch.ones(3)})}, weights_left_out={"final": 7}
    )
    back = drafts.from_plain(drafts.plain({0: draft}))[0]
    assert back.weights["a"].content == draft.weights["a"].content
    assert back.weights_left_out == {"final": 7}


@pytest.mark.parametrize("name", ["", "../up", "A", "a/b", "a.b", "x" * 61, "-a", 3])
def test_names_that_no_file_can_have_are_refused(name: Any) -> None:
    lab = Notebook(Giving(), Trials([Condition(a=1)], [0]))
    with pytest.raises(UsageError, match="Weights cannot be called"):
        lab.weights(Trial(Condition(a=1), 0), name, {"x": torch.ones(1)})


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        nn.ReLU(),
        torch.ones(2),
        {"x": "text"},
        {"x": None},
        {"x": torch.eye(2).to_sparse()},
    ],
)
def test_what_is_no_tensor_is_refused(tensors: Any) -> None:
    with pytest.raises(UsageError, match=r"lab\.weights"):
        pack(tensors)


def test_tied_weights_are_kept_under_both_names() -> None:
    one = torch.arange(6.0).reshape(2, 3)
    packed = pack({"a": one, "b": one, "rows": one[:, 1]})
    assert packed["a"].equal(one)
    assert packed["b"].equal(one)
    assert packed["rows"].tolist() == [1.0, 4.0]


# Sizes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1TB", "1e3", "ten", "1 0MB", True, "9" * 16]
)
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        bytes_of(text)


@pytest.mark.parametrize(
    "size", [0, 1, 999, 123_456, MOST_BYTES, 12_340_001, 10**12 + 1]
)
def test_a_size_in_words_is_never_too_small(size: int) -> None:
    assert size <= bytes_of(in_words(size)) < size + 10_000


def test_the_command_line_shows_the_default_that_holds(nablab_here: Nablab) -> None:
    said = nablab_here("run", "--help").stdout
    assert in_words(MOST_BYTES) in said
    refused = nablab_here("run", "toy", "--keep-weights", "plenty")
    assert refused.returncode == 2
    assert "is not a size" in refused.stderr


# Damage


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_trial_with_damaged_weights_is_named_left_out_and_trained_again(
    damage: str, tmp_path: Path, nablab_here: Nablab
) -> None:
    run = toy(tmp_path)
    before = trial_bytes(run.folder.path)
    path = only_trial(run, 4, 1) / "weights-final.safetensors"
    content = path.read_bytes()
    changed = {
        "truncated": content[:-9],
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    }
    path.write_bytes(changed[damage]) if damage in changed else path.unlink()
    opened = nablab.open_run(run.folder.run_id, tmp_path)
    assert len(opened.records) == 5
    assert str(path) in " ".join(opened.damage)
    with pytest.raises(CorruptTrial, match="weights-final"):
        opened.weights("width=4", 1)
    listed = nablab_here("runs", "--json", "--store", str(tmp_path)).stdout
    assert ("weights-final" in listed) == (damage != "flipped")  # `runs` looks at sizes
    again = toy(tmp_path)
    assert len(again.records) == 6
    assert trial_bytes(run.folder.path).keys() == before.keys()
    assert again.model("width=4", 1)


def test_damage_after_the_trial_was_read_is_noticed(tmp_path: Path) -> None:
    run = toy(tmp_path)
    record = run.folder.read_trial(Condition(width=2), 0)
    assert record is not None
    (only_trial(run, 2, 0) / "weights-final.safetensors").write_bytes(b"something else")
    with pytest.raises(CorruptTrial, match="checksum"):
        record.weights["final"]


def test_a_file_outside_the_trial_is_never_read(tmp_path: Path) -> None:
    from nablab.lab import files

    run = toy(tmp_path)
    path = only_trial(run, 2, 0) / "trial.json"
    content = json.loads(path.read_text())
    content["weights"]["final"]["file"] = "../../config.json"
    files.write_json(path, files.sealed(content))
    with pytest.raises(CorruptTrial, match="has another name"):
        run.weights("width=2", 0)


def test_weights_of_a_damaged_trial_do_not_outlive_it(tmp_path: Path) -> None:
    run = toy(tmp_path)
    (only_trial(run, 2, 0) / "arrays.npz").write_bytes(b"")
    toy(tmp_path, keep_weights=0)
    assert not list(only_trial(run, 2, 0).glob("weights-*"))
    assert list(only_trial(run, 2, 1).glob("weights-*"))


def test_a_kill_between_weights_and_the_trial_leaves_no_trial(tmp_path: Path) -> None:
    killed = textwrap.dedent("""
        import os, signal, sys
        import nablab
        from nablab.lab import files, trials

        write = files.write_json

        def dying(path, value, **options):
            if path.name == "trial.json" and path.parent.name.endswith("-s1"):
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, value, **options)

        files.write_json = dying
        nablab.run("toy", preset="quick", steps=30, jobs=1, store=sys.argv[1])
    """)
    done = subprocess.run(
        [sys.executable, "-c", killed, str(tmp_path / "killed")], check=False
    )
    assert done.returncode == -signal.SIGKILL
    half = next((tmp_path / "killed").glob("toy/*"))
    left = {
        path.parent.name[-2:]: path
        for path in half.glob("trials/*/weights-final.safetensors")
    }
    assert set(left) == {"s0", "s1"}
    assert not (left["s1"].parent / "trial.json").exists()
    again, whole = toy(tmp_path / "killed"), toy(tmp_path / "whole")
    assert len(again.records) == 6
    assert trial_bytes(again.folder.path) == trial_bytes(whole.folder.path)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    experiment = Giving(numbers=60_000)  # 480 kB of weights in each trial
    with small_disk(megabytes=2) as disk:
        report = execute(Plan(replace(experiment, numbers=8), "quick", 1), Store(disk))
        assert report.state == "done"
        plan = Plan(experiment, "quick", 5)
        with pytest.raises(nablab.StoreError, match="No space left"):
            execute(plan, Store(disk))
        folder = Store(disk).find(plan.identity.run_id)
        finished, damaged = folder.count_trials()
        assert 0 < finished < 5
        assert not damaged
        assert not list(folder.path.glob("trials/*/.*.tmp"))
    report = execute(plan, Store(tmp_path))
    assert report.folder.count_trials() == (5, [])


def test_records_without_weights_are_written_as_before(tmp_path: Path) -> None:
    """The bytes of a trial that keeps nothing do not tell that others do."""
    folder = Store(tmp_path).create(Plan(Giving(), "quick", 1).identity, preset="quick")
    folder.write_trial(Record(Condition(a=1), 0, {"total": 1.0}))
    written = json.loads(
        (folder.trial_path(Condition(a=1), 0) / "trial.json").read_text()
    )
    assert list(written) == [
        "format", "run", "condition", "seed", "scalars", "notes", "arrays_bytes",
        "arrays_sha256", "sha256",
    ]  # fmt: skip


def test_trials_that_share_a_seed_have_their_networks_in_the_order_of_asking() -> None:
    trials = Trials([Condition(a=1), Condition(a=2)], [0])
    owners = Owners(trials)
    for seed in (10, 11):
        for trial in trials:
            owners.ask(seed, trial)
    assert owners.of([10, 10, 11, 11]) == [trials[0], trials[1], trials[0], trials[1]]


def test_best_weights_are_left_out_where_only_the_final_ones_fit(
    tmp_path: Path,
) -> None:
    run = nablab.run(
        "toy",
        preset="quick",
        steps=120,
        learning_rate=2.0,
        keep_weights=400,
        store=tmp_path,
    )
    left_out = [record for record in run.records if record.weights_left_out]
    assert left_out
    for record in left_out:
        assert list(record.weights) == ["final"]
        with pytest.raises(UsageError, match=r"The weights 'best' of .* were not kept"):
            run.weights(record.condition, record.seed, "best")
