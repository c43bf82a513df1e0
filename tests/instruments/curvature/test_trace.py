"""Traces: exact cases, unbiased estimates, honest standard errors."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Size
from nablab.instruments.curvature import matrices
from nablab.instruments.curvature import trace as module
from nablab.instruments.curvature.trace import hessian_trace, trace_of
from tests.instruments.spectra import (
    dense_hessian,
    matrix,
    network,
    quadratic,
    tensors_alive,
)

METHODS = ["hutchinson", "hutch++", "xtrace"]
GENERATOR = np.random.default_rng(0)
SPECTRA = {
    "flat": GENERATOR.uniform(1, 3, 100),
    "fast decay": 0.8 ** np.arange(100),
    "slow decay": np.arange(1, 101) ** -2.0,
    "network": np.concatenate([np.linspace(5, 20, 10), GENERATOR.normal(0, 0.3, 90)]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPECTRA)
def test_estimates_are_unbiased_and_their_errors_honest(name, method):
    """Over 200 seeds, errors over their standard errors are standard normal."""
    dense, truth = matrix(SPECTRA[name]), SPECTRA[name].sum()
    found = [
        trace_of(dense, method=method, products=48, seed=seed) for seed in range(200)
    ]
    errors = np.array([one.value - truth for one in found])
    stated = np.array([one.standard_error for one in found])
    assert abs(errors.mean()) < 4 * errors.std() / 200**0.5
    assert 0.85 < (errors**2).mean() ** 0.5 / (stated**2).mean() ** 0.5 < 1.18
    scores = errors / stated
    assert 0.85 < scores.std() < 1.3
    assert (np.abs(scores) > 2).mean() < 0.13
    assert all(one.products == 48 for one in found)


def test_xtrace_is_leaving_one_out_and_its_error_leaving_two_out():
    """By the definition, with a new orthonormal basis for each set of vectors."""
    dense = matrix(SPECTRA["network"])
    found = trace_of(dense, method="xtrace", products=12, seed=3)
    tests = torch.randn(
        6, 100, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).T

    def left_out(place, *others):
        used = [k for k in range(6) if k not in (place, *others)]
        basis = torch.linalg.qr(dense @ tests[:, used]).Q
        rest = tests[:, place] - basis @ (basis.T @ tests[:, place])
        outside = (100 - len(used)) / (rest @ rest) * (rest @ dense @ rest)
        return float(torch.trace(basis.T @ dense @ basis) + outside)

    one = np.array([left_out(i) for i in range(6)])
    change = np.array(
        [[one[i] - left_out(i, j) if i != j else 0 for j in range(6)] for i in range(6)]
    )
    covariance = (change * change.T).sum() / 30
    assert covariance > 0  # or the clip would hide what is tested
    assert found.estimates == pytest.approx(one, rel=1e-10)
    assert found.value == pytest.approx(one.mean())
    assert found.standard_error == pytest.approx(
        (one.var(ddof=1) / 6 + covariance) ** 0.5, rel=1e-8
    )


def test_sketches_win_where_few_eigenvalues_dominate():
    dense = matrix(SPECTRA["fast decay"])
    errors = {
        method: trace_of(dense, method=method, products=60).standard_error
        for method in METHODS
    }
    assert errors["xtrace"] < errors["hutch++"] < errors["hutchinson"] / 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_low_rank_is_exact_up_to_rounding(method, dtype):
    dense = matrix(np.concatenate([[3.0, 2.0, 1.0, -1.0], np.zeros(96)]), dtype=dtype)
    for seed in range(20):
        found = trace_of(dense, method=method, products=30, seed=seed)
        assert abs(found.value - 5) <= 3 * found.standard_error
        assert 0 < found.standard_error < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix(method):
    found = trace_of(torch.zeros(50, 50), method=method, products=12)
    assert found.value == found.standard_error == 0


@pytest.mark.parametrize("method", METHODS)
def test_as_many_products_as_rows_are_exact(method):
    found = trace_of(matrix(SPECTRA["flat"]), method=method, products=100)
    assert found.value == pytest.approx(SPECTRA["flat"].sum(), rel=1e-13)
    assert found.standard_error == 0
    assert found.method == "exact"
    assert found.products == 100
    assert (
        "Exact: 100 products were allowed and the matrix has 100 rows."
    ) in found.notes


def test_a_diagonal_matrix_costs_hutchinson_nothing():
    """Random signs square to one; normal vectors would scatter here."""
    found = trace_of(torch.diag(torch.arange(30.0)), method="hutchinson", products=2)
    assert found.value == 435
    assert found.standard_error == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_network_against_dense_truth(method):
    model, inputs, target = network()
    truth = np.trace(dense_hessian(model, nn.functional.cross_entropy, inputs, target))
    found = hessian_trace(
        model, "cross_entropy", (inputs, target), method=method, products=60
    )
    assert abs(found.value - truth) < 4 * found.standard_error
    assert found.standard_error < 0.2 * truth
    exact = hessian_trace(
        model, "cross_entropy", (inputs, target), method=method, products=1000
    )
    assert exact.value == pytest.approx(truth, rel=1e-12)
    assert exact.parameters == exact.products == 115


def test_linear_regression_in_closed_form():
    inputs = torch.randn(
        40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    model = nn.Linear(6, 3, bias=False).double()
    found = hessian_trace(model, "mse", (inputs, torch.ones(40, 3)))
    assert found.value == pytest.approx(2 * float((inputs**2).sum()) / 40, rel=1e-12)


def test_a_quadratic_through_the_model():
    found = hessian_trace(*quadratic(SPECTRA["flat"]), products=50)
    assert abs(found.value - SPECTRA["flat"].sum()) < 4 * found.standard_error


def test_the_trace_is_of_the_mean_over_data_however_it_is_cut():
    model, inputs, target = network()
    whole = hessian_trace(model, "cross_entropy", (inputs, target), products=20)
    ragged = [
        (inputs[:37], target[:37]),
        (inputs[37:48], target[37:48]),
        (inputs[48:], target[48:]),
    ]
    for data, size in ((ragged, None), ((inputs, target), 7)):
        cut = hessian_trace(model, "cross_entropy", data, products=20, batch_size=size)
        assert cut.value == pytest.approx(whole.value, rel=1e-10)
    twice = hessian_trace(model, "cross_entropy", [(inputs, target)] * 2, products=20)
    assert twice.value == pytest.approx(whole.value, rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(method):
    dense = matrix(SPECTRA["flat"])
    first, again, other = (
        trace_of(dense, method=method, products=20, seed=seed) for seed in (5, 5, 6)
    )
    assert first.value == again.value != other.value


def test_the_cost_is_counted_and_foretold():
    model, inputs, target = network()
    for method in METHODS:
        found = hessian_trace(
            model, "cross_entropy", (inputs, target), method=method, products=30
        )
        assert 2 * found.products <= found.gradients <= 3 * found.products + 6
        foretold = hessian_trace.expected(Size(115, 50, 3), method=method, products=30)
        assert foretold.gradients / 1.5 < found.gradients < 1.5 * foretold.gradients


def test_measuring_leaves_no_trace():
    model, inputs, target = network()
    state = torch.get_rng_state()
    hessian_trace(model, "cross_entropy", (inputs, target), products=4)
    before = tensors_alive()
    for _ in range(60):
        hessian_trace(model, "cross_entropy", (inputs, target), products=4)
    assert tensors_alive() == before
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"method": "hutch"},
            "no method 'hutch'.*Did you mean.*Choices: hutchinson, hutch\\+\\+, xtrace",
        ),
        (
            {"method": "xtrace", "products": 3},
            "products=3 is too few for xtrace.*at least 4",
        ),
        (
            {"method": "hutch++", "products": 5},
            r"products=5 is too few for hutch\+\+.*at least 6",
        ),
        (
            {"method": "hutchinson", "products": 1},
            "products=1 is too few for hutchinson.*at least 2",
        ),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        trace_of(matrix(SPECTRA["flat"]), **options)


def test_too_little_memory_is_refused(monkeypatch):
    monkeypatch.setattr(matrices, "free_memory", lambda device: 2 * 100 * 8 * 50)
    with pytest.raises(
        UsageError, match=r"vectors of 100 entries need .* Use method='hutchinson'"
    ):
        trace_of(matrix(SPECTRA["flat"]), products=60)
    assert (
        trace_of(matrix(SPECTRA["flat"]), products=60, method="hutchinson").products
        == 60
    )


def test_a_product_that_is_not_finite_is_refused():
    dense = torch.eye(20)
    dense[3, 3] = torch.nan
    for method in METHODS:
        with pytest.raises(UsageError, match="no finite second derivative"):
            trace_of(dense, method=method, products=10)


def test_the_figure_and_the_record():
    found = trace_of(matrix(SPECTRA["network"]), products=20)
    axes = found.plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("test vectors", "trace")
    assert axes.lines[1].get_ydata()[-1] == pytest.approx(found.value)
    assert (
        json.loads(json.dumps(found.to_dict()))["standard_error"]
        == found.standard_error
    )
    assert set(METHODS) == set(module.LEAST_PRODUCTS)
