"""Diagonals: exact cases, unbiased entries, honest errors, sums by layer."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Size
from nablab.instruments.curvature.diagonal import diagonal_of, hessian_diagonal
from tests.instruments.spectra import dense_hessian, matrix, network, tensors_alive


def test_as_many_samples_as_parameters_are_exact():
    model, inputs, target = network()
    dense = dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    found = hessian_diagonal(model, "cross_entropy", (inputs, target), samples=115)
    assert found.values == pytest.approx(np.diag(dense), abs=1e-14)
    assert found.exact
    assert (found.standard_errors == 0).all()
    assert found.products == 115
    assert (
        "Exact: 115 products were allowed and the matrix has 115 rows."
    ) in found.notes
    assert sum(found.layers.values()) == pytest.approx(np.trace(dense))
    assert set(found.layer_errors.values()) == {0.0}


def test_entries_are_unbiased_and_their_errors_honest():
    dense = matrix(np.random.default_rng(0).uniform(-1, 3, 60))
    truth = torch.diagonal(dense).numpy()
    found = [diagonal_of(dense, samples=40, seed=seed) for seed in range(200)]
    errors = np.array([one.values - truth for one in found])
    stated = np.array([one.standard_errors for one in found])
    assert (np.abs(errors.mean(0)) < 4.5 * errors.std(0) / 200**0.5).all()
    ratio = (errors**2).mean() ** 0.5 / (stated**2).mean() ** 0.5
    assert ratio == pytest.approx(1, abs=0.05)
    # Student's t with 39 degrees
    assert (errors / stated).std() == pytest.approx(1.03, abs=0.05)
    # The variance of an entry in closed form: the squared rest of its row, over the
    # samples.
    off = (dense**2).sum(1).numpy() - truth**2
    assert (stated**2).mean(0) == pytest.approx(off / 40, rel=0.1)


def test_layers_against_dense_truth():
    model, inputs, target = network()
    dense = np.diag(dense_hessian(model, nn.functional.cross_entropy, inputs, target))
    found = hessian_diagonal(model, "cross_entropy", (inputs, target), samples=60)
    start = 0
    for name, parameter in model.named_parameters():
        truth = dense[start : start + parameter.numel()].sum()
        start += parameter.numel()
        assert abs(found.layers[name] - truth) < 4 * found.layer_errors[name]
    assert list(found.layers) == [name for name, _ in model.named_parameters()]
    assert sum(found.layers.values()) == pytest.approx(found.values.sum())
    assert not found.exact


def test_errors_of_layers_are_honest():
    model, inputs, target = network()
    dense = np.diag(dense_hessian(model, nn.functional.cross_entropy, inputs, target))
    truth = dense[:32].sum()
    scores = []
    for seed in range(60):
        found = hessian_diagonal(
            model,
            "cross_entropy",
            (inputs, target),
            samples=20,
            parameters="0.weight",
            seed=seed,
        )
        scores.append(
            (found.layers["0.weight"] - truth) / found.layer_errors["0.weight"]
        )
    assert abs(np.mean(scores)) < 0.5
    assert 0.75 < np.std(scores) < 1.35


def test_ragged_batches_agree_with_one_batch_and_the_seed_decides():
    model, inputs, target = network()
    whole = hessian_diagonal(model, "cross_entropy", (inputs, target), samples=20)
    ragged = [(inputs[:37], target[:37]), (inputs[37:], target[37:])]
    assert hessian_diagonal(
        model, "cross_entropy", ragged, samples=20
    ).values == pytest.approx(whole.values, abs=1e-12)
    other = hessian_diagonal(
        model, "cross_entropy", (inputs, target), samples=20, seed=1
    )
    assert (other.values != whole.values).any()


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    inputs = torch.randn(
        40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    model = nn.Linear(6, 1).double()
    first, second = (
        hessian_diagonal(model, "mse", (inputs, torch.ones(40, 1)), operator=operator)
        for operator in ("hessian", "gauss-newton")
    )
    assert first.values == pytest.approx(second.values)
    assert first.values[:6] == pytest.approx(2 * (inputs**2).mean(0).numpy())


def test_the_cost_is_counted_and_foretold():
    model, inputs, target = network()
    found = hessian_diagonal(model, "cross_entropy", (inputs, target), samples=30)
    foretold = hessian_diagonal.expected(Size(115, 50, 3), samples=30)
    assert foretold.gradients / 1.5 < found.gradients < 1.5 * foretold.gradients


def test_measuring_leaves_no_trace():
    model, inputs, target = network()
    hessian_diagonal(model, "cross_entropy", (inputs, target), samples=2)
    before = tensors_alive()
    for _ in range(60):
        hessian_diagonal(model, "cross_entropy", (inputs, target), samples=2)
    assert tensors_alive() == before


def test_too_few_samples_are_refused():
    with pytest.raises(
        UsageError, match="samples=1 is too few: a standard error needs at least 2"
    ):
        diagonal_of(matrix(np.ones(5)), samples=1)


def test_the_figure_and_the_record():
    model, inputs, target = network()
    found = hessian_diagonal(model, "cross_entropy", (inputs, target))
    axes = found.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found.layers)
    assert axes.get_xlabel() == "trace of the block of the Hessian, ± 2 standard errors"
    assert json.loads(json.dumps(found.to_dict()))["layers"] == found.layers
