"""Deep against shallow: what it records is recomputed here, and its configuration is
checked.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models
from nablab.contract import Records, Trials
from nablab.contract.configuration import describe, parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.deep_vs_shallow import TRIOS, DeepVsShallow
from tests.experiments.memory import Memory


def small(**overrides: Any) -> DeepVsShallow:
    values = {
        "targets": ("sinc@40", "sawtooth-2"),
        "steps": 30,
        "learning_rate": 1e-2,
        **overrides,
    }
    return resolve(DeepVsShallow, "quick", values)


def run(
    experiment: DeepVsShallow, seeds: Sequence[int] = (0, 1)
) -> tuple[Records, list[Memory]]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(condition))
        experiment.run(Trials([condition], seeds), labs[-1])
    return Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[DeepVsShallow, Records, list[Memory]]:
    experiment = small()
    return experiment, *run(experiment)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def good(): return nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, "
        "1))\n"
        "def wide(): return nn.Linear(1, 2)\n"
    )
    return str(path)


def test_the_trios_have_the_sizes_that_were_published() -> None:
    sizes = {
        trio: [models.parameter_count(w) for w in networks.values()]
        for trio, networks in TRIOS.items()
    }
    assert sizes == {
        "equal": [571, 572, 571],
        "unmatched": [2361, 1511, 701],
        "none": [],
    }


def test_presets() -> None:
    expected = {
        "quick": (8_000, 7),
        "standard": (20_000, 10),
        "paper": (25_000, 30),
        "unmatched": (20_000, 10),
    }
    for preset, (steps, seeds) in expected.items():
        assert resolve(DeepVsShallow, preset, {}).steps == steps
        assert DeepVsShallow.presets[preset]["seeds"] == seeds
    assert resolve(DeepVsShallow, "unmatched", {}).activation == "relu"
    assert len(resolve(DeepVsShallow, "paper", {}).conditions()) == 12


def test_every_field_is_explained() -> None:
    assert [doc.name for doc in describe(DeepVsShallow) if not doc.help] == []
    assert DeepVsShallow.question() == (
        "Does depth help at an equal number of parameters?"
    )


def test_every_trial_records_what_was_promised(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, _ = finished
    assert len(records) == 2 * 3 * 2
    for record in records:
        assert set(record.scalars) == {
            *("train_mse", "held_out_mse", "best_train_mse", "held_out_mse_at_best"),
            *("steps_to_threshold", "parameters", "converged"),
        }
        assert record.notes == {"stop_reason": "budget"}
        assert set(record.curves) == {"train_mse", "held_out_mse"}
        assert record.scalars["best_train_mse"] <= record.scalars["train_mse"]
        assert record.scalars["steps_to_threshold"] == math.inf
        assert record.scalars["parameters"] in (571, 572)


def test_the_held_out_error_is_that_of_the_final_and_of_the_best_weights(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    for lab in labs:
        x, y = data.target(str(lab.condition["target"])).held_out()
        for k, record in enumerate(records.where(**lab.condition)):
            for metric, at in (
                ("held_out_mse", "final"),
                ("held_out_mse_at_best", "best"),
            ):
                with torch.no_grad():
                    expected = (
                        (lab.result.module(k, at=at)(x) - y).square().mean().item()
                    )
                assert record.scalars[metric] == pytest.approx(expected, rel=1e-5)


def test_curves_and_predictions_belong_to_the_training(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    for lab in labs:
        for k, record in enumerate(records.where(**lab.condition)):
            steps, values = record.curves["train_mse"]
            assert steps[0] == 0
            assert steps[-1] == 29
            np.testing.assert_array_equal(values, lab.result.train_loss[k, steps])
            assert record.curves["held_out_mse"].steps[-1] == 30
            assert record.curves["held_out_mse"].values[-1] == pytest.approx(
                record.scalars["held_out_mse"]
            )
            target = data.target(str(lab.condition["target"]))
            np.testing.assert_allclose(
                record.arrays["truth"], target.truth(record.arrays["x"]), atol=1e-5
            )
            assert len(record.arrays["x"]) == 2 * target.points - 1
            x = torch.from_numpy(record.arrays["x"])[:, None]
            np.testing.assert_array_equal(
                lab.result.predict(x)[k, :, 0], record.arrays["prediction"]
            )


def test_conditions_and_seeds_start_from_weights_of_their_own(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    used = [seed for lab in finished[2] for seed in lab.options["seeds"]]
    assert len(set(used)) == len(used)


def test_nobody_is_stopped_at_the_threshold() -> None:
    experiment = small(
        targets=("0*x@20",), trio="none", networks=("1-2-1",), threshold=0.5, steps=50
    )
    records, labs = run(experiment, [0])
    assert not labs[0].options["stop"]
    assert records[0].scalars["steps_to_threshold"] < 50
    assert labs[0].result.steps_taken.tolist() == [50]


def test_a_diverged_network_is_recorded_as_such() -> None:
    experiment = small(
        targets=("x@20",),
        trio="none",
        networks=("1-4-1",),
        optimizer="SGD",
        learning_rate=1e9,
    )
    records, _ = run(experiment, [0])
    assert records[0].notes["stop_reason"] == "diverged"
    assert math.isnan(records[0].scalars["train_mse"])
    assert np.isfinite(records[0].curves["train_mse"].values).all()


def test_your_own_network_is_one_more_condition(mine: str) -> None:
    experiment = small(targets=("sinc@40",), model=f"{mine}:good")
    assert [c["model"] for c in experiment.conditions()] == [
        "deep",
        "middle",
        "shallow",
        "yours",
    ]
    lab = Memory(experiment.conditions()[-1])
    experiment.run(Trials([lab.condition], [0]), lab)
    assert lab.scalars[0]["parameters"] == 28
    assert lab.notes == [
        "Sizes differ (deep 571, middle 572, shallow 571, yours 28 parameters): "
        "size, not depth, may explain a better score."
    ]
    assert set(experiment.sources()) == {"model"}
    assert small().sources() == {}


def test_equal_sizes_need_no_warning_and_unmatched_ones_get_it(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    assert [note for lab in finished[2] for note in lab.notes] == []
    experiment = small(trio="unmatched", targets=("sinc@20",), steps=2)
    assert (
        "deep 2,361, middle 1,511, shallow 701" in run(experiment, [0])[1][0].notes[0]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["targets=snic"], r"Did you mean 'sinc'"),
        (["targets=()"], r"targets is too short: give 1 or more."),
        (["trio=none"], r"nothing to compare: give at least one network"),
        (["targets=sinc,sinc"], r"targets names sinc twice: give each one once."),
        (["networks=1-5-2"], r"1-5-2 must begin with 1 and end with 1"),
        (["networks=deep"], r"'deep' is not a list of layer widths"),
        (["steps=0"], r"steps=0 is impossible: it must be above 0"),
        (["learning_rate=-1"], r"learning_rate=-1 is impossible"),
        (["weight_decay=-1"], r"weight_decay=-1 is impossible: it must be 0 or more"),
        (["optimizer=adm"], r"Did you mean 'Adam'"),
        (["model=nothing.py:net"], r"There is no file 'nothing.py'"),
    ],
)
def test_impossible_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(DeepVsShallow, "quick", parse_overrides(DeepVsShallow, words))


def test_a_network_of_your_own_with_the_wrong_output_is_refused(mine: str) -> None:
    with pytest.raises(
        UsageError, match=r"turns an input of shape \(2, 1\) into \(2, 2\)"
    ):
        small(model=f"{mine}:wide")


def metrics(experiment: DeepVsShallow) -> list[str]:
    return [claim.metric for claim in experiment.active_claims()]


def test_only_claims_that_can_be_tested_are_active(mine: str) -> None:
    default = resolve(DeepVsShallow, "standard", {})
    assert metrics(default) == [
        "held_out_mse",
        "train_mse",
        "steps_to_threshold",
        "parameters",
    ]
    assert metrics(dataclasses.replace(default, targets=("x**2",))) == [
        "held_out_mse",
        "parameters",
    ]
    assert metrics(
        dataclasses.replace(default, trio="none", networks=("1-9-1", "1-2-1"))
    ) == ["parameters"]
    assert (
        metrics(dataclasses.replace(default, trio="none", model=f"{mine}:good")) == []
    )
    assert metrics(resolve(DeepVsShallow, "paper", {})).count("held_out_mse") == 2


def test_baselines_in_closed_form() -> None:
    experiment = small(
        targets=("x@0..1@11", "sawtooth-3", "sign_sin"),
        trio="none",
        networks=("1-2-1",),
    )
    assert experiment.baselines(Records([])) == {"held_out_mse": {}}
    records, _ = run(experiment, (0,))
    found = experiment.baselines(records)["held_out_mse"]
    midpoints = (np.arange(10) + 0.5) / 10
    assert found["x@0..1@11: mean of the training targets"] == pytest.approx(
        np.mean((midpoints - 0.5) ** 2)
    )
    assert found["x@0..1@11: cubic spline through the points"] < 1e-28
    assert found["sawtooth-3: exact network, 19 parameters"] == 0
    assert found["sign_sin: mean of the training targets"] == pytest.approx(1, abs=0.02)
    assert not [name for name in found if "exact" in name and "sawtooth" not in name]


def test_figures_show_every_run_and_name_their_axes(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["loss", "predictions", "error"]
    loss, error = figures["loss"].figure.axes[0], figures["error"].figure.axes[0]
    assert loss.get_xscale() == loss.get_yscale() == error.get_yscale() == "log"
    labels = {
        text
        for figure in figures.values()
        for ax in figure.figure.axes
        for text in (ax.get_ylabel(),)
    }
    assert {"training loss (MSE)", "held-out error (MSE)"} <= labels | {
        figure.figure.get_supylabel() for figure in figures.values()
    }
    experiment.figures(Records(list(records)[:3]))  # an unfinished run has a report too


def test_every_optimizer_and_activation_trains() -> None:
    for optimizer in ("Adam", "AdamW", "RMSprop", "SGD"):
        experiment = small(
            targets=("x@20",),
            trio="none",
            networks=("1-4-1",),
            optimizer=optimizer,
            weight_decay=1e-4,
        )
        _, labs = run(experiment, [0])
        assert type(labs[0].options["optimizer"]).__name__ == optimizer
        assert labs[0].options["optimizer"].weight_decay == 1e-4


def test_listing_the_experiment_imports_nothing_heavy() -> None:
    code = (
        "import sys, nablab.experiments.deep_vs_shallow; "
        "print({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
