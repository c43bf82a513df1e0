"""Autoencoders beside SVD: errors that another library gives, optima, bad settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import baselines, data
from nablab.contract import Condition, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.autoencoder_vs_svd import (
    ADAM,
    ALTERNATING,
    CONVOLUTIONAL,
    DEEP,
    METHODS,
    PENALIZED,
    PRECONDITIONED,
    SIGMOID,
    SVD,
    YOURS,
    AutoencoderVsSvd,
)
from nablab.lab.notebook import Notebook

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> AutoencoderVsSvd:
    values: dict[str, Any] = {
        "data": "digits@300",
        "methods": METHODS,
        "codes": "3,6",
        "hidden": "24",
        "filters": 4,
        "epochs": 3,
        "linear_epochs": 250,
    }
    return resolve(AutoencoderVsSvd, "quick", {**values, **overrides})


def fitted(experiment: AutoencoderVsSvd, **where: Any) -> Records:
    def one(condition: Condition) -> list[Any]:
        trials = Trials([condition], SEEDS)
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        return list(lab.records())

    chosen = [c for c in experiment.conditions() if c.matches(where)]
    return Records(record for condition in chosen for record in one(condition))


@pytest.fixture(scope="module")
def records() -> Records:
    return fitted(small())


def test_svd_is_scikit_learns_pca_scored_on_test_images(records: Records) -> None:
    from sklearn.decomposition import PCA

    task = data.image_task("digits@300", size=8)
    train, test = (
        part[0].flatten(1).double().numpy() / 255
        for part in (task.train(), task.held_out())
    )
    for code in (3, 6):
        pca = PCA(code, svd_solver="full").fit(train)
        (record, *_) = records.where(method=SVD, code=code)
        for images, metric in ((train, "train_mse"), (test, "test_mse")):
            rebuilt = pca.inverse_transform(pca.transform(images))
            wanted = np.square(images - rebuilt).mean()
            assert record.scalars[metric] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "most"), [(ALTERNATING, 1e-10), (PRECONDITIONED, 1e-8), (ADAM, 0.02)]
)
def test_linear_networks_end_at_the_optimum(
    records: Records, method: str, most: float
) -> None:
    for record in records.where(method=method):
        assert 0 < record.scalars["excess"] < most
        assert record.scalars["test_ratio"] == pytest.approx(1, abs=0.1)
        if method != ADAM:
            assert record.scalars["largest_angle"] < 0.1
            steps, excess = record.curves["excess"]
            assert len(steps) == len(excess)
            assert excess[-1] == pytest.approx(record.scalars["excess"], rel=1e-6)


def test_what_is_recorded_is_the_error_of_the_network_itself() -> None:
    class Keeping(Notebook):
        result: Any = None

        def train(self, *parts: Any, **options: Any) -> Any:
            self.result = super().train(*parts, **options)
            return self.result

    experiment = small()
    trials = Trials([Condition(method=ADAM, code=3)], SEEDS)
    lab = Keeping(experiment, trials)
    experiment.run(trials, lab)
    images = baselines.centered_images("digits@300", size=8, channels=1)
    for record, outcome in zip(lab.records(), lab.result, strict=True):
        forward = baselines.on_rows(outcome.module(), (64,))
        wanted = baselines.squared_error(forward, images.train)
        assert record.scalars["train_mse"] == pytest.approx(wanted, rel=1e-5)


def test_a_penalty_is_that_of_the_closed_form(records: Records) -> None:
    for record in records.where(method=PENALIZED):
        assert record.scalars["distance_to_closed_form"] < 0.1
        assert record.scalars["axes_found"] > 0.9
        assert record.scalars["excess"] > 0.01
    for record in records.where(method=ALTERNATING):
        assert record.scalars["axes_found"] < 0.9
    # one that is not there leaves Adam's network
    free = fitted(small(penalty=0.0), method=PENALIZED, code=3)
    for record, other in zip(free, records.where(method=ADAM, code=3), strict=True):
        assert record.scalars["train_mse"] == other.scalars["train_mse"]
        assert "distance_to_closed_form" not in record.scalars


def test_the_others_are_scored_like_svd(records: Records) -> None:
    for method in (SIGMOID, DEEP, CONVOLUTIONAL):
        for record in records.where(method=method):
            (svd, *_) = records.where(method=SVD, code=record.condition["code"])
            ratio = record.scalars["test_mse"] / svd.scalars["test_mse"]
            assert record.scalars["test_ratio"] == pytest.approx(ratio, rel=1e-5)
            excess = record.scalars["train_mse"] / svd.scalars["train_mse"] - 1
            assert record.scalars["excess"] == pytest.approx(excess, rel=1e-5)
            assert record.arrays["rebuilt"].shape == (8, 1, 8, 8)


def test_figures_show_what_was_recorded(records: Records) -> None:
    experiment = small()
    figures = experiment.figures(records)
    assert set(figures) == {"error", "ratio", "excess", "way", "reconstructions"}
    first, second = figures["ratio"].figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert [ax.get_title("left") for ax in (first, second)] == [
        "3 numbers",
        "6 numbers",
    ]
    only = records.where(method=SVD)
    assert set(experiment.figures(only)) == {"error", "reconstructions"}
    assert experiment.figures(Records([])).keys() == {"error"}


def test_claims_are_on_methods_that_are_run() -> None:
    claims = small(methods="svd,deep").active_claims()
    assert {claim.where["method"] for claim in claims} == {DEEP}
    axes = [c for c in small().active_claims() if c.metric == "axes_found"]
    assert len(axes) == 1
    assert not [c for c in small(methods="adam").active_claims() if c.by]


@pytest.fixture
def own_network(tmp_path: Path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "from nablab.models import autoencoder\n"
        "def build():\n"
        "    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh())\n"
        "    decoder = nn.Sequential(nn.Linear(5, 64), nn.Unflatten(1, (1, 8, 8)))\n"
        "    return autoencoder(encoder, decoder)\n"
        "def nameless():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64),\n"
        "                         nn.Unflatten(1, (1, 8, 8)))\n"
        "def square():\n"
        "    return autoencoder(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))\n"
        "def rows():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64))\n",
        encoding="utf-8",
    )
    return file


def test_the_users_network_stands_beside_svd_of_its_size(own_network: Path) -> None:
    experiment = small(model=f"{own_network}:build", methods="svd")
    own = Condition(method=YOURS, code=5)
    assert own in experiment.conditions()
    for record in fitted(experiment, method=YOURS):
        assert record.scalars["test_ratio"] > 0
        assert record.scalars["parameters"] == 65 * 5 + 6 * 64


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nameless", "has no part named encoder"),
        ("square", r"gives \(2, 1, 8, 8\) for two images; it must give codes"),
        ("rows", r"into \(2, 64\); it must return \(2, 1, 8, 8\)"),
    ],
)
def test_other_networks_are_refused(
    own_network: Path, factory: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        small(model=f"{own_network}:{factory}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 3}, "images of digits@.* are gray"),
        ({"codes": "64"}, "codes=64 is no compression: .* has 64 numbers"),
        ({"codes": "40", "data": "digits@40"}, "needs more than that many training"),
        ({"methods": ""}, "name one of methods"),
        ({"size": 10}, "must be a multiple of 4, and it is 10"),
        ({"hidden": ()}, "no layers: give widths in hidden"),
        ({"size": 512}, "have a covariance of 549.8 GB"),
        ({"penalty": 1.0}, "penalty"),
        ({"penalty": -0.1}, "penalty"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**wrong)
