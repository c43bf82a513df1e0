"""Every experiment rebuilds the networks that it trained, with the score that it
recorded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import nablab
from nablab.errors import UsageError
from nablab.instruments import gradient_norm

# Per experiment: settings that last a second or two, and the scalar that is the loss on
# the training set.
SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "cnn-depth": ({"epochs": 1, "networks": ("cnn-25k-shallow",)}, ""),
    "deep-vs-shallow": ({"steps": 50, "targets": ("sinc",)}, "train_mse"),
    "gradient-norm": ({"steps": 50}, "train_loss"),
    "interpolation": (
        {"epochs": 1, "ends": ("start",), "train_samples": 2_000},
        "train_loss_a",
    ),
    "loss-landscape": (
        {"steps": 50, "path_points": 5, "alphas": 5, "resolution": 5},
        "train_loss",
    ),
    "numpy-digits": ({"epochs": 1, "size": 12, "kernel": 3}, "train_loss"),
    "parameters-vs-generalization": (
        {
            "epochs": 1,
            "descent_epochs": 2,
            "hidden": ("3", "5-4"),
            "ratios": (0.5, 1.0),
        },
        "train_loss",
    ),
    "random-labels": ({"epochs": 3, "shares": (0.0, 0.5)}, "train_loss"),
    "sensitivity": ({"epochs": 1, "steps": 20, "most_steps": 60}, "train_loss"),
    "sharpness": ({"epochs": 1}, "train_loss"),
    "weight-trajectories": ({"steps": 60}, "train_loss"),
    "zero-gradient": ({"steps": 50, "iterations": 2}, ""),
}
# These stand for all in the fast tests: a function, and a loss with a penalty. Images
# are those of the next test.
FAST = "deep-vs-shallow", "zero-gradient"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST))
        for name in SMALL
    ],
)
def test_a_rebuilt_network_has_the_recorded_score(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    overrides, metric = SMALL[name]
    run = nablab.run(name, preset="quick", seeds=2, jobs=1, store=tmp_path, **overrides)
    assert run.state == "done", run.messages
    measured = 0
    for record in run.records:
        if record.condition.get("part") == "random features":
            with pytest.raises(UsageError, match="No network is trained"):
                run.model(record.condition, record.seed)
            continue
        model = run.model(record.condition, record.seed)
        loss, (x, y) = run.objective(record.condition, record.seed)
        found = gradient_norm(model, loss, (x, y)).loss
        if name == "zero-gradient":  # its recorded loss has no penalty
            with torch.no_grad():
                assert float((model(x) - y).square().mean()) == pytest.approx(
                    record.scalars["train_mse"], rel=1e-4
                )
            penalty = (
                sum(
                    float(tensor.detach().square().sum())
                    for tensor in model.parameters()
                )
                / 2
            )
            expected = (
                record.scalars["train_mse"]
                + float(record.condition["weight_decay"]) * penalty
            )
        # it records no training loss, but the accuracy on the same images
        elif name == "cnn-depth":
            with torch.no_grad():
                right = (model(x).argmax(1) == y).double().mean()
            assert float(right) == pytest.approx(
                record.scalars["train_accuracy"], abs=2 / len(y)
            )
            expected = found
        else:
            expected = record.scalars[metric]
        assert found == pytest.approx(expected, rel=1e-4), record.condition
        measured += 1
    assert measured


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("interpolation", 2),
        pytest.param("weight-trajectories", 2, marks=pytest.mark.slow),
        pytest.param("loss-landscape", 3, marks=pytest.mark.slow),
    ],
)
def test_each_network_of_a_trial_has_a_name(
    name: str, networks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    run = nablab.run(
        name, preset="quick", seeds=1, jobs=1, store=tmp_path, **SMALL[name][0]
    )
    record = run.records[0]
    names = ["final", *(f"final-{number}" for number in range(2, networks + 1))]
    assert {kept for kept in record.weights if kept.startswith("final")} == set(names)
    flat = [
        torch.cat(
            [t.flatten() for t in run.weights(record.condition, 0, kept).values()]
        )
        for kept in names
    ]
    assert len({tuple(weights.tolist()) for weights in flat}) == networks
    if name == "interpolation":
        second = run.model(record.condition, 0, at="final-2")
        found = gradient_norm(second, *run.objective(record.condition, 0)).loss
        assert found == pytest.approx(record.scalars["train_loss_b"], rel=1e-4)
