"""Networks that a run kept are measured from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import nablab
from nablab.runs import Run
from tests.conftest import Nablab


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return nablab.run("toy", preset="quick", steps=120, learning_rate=2.0, jobs=1)


def loss_of(nablab_here: Nablab, *words: str) -> float:
    done = nablab_here("measure", "gradient_norm", "--json", *words)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["loss"])


def test_a_kept_network_is_measured_on_its_own_data(
    run: Run, nablab_here: Nablab
) -> None:
    differing = 0
    for record in run.records:
        words = (
            "--run",
            "toy",
            "--condition",
            str(record.condition),
            "--seed",
            str(record.seed),
        )
        final = loss_of(nablab_here, *words)
        assert final == pytest.approx(record.scalars["train_mse"], rel=1e-5)
        best = loss_of(nablab_here, *words, "--weights", "best")
        assert best <= final * (1 + 1e-5)
        differing += best < final
    assert differing


def test_other_data_and_another_loss_may_be_given(
    run: Run, nablab_here: Nablab
) -> None:
    words = ("--run", run.folder.run_id[:5], "--condition", "width=2")
    own = loss_of(nablab_here, *words)
    assert loss_of(nablab_here, *words, "--data", "sinc") != own
    assert loss_of(nablab_here, *words, "--loss", "l1") != own


def test_instruments_of_several_networks_take_names(
    run: Run, nablab_here: Nablab
) -> None:
    done = nablab_here(
        "measure",
        "interpolate",
        "--run",
        "toy",
        "--condition",
        "width=2",
        "--weights",
        "final",
        "best",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    priced = nablab_here(
        "measure", "gradient_norm", "--run", "toy", "--condition", "width=2", "--cost"
    )
    assert priced.returncode == 0, priced.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "nothing"), "There is no run 'nothing'"),
        (("--run", "toy"), "Which condition? 2 fit: width=2; width=4."),
        (("--run", "toy", "--condition", "width=3"), "no level of 'width' '3'"),
        (
            ("--run", "toy", "--condition", "width=2", "--weights", "bset"),
            "Did you mean 'best'?",
        ),
        (
            ("--run", "toy", "--condition", "width=2", "--seed", "7"),
            "no finished trial with width=2, seed 7",
        ),
        (
            ("--run", "toy", "--condition", "width=2", "--seed", "-1"),
            "no finished trial with width=2, seed -1",
        ),
        (
            ("--run", "toy", "--condition", "width=2", "--model", "a.py:b"),
            "Give --model or --run",
        ),
        (("--seed", "1"), "give --run RUN, too"),
        (("--condition", "width=2"), "give --run RUN, too"),
    ],
)
def test_mistakes_are_named(
    run: Run, nablab_here: Nablab, words: tuple[str, ...], message: str
) -> None:
    done = nablab_here("measure", "gradient_norm", *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_run_that_kept_nothing_says_how_to_get_weights(nablab_here: Nablab) -> None:
    nablab.run("toy", preset="quick", steps=30, jobs=1, keep_weights=0)
    done = nablab_here(
        "measure", "gradient_norm", "--run", "toy", "--condition", "width=2"
    )
    assert done.returncode == 2
    assert "No weights were kept of width=2, seed 0" in done.stderr
    assert "nablab run toy" in done.stderr
