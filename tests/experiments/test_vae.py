"""The variational autoencoder: losses, records, closed forms, bad settings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nablab
from nablab import data, instruments, metrics, models
from nablab.contract import Condition, Records, Trial, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.vae import (
    DENSE,
    LINEAR,
    MEAN_LOSS,
    NONE,
    YOURS,
    NegativeElbo,
    Vae,
    _Images,
    _quantiles,
)
from nablab.lab.notebook import Notebook
from nablab.training.moments import Drawn, Moment

SEEDS = (0, 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> Vae:
    values: dict[str, Any] = {
        "data": "digits@300",
        "models": "dense",
        "hidden": "16",
        "betas": "0.5,1",
        "mean_betas": "1",
        "epochs": 8,
        "scored": 10,
        "draws": "1,50",
    }
    return resolve(Vae, "quick", {**values, **overrides})


def trained(experiment: Vae, seeds: tuple[int, ...] = SEEDS) -> Records:
    found = []
    for group in experiment.groups():
        trials = Trials(group, seeds)
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        found += list(lab.records())
    return Records(found)


@pytest.fixture(scope="module")
def records() -> Records:
    return trained(small())


def moment(seed: int = 0, **hyper: float) -> Moment:
    source = Drawn(torch.Generator().manual_seed(seed))
    return Moment(0, 100, 1.0, {"beta": 1.0, "scale": 1.0, **hyper}, source)


def test_all_weights_and_seeds_train_in_one_batch() -> None:
    experiment = small(models="dense,linear")
    sizes = [len(group) for group in experiment.groups()]
    assert sizes == [3, 1]
    assert [c["beta"] for c in experiment.groups()[0]] == [0.5, 1.0, 64.0]


def test_the_bound_is_what_distributions_say() -> None:
    net = models.dense_vae(6, 2, hidden=(5,)).double()
    x = (torch.rand(40, 6).double() < 0.3).double()
    noise = moment().normal(40, 2).double()

    class Given:
        """Draws that the test knows."""

        def normal(self, shape: tuple[int, ...]) -> Tensor:
            return noise

        def uniform(self, shape: tuple[int, ...]) -> Tensor:
            return torch.full(shape, 0.5)

    given = Moment(0, 1, 1.0, {"beta": 3.0, "scale": 1.0}, Given())  # type: ignore[arg-type]
    found = NegativeElbo()(net, {"x": x}, given)
    mean, log_variance = net.encode(x)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(2).double(), 1)
    divergence = torch.distributions.kl_divergence(q, prior).sum(1).mean()
    decoded = net.decode(mean + (log_variance / 2).exp() * noise)
    likely = torch.distributions.Bernoulli(logits=decoded).log_prob(x).sum(1).mean()
    torch.testing.assert_close(found["divergence"], divergence)
    torch.testing.assert_close(found["elbo"], likely - divergence)
    torch.testing.assert_close(found["loss"], 3 * divergence - likely)


def test_a_mean_over_pixels_is_a_weight_784_times_as_heavy() -> None:
    """Course D's loss: mean binary cross-entropy plus 0.001 times the divergence."""
    experiment = resolve(Vae, "course-d", {"data": "digits"})
    beta = experiment.beside_sum(1e-3)
    assert beta == 0.784
    net = models.dense_vae(784, 2, hidden=(8,)).double()
    x = (torch.rand(10, 784).double() < 0.3).double()

    def gradient(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, list(net.parameters()))
        return torch.cat([part.flatten() for part in found])

    mean, log_variance = net.encode(x)
    drawn = moment()
    drawn.uniform(10, 784)
    codes = mean + (log_variance / 2).exp() * drawn.normal(10, 2)
    cost = nn.functional.binary_cross_entropy_with_logits(net.decode(codes), x)
    theirs = cost + 1e-3 * metrics.divergence(mean, log_variance).mean()
    summed = NegativeElbo()(net, {"x": x}, moment(beta=beta))["loss"]
    averaged = NegativeElbo()(net, {"x": x}, moment(beta=beta, scale=1 / 784))["loss"]
    wanted = gradient(theirs)
    torch.testing.assert_close(gradient(averaged), wanted)
    torch.testing.assert_close(gradient(summed), 784 * wanted)


def test_pixels_are_drawn_anew_and_zeros_and_ones_stay() -> None:
    seen = []

    class Watching(nn.Module):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(x)
            return x[:, :1], x[:, :1]

        def decode(self, codes: Tensor) -> Tensor:
            return codes.expand(-1, 3)

    shares = torch.tensor([[0.0, 0.3, 1.0]]).expand(4_000, 3)
    for seed in (0, 1):
        NegativeElbo()(Watching(), {"x": shares}, moment(seed))
    metrics.check_binary(seen[0])
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].mean(0).tolist() == pytest.approx([0, 0.3, 1], abs=0.03)
    NegativeElbo()(Watching(), {"x": seen[0]}, moment(2))
    assert torch.equal(seen[0], seen[2])


def test_the_weight_rises_in_the_warmup() -> None:
    net = models.dense_vae(6, 2)
    batch = {"x": torch.ones(5, 6)}
    found = []
    for step in (0, 4, 9, 50):
        at = Moment(step, 100, 1.0, {"beta": 2.0, "scale": 1.0})
        values = NegativeElbo(10)(net, batch, at)
        extra = values["loss"] + values["elbo"]  # beyond the bound: (weight - 1) times
        found.append(float((extra / values["divergence"]).detach()) + 1)
    assert found == pytest.approx([0.2, 1.0, 2.0, 2.0], abs=1e-3)


def test_records_hold_what_was_measured(records: Records) -> None:
    for record in records:
        values = record.scalars
        total = values["test_reconstruction"] + values["test_divergence"]
        assert values["test_elbo"] == pytest.approx(-total)
        assert values["gap"] == pytest.approx(
            values["approximation_gap"] + values["amortization_gap"]
        )
        assert values["approximation_gap"] > -1e-3
        assert values["amortization_gap"] >= 0
        # one code is as good as the bound, many are better, the evidence is best
        noise = 4 * 3 / math.sqrt(10)
        assert values["iwae_1"] == pytest.approx(values["scored_elbo"], abs=noise)
        assert values["scored_elbo"] < values["log_likelihood"]
        assert values["iwae_50"] < values["log_likelihood"] + 0.1
        assert values["quadrature_change"] < 0.05
        assert record.arrays["samples"].shape == (12, 12, 1, 8, 8)
        assert record.arrays["ways"].shape == (4, 10, 1, 8, 8)
        assert (
            record.curves["test_elbo"].values[-1] > record.curves["test_elbo"].values[0]
        )


def test_test_images_are_the_same_for_all(records: Records) -> None:
    assert len({record.scalars["without_code"] for record in records}) == 1
    task = data.image_task("digits@300", size=8, channels=1)
    images = _Images.of(task, 7)
    metrics.check_binary(images.test)
    metrics.check_binary(images.seen)
    shares = images.train.mean(0)
    assert images.test.mean(0).tolist() == pytest.approx(shares.tolist(), abs=0.15)
    # each pixel alone, with its own chance
    chances = torch.distributions.Bernoulli(
        probs=((images.train.sum(0) + 0.5) / 301).clamp(1e-6)
    )
    wanted = float(chances.log_prob(images.test).sum(1).mean())
    assert images.without_code == pytest.approx(wanted, rel=1e-4)
    experiment = small()
    (found,) = experiment.baselines(records)["test_elbo"].values()
    assert found == records[0].scalars["without_code"]


def test_with_one_beside_the_mean_the_code_dies(records: Records) -> None:
    for record in records.where(mistake=MEAN_LOSS):
        assert record.condition["beta"] == 64
        assert record.scalars["active_units"] == 0
        assert record.notes["collapse"] == "2 of 2 units"
    for record in records.where(mistake=NONE):
        assert record.scalars["active_units"] > 0


def test_a_linear_model_reaches_probabilistic_pca() -> None:
    experiment = resolve(Vae, "quick", {"models": "linear", "linear_steps": 400})
    for record in trained(experiment, (0,)):
        assert 0 <= record.scalars["below_probabilistic_pca"] < 0.002
        assert record.scalars["noise_variance"] == pytest.approx(
            record.scalars["noise_of_pca"], rel=1e-2
        )


def test_codes_on_the_grid_stand_for_equal_shares() -> None:
    grid = _quantiles(3)
    edges = torch.special.ndtri(torch.tensor([1 / 6, 0.5, 5 / 6]))
    assert torch.equal(grid[:3, 0], edges)  # the first row, from left to right
    assert torch.allclose(grid[:3, 1], edges[2].expand(3))  # is the highest


def test_codes_of_other_sizes_have_no_evidence(records: Records) -> None:
    experiment = small(code=3, betas="1", mean_betas=(), epochs=1)
    assert [claim.metric for claim in experiment.active_claims()] == []
    for record in trained(experiment, (0,)):
        assert "log_likelihood" not in record.scalars
        assert {"iwae_1", "iwae_50", "test_elbo"} <= set(record.scalars)
        assert "ways" in record.arrays


OWN = """
from torch import nn

class Pair(nn.Module):
    def __init__(self, code=2, pixels=64):
        super().__init__()
        self.into, self.out = nn.Linear(64, 2 * code), nn.Linear(code, pixels)

    def encode(self, x):
        return self.into(x).chunk(2, dim=1)

    def decode(self, codes):
        return self.out(codes)

def build():
    return Pair()

def one_pixel():
    return Pair(pixels=1)

def wide():
    net = Pair()
    net.into = nn.Linear(65, 4)
    return net

def single():
    net = Pair()
    net.encode = lambda x: net.into(x)
    return net

def plain():
    return nn.Linear(64, 64)
"""


def test_an_encoder_and_decoder_pair_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "pair.py"
    file.write_text(OWN, encoding="utf-8")
    experiment = small(models=(), model=f"{file}:build", epochs=2)
    (condition,) = experiment.conditions()
    assert condition == Condition(model=YOURS, beta=1.0, mistake=NONE)
    for record in trained(experiment, (0,)):
        assert record.scalars["parameters"] == 64 * 4 + 4 + 2 * 64 + 64
        assert record.scalars["log_likelihood"] > record.scalars["scored_elbo"]
    for name, message in (
        ("plain", "has no method encode: give it encode"),
        ("single", r"encode of Pair must return two tensors .* returns \(2, 4\)"),
        ("wide", r"encode of Pair fails on a tensor \(2, 64\)"),
        ("one_pixel", r"decode of Pair must return logits \(N, 64\); .* \(2, 1\)"),
    ):
        with pytest.raises(UsageError, match=message):
            small(model=f"{file}:{name}")


@pytest.mark.parametrize("place", [0, 1], ids=["sum", "mean"])
def test_instruments_measure_the_loss_that_was_trained(place: int) -> None:
    """Gradient and Hessian of the bound, through a closure, against dense truth."""
    experiment = small(hidden="3", data="digits@40", betas="2", mean_betas="1")
    condition = experiment.conditions()[place]
    lab = Notebook(experiment, Trials(experiment.conditions(), SEEDS))
    torch.manual_seed(0)
    net = models.dense_vae(64, 2, hidden=(3,), activation="tanh").double()
    loss, (x, noise) = experiment.objective(Trial(condition, 0), lab)
    metrics.check_binary(x)
    x, noise = x.double(), noise.double()
    truth = _Bound(net, noise, condition)

    def value(flat: Tensor) -> Tensor:
        weights, start = {}, 0
        for name, part in net.named_parameters():
            piece = flat[start : start + part.numel()]
            weights[f"net.{name}"] = piece.view_as(part)
            start += part.numel()
        found: Tensor = torch.func.functional_call(truth, weights, (x,))
        return found

    point = nn.utils.parameters_to_vector(net.parameters()).detach()
    norm = instruments.gradient_norm(net, loss, [(x, noise)]).norm
    assert float(norm) == pytest.approx(float(torch.func.grad(value)(point).norm()))
    hessian = instruments.hessian_matrix(net, loss, [(x, noise)]).matrix
    wanted = torch.func.hessian(value)(point)
    torch.testing.assert_close(torch.as_tensor(hessian), wanted, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_kept_network_is_measured_on_its_own_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    run = nablab.run(
        "vae",
        preset="quick",
        data="digits@60",
        models=(DENSE, LINEAR),
        hidden=(3,),
        betas=(1.0,),
        mean_betas=(),
        epochs=2,
        linear_steps=5,
        scored=5,
        seeds=1,
        jobs=1,
    )
    for record in run.records:
        loss, pair = run.objective(record.condition, record.seed)
        net = run.model(record.condition, record.seed)
        found = instruments.gradient_norm(net, loss, [pair])
        if record.condition["model"] == LINEAR:
            bound = record.scalars["linear_elbo"]
        else:
            bound = record.scalars["train_elbo"]
        # Of one draw of pixels and codes, as against eight.
        assert float(found.loss) == pytest.approx(-bound, rel=0.02)


class _Bound(nn.Module):
    """The negative bound with a weight, written out once more."""

    def __init__(self, net: nn.Module, noise: Tensor, condition: Condition) -> None:
        super().__init__()
        self.net, self.noise, self.condition = net, noise, condition

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.net.encode(x)
        decoded = self.net.decode(mean + (log_variance / 2).exp() * self.noise)
        cost = nn.functional.binary_cross_entropy_with_logits(
            decoded, x, reduction="sum"
        ) / len(x)
        beta = self.condition["beta"]
        whole = cost + beta * metrics.divergence(mean, log_variance).mean()
        return whole / 64 if self.condition["mistake"] == MEAN_LOSS else whole


@pytest.mark.slow
def test_quadrature_and_5000_codes_agree_on_mnist() -> None:
    """With codes from the best distribution of each image, not from the encoder.

    An encoder that misses the posterior leaves even 5,000 codes nats below the evidence.
    """
    experiment = resolve(Vae, "full", {"data": "mnist@10000", "epochs": 10})
    trials = Trials(experiment.conditions(), (0,))
    lab = Notebook(experiment, trials)
    task = data.image_task("mnist@10000", size=28, channels=1)
    images = _Images.of(task, 0)
    (outcome,) = experiment._trained(trials, lab, images)
    net, x = outcome.module().eval(), images.test[:500]
    found = metrics.inference_gaps(net, x, metrics.Bernoulli())

    class Best(nn.Module):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            # Wider than the best: tails that are too thin spoil the weights.
            return found.mean, found.log_variance + 0.4

        def decode(self, codes: Tensor) -> Tensor:
            decoded: Tensor = net.decode(codes)  # type: ignore[operator]
            return decoded

    draw = torch.Generator().manual_seed(0)
    weighted = metrics.importance_weighted_bound(
        Best(), x, metrics.Bernoulli(), draws=5_000, generator=draw
    )
    evidence = float(found.quadrature.values.mean())
    assert evidence == pytest.approx(float(weighted.mean()), abs=0.05)


def test_figures_show_what_was_recorded(records: Records) -> None:
    experiment = small()
    figures = experiment.figures(records)
    assert set(figures) == {
        "map",
        "samples",
        "rate-distortion",
        "bounds",
        "ways",
        "learning",
    }
    panels = {"β = 0.5", "β = 1", "mean loss, β = 64"}
    assert set(figures["map"].table["panel"]) == panels
    assert set(figures["samples"].table["panel"]) == panels
    assert "amortization gap" in figures["bounds"].alt
    assert "β = 1" in figures["ways"].caption
    assert experiment.figures(Records([])) == {}


def test_claims_are_on_what_is_run() -> None:
    said = [claim.metric for claim in small(models="dense,linear").active_claims()]
    assert said == [
        "amortization_share",
        "below_probabilistic_pca",
        "test_elbo",
        "active_units",
    ]
    (only,) = small(models="linear").active_claims()
    assert only.where == {"model": LINEAR}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"code": 64}, "code=64 is no compression: .* has 64 numbers"),
        ({"betas": "-1,1"}, "must be from 0 to 1,?000"),
        ({"betas": (), "mean_betas": ()}, "nothing to train: name dense with betas"),
        ({"warmup": 1.0}, "warmup"),
        ({"draws": "10,1"}, "draws"),
        ({"size": 512, "models": "linear"}, "have a covariance of 549.8 GB"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**wrong)


def test_images_of_other_ranges_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, x=np.full((20, 8, 8), 1.5, np.float32), y=np.arange(20) % 2)
    with pytest.raises(UsageError, match=r"0 to 1|0\.\.1|0 \.\. 1"):
        trained(small(data=str(file)))
