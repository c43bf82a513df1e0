"""The gradient-norm experiment: what it records is recomputed here, and its settings
are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab import data
from nablab.contract import Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.gradient_norm import DEEP, GradientNorm, _statistics, _three
from nablab.models import parameter_count
from tests.experiments.memory import Memory


def small(**overrides: Any) -> GradientNorm:
    values = {
        "targets": ("sinc@40",),
        "networks": ("1-6-6-6-1", "1-9-1"),
        "steps": 40,
        "measurements": 10,
    }
    return resolve(GradientNorm, "quick", {**values, "minibatch": 8, **overrides})


def run(
    experiment: GradientNorm, seeds: Sequence[int] = (0, 1)
) -> tuple[Records, list[Memory]]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(condition))
        labs[-1].arrays = {seed: {} for seed in seeds}
        experiment.run(Trials([condition], seeds), labs[-1])
    return Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished() -> tuple[GradientNorm, Records, list[Memory]]:
    experiment = small()
    return experiment, *run(experiment)


def test_the_networks_have_the_published_sizes() -> None:
    assert [parameter_count(widths) for widths in GradientNorm().networks] == [
        571,
        1501,
        2241,
    ]


def test_the_last_norm_is_that_of_the_trained_network(finished: Any) -> None:
    _, _, labs = finished
    x, y = data.target("sinc@40").train()
    for lab in labs:
        for seed in (0, 1):
            network = lab.result.module(seed)
            loss = nn.functional.mse_loss(network(x), y)
            slopes = torch.autograd.grad(loss, list(network.parameters()))
            truth = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
            steps, norms = lab.curves[seed]["full-batch norm"]
            assert norms[-1] == pytest.approx(truth, rel=1e-4)
            assert steps.tolist() == list(range(0, 41, 4))
            assert lab.curves[seed]["training loss"].values[-1] == pytest.approx(
                float(loss.detach()), rel=1e-5
            )
            assert len(lab.curves[seed]["norm on 8 samples"].values) == 11


def test_layers_add_up_to_the_whole(finished: Any) -> None:
    _, _, labs = finished
    # 1-9-1: two layers, so that the first and the last are all
    curves = labs[1].curves[0]
    squares = (
        curves["norm, first layer"].values ** 2 + curves["norm, last layer"].values ** 2
    )
    np.testing.assert_allclose(
        np.sqrt(squares), curves["full-batch norm"].values, rtol=1e-6
    )
    assert {"ratio, first layer", "ratio, last layer"} <= set(curves)
    assert np.isfinite(curves["ratio, last layer"].values).all()
    assert {"norm, first layer", "norm, middle layer", "norm, last layer"} <= set(
        labs[0].curves[0]
    )


def test_three_layers_of_many() -> None:
    assert _three({"a": 1}) == {"last layer": 1}
    assert _three({"a": 1, "b": 2}) == {"first layer": 1, "last layer": 2}
    assert _three(dict.fromkeys("abcde", 0) | {"c": 9})["middle layer"] == 9


def test_statistics_of_curves_that_are_known() -> None:
    steps = np.arange(0, 2_001, 20)
    falling = 10.0 ** (-steps / 1_000)
    found = _statistics(steps, falling, falling * 10, falling**2)
    assert found["norm_at_end_over_start"] == pytest.approx(10**-1.91, rel=0.03)
    assert found["norm_at_peak_over_start"] == 1
    assert found["share_falling"] == 1
    assert found["tau_with_loss"] == pytest.approx(1)
    assert found["norm_at_1800_over_100"] == pytest.approx(10**-1.7)
    assert found["norm_at_100"] == pytest.approx(10**-0.1)
    assert found["minibatch_over_full_norm"] == pytest.approx(10)
    rising = np.where(steps < 200, 1 + steps / 100, falling)
    found = _statistics(steps, rising, rising, falling)
    assert found["norm_at_peak_over_start"] == pytest.approx(2.8)
    assert found["share_falling"] < 1
    broken = np.where(steps > 1_000, np.nan, falling)
    assert math.isnan(_statistics(steps, broken, broken, falling)["share_falling"])


def test_the_figures_hold_the_curves(finished: Any) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["norms", "layers", "ratios"]
    table = figures["norms"].table
    assert set(table["curve"]) == {
        "full-batch norm",
        "norm on 8 samples",
        "training loss",
    }
    assert set(table["case"]) == {"1-6-6-6-1 on sinc@40", "1-9-1 on sinc@40"}
    assert set(figures["layers"].table["curve"]) == {
        f"norm, {n} layer" for n in ("first", "middle", "last")
    }
    assert set(figures["ratios"].table["curve"]) == {
        f"ratio, {n} layer" for n in ("first", "middle", "last")
    }
    assert figures["norms"].figure.axes[0].get_ylabel() == "gradient norm, loss (MSE)"
    assert figures["norms"].figure.axes[0].get_yscale() == "log"


@pytest.fixture(scope="module")
def on_images() -> tuple[GradientNorm, Records, list[Memory]]:
    networks = ("784-8-10", "conv3k5-pool-8")
    experiment = small(
        targets=("digits@150",), networks=networks, batch_size=10, steps=30, samples=150
    )
    return experiment, *run(experiment, [0])


def test_on_images_the_norm_is_that_of_the_cross_entropy(on_images: Any) -> None:
    experiment, _, labs = on_images
    assert experiment.data_sets() == ("digits@150",)
    task = data.task("digits@150")
    x, y = task.prepared()
    for lab in labs:
        network = lab.result.module(0)
        loss = nn.functional.cross_entropy(network(x), y)
        slopes = torch.autograd.grad(loss, list(network.parameters()))
        truth = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        assert lab.curves[0]["full-batch norm"].values[-1] == pytest.approx(
            truth, rel=1e-4
        )
        assert lab.curves[0]["training loss"].values[-1] == pytest.approx(
            float(loss.detach()), rel=1e-4
        )
        assert lab.scalars[0]["sampling_error"] == 0  # a sample of all


def test_figures_of_images_name_their_loss(on_images: Any) -> None:
    experiment, records, _ = on_images
    figure = experiment.figures(records)["norms"]
    assert figure.figure.axes[0].get_ylabel() == "gradient norm, loss (cross-entropy)"
    assert set(figure.table["case"]) == {
        "784-8-10 on digits@150",
        "conv3k5-pool-8 on digits@150",
    }


def test_a_sample_comes_with_its_error() -> None:
    experiment = small(
        targets=("digits@150",), networks=("784-8-10",), steps=10, samples=100
    )
    records, labs = run(experiment, [0])
    assert 0 < records[0].scalars["sampling_error"] < 1
    assert labs[0].options["train_samples"] == 100


def test_the_mnist_preset_reads_nothing_to_be_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "load", None)
    experiment = resolve(GradientNorm, "mnist", {})
    assert experiment.data_sets() == ("mnist",)
    assert experiment.conditions()[0]["model"] == "lenet"
    peaks = [
        c.where
        for c in experiment.active_claims()
        if c.metric == "norm_at_peak_over_start"
    ]
    assert [where["model"] for where in peaks] == ["lenet", "784-256-128-64-10"]


def test_claims_are_those_that_the_configuration_can_test() -> None:
    metrics = [
        claim.metric for claim in resolve(GradientNorm, "quick", {}).active_claims()
    ]
    assert "norm_at_1800_over_100" in metrics
    assert "norm_at_1800_over_100" not in [c.metric for c in small().active_claims()]
    short = resolve(GradientNorm, "quick", {"steps": 1_000})
    assert "norm_at_1800_over_100" not in [
        claim.metric for claim in short.active_claims()
    ]
    assert DEEP in resolve(GradientNorm, "quick", {}).networks


def test_training_on_minibatches_and_a_network_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def good(): return nn.Linear(1, 1)\n"
        "def wide(): return nn.Linear(1, 2)\n"
    )
    experiment = small(networks=(), model=f"{path}:good", batch_size=8)
    records, labs = run(experiment)
    assert labs[0].options["batch_size"] == 8
    assert set(records.levels("model")) == {"yours"}
    assert experiment.sources()["model"]
    with pytest.raises(UsageError, match=r"must return \(2, 1\)"):
        small(model=f"{path}:wide")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "steps=0 is impossible"),
        ({"minibatch": -1}, "minibatch=-1 is impossible"),
        ({"networks": ()}, "no network to train"),
        ({"networks": ("2-3-1",)}, "must begin with 1 and end with 1"),
        (
            {"targets": ("sinc", "sinc")},
            "targets names sinc twice: give each one once.",
        ),
        ({"targets": ("sink",)}, "Did you mean 'sinc'"),
        ({"targets": ("digits",)}, "begins with 1, but images of 1 x 28 x 28 have 784"),
        ({"samples": 0}, "samples=0 is impossible"),
    ],
)
def test_settings_that_cannot_work(overrides: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**overrides)
