"""Denoising autoencoders beside the filter: closed forms, records, bad settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import baselines
from nablab.contract import Condition, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.denoising_autoencoder import (
    CONVOLUTIONAL,
    DEEP,
    FILTER,
    LINEAR,
    YOURS,
    Denoising,
    DenoisingAutoencoder,
)
from nablab.lab.notebook import Notebook
from nablab.training.moments import Moment

SEEDS = (0, 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> DenoisingAutoencoder:
    values: dict[str, Any] = {
        "data": "digits@300",
        "networks": "linear,deep,convolutional",
        "code": 6,
        "noises": "0,0.4",
        "hidden": "24",
        "filters": 2,
        "epochs": 60,
    }
    return resolve(DenoisingAutoencoder, "quick", {**values, **overrides})


def trained(experiment: DenoisingAutoencoder, **where: Any) -> Records:
    def one(condition: Condition) -> list[Any]:
        trials = Trials([condition], SEEDS)
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        return list(lab.records())

    chosen = [c for c in experiment.conditions() if c.matches(where)]
    return Records(record for condition in chosen for record in one(condition))


@pytest.fixture(scope="module")
def records() -> Records:
    return trained(small(networks="linear,deep"))


def test_a_linear_network_comes_near_the_filter_and_never_below(
    records: Records,
) -> None:
    for record in records.where(network=LINEAR):
        assert 0 < record.scalars["excess"] < 0.1
        assert record.scalars["ratio_at_own_noise"] == pytest.approx(1, abs=0.1)


def test_the_filter_is_scored_on_the_noise_that_networks_get(records: Records) -> None:
    experiment = small()
    assert experiment.tested == [0.0, 0.2, 0.4]
    images = baselines.centered_images("digits@300", size=8, channels=1)
    leading = images.leading(6)
    for noise in experiment.tested:
        by_seed = {
            seed: {r.scalars[f"filter_at_{noise:g}"] for r in records if r.seed == seed}
            for seed in SEEDS
        }
        # one noise for all networks of a seed, another one for the next seed
        assert all(len(values) == 1 for values in by_seed.values())
        assert (len(set.union(*by_seed.values())) == 2) is (noise > 0)
        # about what is expected of these test images
        rows = images.test.flatten(1).double()
        matrix = baselines.wiener_filter(leading, noise)
        expected = float((rows @ matrix - rows).square().mean()) + noise**2 * float(
            matrix.square().sum() / 64
        )
        (found, *_) = by_seed[0]
        assert found == pytest.approx(expected, rel=0.05)


def test_networks_are_best_at_their_own_noise(records: Records) -> None:
    for name in (LINEAR, DEEP):
        for seed in SEEDS:
            (clean,) = (
                r for r in records.where(network=name, noise=0.0) if r.seed == seed
            )
            (noisy,) = (
                r for r in records.where(network=name, noise=0.4) if r.seed == seed
            )
            assert clean.scalars["mse_at_0"] < noisy.scalars["mse_at_0"]
            assert noisy.scalars["mse_at_0.4"] < clean.scalars["mse_at_0.4"]
            assert clean.scalars["mse_at_own_noise"] == clean.scalars["mse_at_0"]


def test_noise_is_added_to_what_goes_in_alone() -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    batch = {"x": torch.zeros(2_000, 4)}
    for noise in (0.0, 0.3):
        loss = Denoising(noise)(Same(), batch, Moment(0, 1))["loss"]
        assert float(loss) == pytest.approx(noise**2, rel=0.1)


def test_convolutions_and_the_users_network_get_images(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Conv2d(1, 1, 3, padding=1)\n"
        "def half():\n"
        "    return nn.Conv2d(1, 1, 3, stride=2)\n",
        encoding="utf-8",
    )
    experiment = small(
        networks="convolutional", noises="0.4", epochs=2, model=f"{file}:build"
    )
    found = trained(experiment)
    assert {r.condition["network"] for r in found} == {CONVOLUTIONAL, YOURS}
    for record in found:
        assert record.scalars["ratio_at_own_noise"] > 0
        assert record.arrays["rebuilt"].shape == (8, 1, 8, 8)
        assert record.arrays["noisy"].dtype == np.uint8
    with pytest.raises(UsageError, match=r"it must return \(2, 1, 8, 8\)"):
        small(model=f"{file}:half")


def test_layers_may_be_equally_wide() -> None:
    net = small(hidden="16,16").builder(DEEP)()
    sizes = [tuple(part.shape) for part in net.parameters() if part.ndim == 2]
    assert sizes == [(16, 64), (16, 16), (6, 16), (16, 6), (16, 16), (64, 16)]


def test_figures_show_what_was_recorded(records: Records) -> None:
    experiment = small()
    figures = experiment.figures(records)
    assert set(figures) == {"noises", "ratio", "images"}
    titles = [ax.get_title("left") for ax in figures["ratio"].figure.axes]
    assert titles == ["noise 0", "noise 0.4"]
    assert FILTER in figures["noises"].alt
    assert experiment.baselines(records)["mse_at_0.4"] == {
        "the noise left in": pytest.approx(0.16)
    }


def test_claims_are_on_networks_that_are_run() -> None:
    assert len(small().active_claims()) == 4
    assert len(small(noises="0.4").active_claims()) == 3
    (only,) = small(networks="linear").active_claims()
    assert only.metric == "excess"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 3}, "images of digits@.* are gray"),
        ({"code": 64}, "code=64 is no compression: .* has 64 numbers"),
        ({"noises": "-0.1,0.3"}, "must be from 0 to 10"),
        ({"noises": "0.3,0.1"}, "noises"),
        ({"networks": ""}, "name one in networks"),
        ({"size": 10}, "must be a multiple of 4, and it is 10"),
        ({"hidden": ()}, "no layers: give widths in hidden"),
        ({"size": 512}, "have a covariance of 549.8 GB"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**wrong)
