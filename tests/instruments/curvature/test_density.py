"""Spectral densities: mass, the cumulative distribution, errors, and refusals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Size
from nablab.instruments.curvature import matrices
from nablab.instruments.curvature.density import density_of, spectral_density
from tests.instruments.spectra import (
    dense_hessian,
    matrix,
    network,
    quadratic,
    tensors_alive,
)

GENERATOR = np.random.default_rng(0)
SPECTRA = {
    "uniform": GENERATOR.uniform(-1, 3, 300),
    "outliers": np.concatenate([np.linspace(5, 20, 10), GENERATOR.normal(0, 0.3, 290)]),
    "low rank": np.concatenate([np.linspace(1, 3, 30), np.zeros(270)]),
    "identity": np.full(50, 2.0),
    "zero": np.zeros(50),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_mass_and_moments(name):
    found = density_of(matrix(SPECTRA[name]), steps=40)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-4)
    assert found.weights.sum(1) == pytest.approx(1)
    assert found.cumulative[-1] == pytest.approx(1)
    assert found.cumulative[0] == 0
    mean = (found.weights * found.nodes).sum(1)
    error = mean.std(ddof=1) / 10**0.5
    assert abs(mean.mean() - SPECTRA[name].mean()) <= 4 * error + 1e-12


@pytest.mark.parametrize("name", ["uniform", "outliers", "low rank"])
def test_the_cumulative_distribution_against_the_exact_one(name):
    """A quadrature is right within the sampling error and one node's weight."""
    spectrum = SPECTRA[name]
    found = density_of(matrix(spectrum), probes=20, steps=60)
    exact = (spectrum[None, :] <= found.grid[:, None] + found.roundoff).mean(1)
    slack = 4 * found.cumulative_error + (
        found.weights.max(1).mean() if name == "low rank" else 0.06
    )
    assert (np.abs(found.cumulative - exact) <= slack).all()


def test_the_density_against_the_exact_one_under_the_same_kernel():
    spectrum = SPECTRA["outliers"]
    found = density_of(matrix(spectrum), probes=30, steps=80, width=0.2)
    kernel = np.exp(-0.5 * ((found.grid[:, None] - spectrum) / 0.2) ** 2) / (
        0.2 * (2 * np.pi) ** 0.5
    )
    exact = kernel.mean(1)
    assert (
        np.abs(found.density - exact) <= 4.5 * found.density_error + 1e-3 * exact.max()
    ).all()
    assert found.width == 0.2


def test_standard_errors_are_honest():
    dense, spectrum = matrix(SPECTRA["uniform"][:50]), SPECTRA["uniform"][:50]
    scores = []
    for seed in range(150):
        found = density_of(dense, probes=12, steps=15, points=200, width=0.5, seed=seed)
        place = int(np.abs(found.grid - 1.0).argmin())
        kernel = np.exp(-0.5 * ((found.grid[place] - spectrum) / 0.5) ** 2) / (
            0.5 * (2 * np.pi) ** 0.5
        )
        scores.append(
            (found.density[place] - kernel.mean()) / found.density_error[place]
        )
    assert abs(np.mean(scores)) < 0.3
    assert 0.85 < np.std(scores) < 1.3


def test_extremes_are_eigenvalues_within_their_residuals():
    found = density_of(matrix(SPECTRA["outliers"]), steps=30)
    for (value, residual), truth in (
        (found.largest, 20.0),
        (found.smallest, SPECTRA["outliers"].min()),
    ):
        assert abs(value - truth) <= residual + 1e-12
    assert found.largest[1] < 1e-6


@pytest.mark.parametrize("name", ["uniform", "outliers"])
def test_the_sign_of_the_bulk_is_refused(name):
    found = density_of(matrix(SPECTRA[name]), steps=30)
    message = (
        r"does not resolve the eigenvalues near 0: .* between .* apart "
        r".*Use instruments\.inertia"
    )
    with pytest.raises(UsageError, match=message):
        found.share_above(0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sign_of_zeros_is_refused_even_when_lanczos_ends_early(dtype):
    """A rank-30 matrix has no negative eigenvalue; rounding gives zeros a sign."""
    found = density_of(matrix(SPECTRA["low rank"], dtype=dtype), steps=60)
    with pytest.raises(UsageError, match="does not resolve"):
        found.share_above(0.0)
    share = found.share_above(0.5)
    assert share.low <= share.value <= share.high
    assert abs(share.value - 0.1) < 4 * share.standard_error + (share.high - share.low)


def test_a_share_across_a_gap_holds():
    spectrum = SPECTRA["outliers"]
    found = density_of(matrix(spectrum), probes=20, steps=40)
    share = found.share_above(3.0)
    assert abs(share.value - 10 / 300) < 4 * share.standard_error + (
        share.high - share.low
    )
    assert share.standard_error > 0
    assert found.share_above(-5.0).high == pytest.approx(1)
    assert found.share_above(-5.0).low > 0.998
    assert found.share_above(25.0).high < 1e-3


def test_bounds_of_a_share_hold_for_each_probe():
    """Each probe's true weight lies between the bounds at any threshold."""
    for name in ("uniform", "outliers", "low rank"):
        dense = matrix(SPECTRA[name])
        values, vectors = torch.linalg.eigh(dense)
        widths = []
        for seed in range(5):
            found = density_of(dense, probes=2, steps=25, seed=seed)
            signs = matrices.random_signs(dense, 2, torch.Generator().manual_seed(seed))
            weights = (vectors.T @ signs) ** 2 / 300
            for threshold in np.linspace(-1.5, 4, 45) + 1e-3:
                share = found.share_above(threshold, within=1.0)
                true = float(weights[values > threshold].sum(0).mean())
                assert share.low - 1e-10 <= true <= share.high + 1e-10
                widths.append(share.high - share.low)
        assert min(widths) < 5e-3
        assert max(widths) > 0.05


def test_a_network_against_dense_truth():
    model, inputs, target = network()
    truth = np.linalg.eigvalsh(
        dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    )
    found = spectral_density(
        model, "cross_entropy", (inputs, target), probes=20, steps=60, width=0.05
    )
    kernel = np.exp(-0.5 * ((found.grid[:, None] - truth) / 0.05) ** 2) / (
        0.05 * (2 * np.pi) ** 0.5
    )
    exact = kernel.mean(1)
    assert (
        np.abs(found.density - exact) <= 4.5 * found.density_error + 1e-3 * exact.max()
    ).all()
    assert found.largest[0] == pytest.approx(truth[-1], abs=1e-8)


def test_as_many_steps_as_rows_give_every_eigenvalue_once():
    found = density_of(matrix(np.linspace(-1, 1, 20)), steps=500)
    assert found.nodes.shape == (10, 20)
    assert np.allclose(found.nodes, np.linspace(-1, 1, 20), atol=1e-10)


def test_no_ghosts_in_the_density():
    spectrum = np.concatenate([[1000.0], np.linspace(0, 1, 119)])
    found = density_of(matrix(spectrum), steps=100, probes=5)
    assert ((found.nodes > 2).sum(1) == 1).all()


def test_gauss_newton_has_no_negative_node():
    model, inputs, target = network()
    found = spectral_density(
        model, "cross_entropy", (inputs, target), operator="gauss-newton", steps=30
    )
    assert found.nodes.min() > -1e-12
    hessian = spectral_density(model, "cross_entropy", (inputs, target), steps=30)
    assert hessian.nodes.min() < -1e-3


def test_batches_lockstep_and_seed(monkeypatch):
    model, inputs, target = network()
    whole = spectral_density(
        model, "cross_entropy", (inputs, target), steps=20, probes=4
    )
    ragged = [(inputs[:37], target[:37]), (inputs[37:], target[37:])]
    cut = spectral_density(model, "cross_entropy", ragged, steps=20, probes=4)
    assert cut.nodes == pytest.approx(whole.nodes, abs=1e-8)
    dense = matrix(SPECTRA["uniform"])
    together = density_of(dense, steps=20, probes=4)
    monkeypatch.setattr(matrices, "free_memory", lambda device: 2 * 300 * 8 * 25)
    alone = density_of(dense, steps=20, probes=4)
    assert alone.nodes == pytest.approx(together.nodes, abs=1e-9)
    assert (density_of(dense, steps=20, probes=4).nodes == alone.nodes).all()
    assert (density_of(dense, steps=20, probes=4, seed=1).nodes != alone.nodes).any()
    with pytest.raises(
        UsageError, match=r"31 vectors of 300 entries need .* Take fewer steps"
    ):
        density_of(dense, steps=30)


def test_the_cost_is_counted_and_foretold():
    found = spectral_density(*quadratic(SPECTRA["uniform"]), probes=3, steps=20)
    assert found.products == 60
    assert 2 * 60 <= found.gradients <= 3 * 60 + 6
    foretold = spectral_density.expected(Size(300, 3, 1), probes=3, steps=20)
    assert foretold.gradients / 1.5 < found.gradients < 1.5 * foretold.gradients


def test_measuring_leaves_no_trace():
    model, inputs, target = network()
    state = torch.get_rng_state()
    spectral_density(
        model, "cross_entropy", (inputs, target), probes=2, steps=2, points=10
    )
    before = tensors_alive()
    for _ in range(60):
        spectral_density(
            model, "cross_entropy", (inputs, target), probes=2, steps=2, points=10
        )
    assert tensors_alive() == before
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"probes": 1}, "probes=1 is too few: an error over probes needs at least 2"),
        ({"steps": 0}, "steps=0 is impossible"),
        ({"width": 0.0}, "width=0.0 is impossible"),
        ({"width": -1.0}, "width=-1.0 is impossible"),
        ({"points": 1}, "points=1 is too few"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        density_of(matrix(np.ones(5)), **options)


def test_the_figure_and_the_record():
    found = density_of(matrix(SPECTRA["outliers"]), steps=30)
    axes = found.plot().axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == f"eigenvalue (kernel width {found.width:.2g})"
    assert axes.get_ylabel() == "density of eigenvalues"
    assert axes.texts[1].get_text().startswith("largest 20 ±")
    record = json.loads(json.dumps(found.to_dict()))
    assert record["density"] == found.density.tolist()
