"""The perceptron experiment is killed and taken up again: the same numbers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from nablab.contract import Condition, Trials
from nablab.contract.configuration import resolve
from nablab.experiments.perceptron import TWO_LAYERS, Perceptrons
from nablab.from_scratch.two_layers import TwoLayers
from nablab.lab import loops
from nablab.lab.session import Session
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder

CONDITION = Condition(
    part=TWO_LAYERS, gate="xor", training="per sample", hidden_units=8
)
TRIALS = Trials([CONDITION], (0, 1))


class Killed(BaseException):
    """Ends the work as a kill does."""


def run(folder: Path) -> list[dict[str, float]]:
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    experiment = resolve(Perceptrons, "quick", {"epochs": 80})
    lab = Session(
        experiment,
        TRIALS,
        folder=RunFolder(folder),
        stop=StopToken.create(folder),
        device="cpu",
        replicas="auto",
    )
    experiment.run(TRIALS, lab)
    return [dict(record.scalars) for record in lab.records()]


def test_a_start_that_was_done_before_the_kill_keeps_its_numbers(
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

    monkeypatch.setattr(TwoLayers, "step", counted)
    expected = run(tmp_path / "undisturbed")
    assert all(record["solved"] == 1 for record in expected)
    # In the last pass of the second start; the first one was done long before.
    calls, deadline = 0, calls - 1
    with contextlib.suppress(Killed):
        run(tmp_path / "killed")
    assert calls == deadline
    assert run(tmp_path / "killed") == expected
