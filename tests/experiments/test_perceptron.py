"""What the perceptron experiment records, draws, and keeps when it is interrupted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib import pyplot as plt

from nablab.contract import Condition, Records, Trials
from nablab.contract.configuration import resolve
from nablab.experiments.perceptron import (
    BOUND,
    IMAGES,
    NEAR,
    ONE_LAYER,
    TWO_LAYERS,
    ZERO,
    ZERO_ROWS,
    ZERO_TARGETS,
    GateName,
    Perceptrons,
)
from nablab.from_scratch.gates import GATES
from nablab.from_scratch.two_layers import TwoLayers
from nablab.lab import loops
from nablab.lab.notebook import Notebook
from nablab.lab.session import Session
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder

SEEDS = (0, 1, 2)


def small(**overrides: Any) -> Perceptrons:
    values = {
        "margins": (0.1, 0.4),
        "points": 30,
        "gates": ("and", "xor"),
        "hidden_units": (1, 8),
        "epochs": 150,
    }
    return resolve(Perceptrons, "quick", {**values, **overrides})


def run(experiment: Perceptrons, seeds: Sequence[int] = SEEDS) -> Records:
    return run_conditions(experiment, experiment.conditions(), seeds)


def run_conditions(
    experiment: Perceptrons,
    conditions: Iterable[Condition],
    seeds: Sequence[int] = SEEDS,
) -> Records:
    def one(condition: Condition) -> Iterable[Any]:
        trials = Trials([condition], seeds)
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        return lab.records()

    return Records(r for condition in conditions for r in one(condition))


@pytest.fixture(scope="module")
def records() -> Records:
    return run(small())


def test_every_gate_can_be_named() -> None:
    assert get_args(GateName) == tuple(GATES)


def test_the_course_preset_learns_its_gate() -> None:
    assert {
        c.get("gate") for c in resolve(Perceptrons, "course-d", {}).conditions()
    } == {
        "not-xor-and",
        None,
    }


def test_the_four_rows_are_of_the_courses_function() -> None:
    gate = GATES["not-xor-and"]
    table = dict(zip(map(tuple, gate.inputs), gate.values, strict=True))
    assert tuple(table[row] for row in ZERO_ROWS) == ZERO_TARGETS


def test_mistakes_are_those_that_the_bound_allows(records: Records) -> None:
    for record in records.where(part=BOUND):
        found = record.scalars
        points = record.arrays["points"]
        assert 1 <= found["mistakes"] <= found["bound"]
        assert found["share_of_bound"] == found["mistakes"] / found["bound"]
        assert found["separated"] == 1
        assert found["largest_margin"] >= float(record.condition["margin"])
        last = record.arrays["path"][-1]
        assert np.array_equal(np.sign(points @ last), record.arrays["classes"])


def test_one_layer_learns_and_but_not_xor(records: Records) -> None:
    one = records.where(part=ONE_LAYER)
    assert set(one.where(gate="and").values("most_rows_right")) == {1.0}
    assert max(one.where(gate="xor").values("most_rows_right")) <= 0.75


def test_a_start_is_solved_if_every_output_is_near_its_target(
    records: Records,
) -> None:
    for record in records.where(part=TWO_LAYERS):
        solved = record.scalars["largest_error"] < NEAR
        assert record.scalars["solved"] == solved
        assert (record.scalars["epochs"] <= 150) == solved
    assert not any(records.where(part=TWO_LAYERS, hidden_units=1).values("solved"))
    assert any(records.where(part=TWO_LAYERS, hidden_units=8).values("solved"))


def test_epochs_are_the_first_after_which_all_rows_are_right(records: Records) -> None:
    condition = Condition(part=TWO_LAYERS, gate="xor", training="batch", hidden_units=8)
    inputs, values = GATES["xor"].inputs, GATES["xor"].values
    solved = [r for r in records.where(**condition) if r.scalars["solved"]]
    assert solved
    for record in solved:
        trials = Trials([condition], [record.seed])
        by = ("gate", "hidden_units")
        rng = Notebook(small(), trials).rng(trials[0], "weights", by=by)
        net = TwoLayers.start(2, 8, rng)
        errors = []
        for _ in range(int(record.scalars["epochs"])):
            net.step(inputs, values, small().learning_rate)
            errors.append(float(np.abs(net.predict(inputs) - values).max()))
        assert errors[-1] < NEAR <= min(errors[:-1])


def test_without_a_bias_the_output_for_zeros_is_exactly_a_half(
    records: Records,
) -> None:
    for record in records.where(part=ZERO, bias="without bias"):
        assert set(record.curves["fourth_output"].values.tolist()) == {0.5}
        assert record.scalars["distance_from_half"] == 0
    for value in records.where(part=ZERO, bias="with bias").values("fourth_output"):
        assert value > 0.75


def test_figures_name_what_they_show(records: Records) -> None:
    figures = small().figures(records)
    assert set(figures) == {"mistakes", "boundary", "solved", "one-layer", "zero-input"}
    axes = figures["boundary"].figure.axes
    assert [ax.get_title("left") for ax in axes] == ["margin 0.1", "margin 0.4"]
    assert "boundary" not in small(dimensions=3).figures(run(small(dimensions=3), (0,)))
    plt.close("all")


class Killed(BaseException):
    """Ends the work as a kill does."""


def test_a_start_that_was_done_before_a_kill_keeps_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(loops, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(loops, "SAVING_SHARE", 0.0)
    monkeypatch.setenv("NABLAB_CHECKPOINT_SECONDS", "1e-9")
    calls, deadline = 0, 0
    step = TwoLayers.step

    def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == deadline:
            raise Killed
        step(*arguments)

    def go(folder: Path) -> list[dict[str, float]]:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        experiment = small(epochs=80)
        condition = Condition(
            part=TWO_LAYERS, gate="xor", training="per sample", hidden_units=8
        )
        trials = Trials([condition], (0, 1))
        lab = Session(
            experiment,
            trials,
            folder=RunFolder(folder),
            stop=StopToken.create(folder),
            device="cpu",
            replicas="auto",
        )
        experiment.run(trials, lab)
        return [dict(record.scalars) for record in lab.records()]

    monkeypatch.setattr(TwoLayers, "step", counted)
    expected = go(tmp_path / "undisturbed")
    assert all(record["solved"] == 1 for record in expected)
    # In the last pass of the second start; the first one was done long before.
    calls, deadline = 0, calls - 1
    with contextlib.suppress(Killed):
        go(tmp_path / "killed")
    assert calls == deadline
    assert go(tmp_path / "killed") == expected


def images_of(folder: Path, *, classes: int) -> str:
    """Write small images that a plane parts: class k has a bright row k."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("test", 20)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 60, size=(count, 4, 4), dtype=np.uint8)
        images[np.arange(count), labels] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    path = folder / "rows.npz"
    np.savez(path, **arrays)
    return str(path)


def test_a_users_images_are_told_apart_under_the_bound(tmp_path: Path) -> None:
    own = images_of(tmp_path, classes=3)
    experiment = small(data=own, image_size=4, margins="", hard_gates="xor")
    chosen = [c for c in experiment.conditions() if c["part"] == IMAGES]
    assert [c["class_number"] for c in chosen] == [0, 1, 2]
    found = run_conditions(experiment, chosen)
    for record in found:
        numbers = record.scalars
        assert numbers["separated"] == 1
        assert 0 < numbers["mistakes"] <= numbers["bound"]
        assert numbers["test_accuracy"] > numbers["always_no"]
        assert record.notes["label"] in {"0", "1", "2"}
    assert len({record.scalars["mistakes"] for record in found}) > 1
    figures = experiment.figures(found)
    assert {"images", "images-accuracy"} <= set(figures)
    for name in ("images", "images-accuracy"):
        first, second = figures[name].figure.axes
        assert first.get_ylim() == second.get_ylim()


def test_two_classes_need_one_neuron_and_inseparable_ones_have_no_bound(
    tmp_path: Path,
) -> None:
    path = tmp_path / "same.npz"
    images = np.full((8, 2, 2), 100, dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    experiment = small(data=str(path), image_size=2, image_passes=7, margins="")
    chosen = [c for c in experiment.conditions() if c["part"] == IMAGES]
    assert len(chosen) == 1
    for record in run_conditions(experiment, chosen):
        assert record.scalars["largest_margin"] == 0
        assert record.scalars["separated"] == 0
        assert "bound" not in record.scalars
        assert len(record.curves["mistakes"][0]) == 7


def test_without_images_there_is_no_such_part() -> None:
    assert not [c for c in small().conditions() if c["part"] == IMAGES]
