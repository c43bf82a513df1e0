"""Extreme eigenvalues against prescribed spectra, closed forms, dense truth, SciPy."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.base.measurement import Size
from nablab.instruments.curvature import eigenvalues as module
from nablab.instruments.curvature.eigenvalues import eigenvalues_of, hessian_eigenvalues
from nablab.instruments.curvature.operators import HessianOperator
from tests.instruments.spectra import (
    dense_hessian,
    matrix,
    network,
    quadratic,
    tensors_alive,
)

GENERATOR = np.random.default_rng(0)
SPECTRA = {
    "cluster": np.concatenate([[1.0, 0.99], GENERATOR.uniform(0, 0.5, 198)]),
    "repeated": np.concatenate([[5.0, 5.0, 5.0, 4.0], GENERATOR.uniform(-1, 3, 196)]),
    "low rank": np.concatenate([np.linspace(1, 3, 20), np.zeros(180)]),
    "network": np.concatenate([np.linspace(5, 20, 10), GENERATOR.normal(0, 0.3, 190)]),
    "identity": np.ones(30),
    "zero": np.zeros(30),
    "one": np.array([-3.0]),
}


def expected(spectrum, count, which):
    ascending = np.sort(spectrum)
    return {
        "largest": ascending[::-1][:count],
        "smallest": ascending[:count],
        "magnitude": spectrum[np.argsort(-np.abs(spectrum), kind="stable")][:count],
        "both": np.concatenate([ascending[::-1][:count], ascending[:count][::-1]]),
    }[which]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "one"])
def test_prescribed_spectra(name, which, dtype):
    spectrum = SPECTRA[name]
    found = eigenvalues_of(matrix(spectrum, dtype=dtype), count=4, which=which)
    norm = np.abs(spectrum).max()
    truth = expected(spectrum, 4, which)
    assert found.converged
    assert found.pair_converged.all()
    assert (found.residuals <= 1e-4 * norm).all()
    # The error of a value is at most its residual; here gaps make it far smaller.
    assert np.abs(found.values - truth).max() <= max(1e-6 * norm, 1e-12)
    gram = found.vectors @ found.vectors.T
    assert np.abs(gram - np.eye(len(gram))).max() < 1e-4


def test_values_at_the_precision_that_is_asked_for():
    found = eigenvalues_of(matrix(SPECTRA["network"]), count=10, tolerance=1e-12)
    assert np.abs(found.values - np.sort(SPECTRA["network"])[::-1][:10]).max() < 1e-11
    assert found.residuals.max() <= 1e-12 * found.norm


def test_a_single_parameter():
    for which in ("largest", "smallest", "magnitude"):
        assert eigenvalues_of(matrix([-3.0]), which=which).values.tolist() == [-3.0]


def test_a_cluster_does_not_stop_early():
    """A power iteration that stops at a change of 1e-3 ends 2.7 % low here."""
    spectrum = np.concatenate([[1.0, 0.99], np.linspace(0.5, 0.98, 298)])
    dense = matrix(spectrum)
    found = eigenvalues_of(dense, count=2)
    assert found.converged
    assert found.values == pytest.approx([1.0, 0.99], abs=1e-6)
    vector, value, before = torch.ones(300, dtype=torch.float64) / 300**0.5, 0.0, 1.0
    while abs(value - before) > 1e-3 * abs(before):
        image = dense @ vector
        before = value or 1.0
        value = float(vector @ image)
        vector = image / image.norm()
    assert value < 0.98  # so this spectrum does catch that rule


def test_every_copy_of_a_repeated_eigenvalue_is_found():
    spectrum = np.concatenate([[7.0] * 5, np.linspace(-2, 3, 95)])
    found = eigenvalues_of(matrix(spectrum), count=6)
    assert found.values[:5] == pytest.approx(7, abs=1e-6)
    assert found.values[5] == pytest.approx(3, abs=1e-5)
    alone = eigenvalues_of(matrix(spectrum), count=6, certify=False)
    # One sequence sees one copy, and others only by rounding.
    assert (alone.values > 6).sum() < 5
    assert any("Not checked for repeated eigenvalues" in note for note in alone.notes)


def test_all_others_lie_where_it_says():
    """Also when what is left out repeats what is listed."""
    spectra = [
        SPECTRA["repeated"],
        SPECTRA["network"],
        np.concatenate([[9.0] * 3, np.zeros(60)]),
    ]
    for spectrum in spectra:
        for seed in range(20):
            found = eigenvalues_of(matrix(spectrum), count=2, which="both", seed=seed)
            rest = np.sort(spectrum)[2:-2]
            low, high = found.others
            slack = 1e-4 * found.norm
            assert low - slack <= rest.min()
            assert rest.max() <= high + slack


def test_the_check_says_when_it_could_not_certify():
    spectrum = np.concatenate([[5.0, 5.0], np.linspace(-1, 3, 198)])
    found = eigenvalues_of(matrix(spectrum))
    assert not found.certified
    assert found.others[1] > 5.05
    assert any(
        "may have been missed up to these limits" in note for note in found.notes
    )
    sure = eigenvalues_of(matrix(SPECTRA["network"]), count=10)
    assert sure.certified
    assert sure.others[1] < 5 + 0.01 * 20 + 1e-9


def test_restarts_change_nothing_but_the_memory(monkeypatch):
    spectrum = SPECTRA["cluster"]
    wide = eigenvalues_of(
        matrix(spectrum), count=3, which="both", tolerance=1e-8, certify=False
    )
    monkeypatch.setattr(module, "SPARE_ROWS", 0)
    narrow = eigenvalues_of(
        matrix(spectrum), count=3, which="both", tolerance=1e-8, certify=False
    )
    assert narrow.converged
    assert narrow.products > wide.products
    assert narrow.values == pytest.approx(wide.values, abs=1e-8)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_a_network_against_dense_truth_and_scipy(which):
    model, inputs, target = network()
    truth = np.linalg.eigvalsh(
        dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    )
    found = hessian_eigenvalues(
        model, "cross_entropy", (inputs, target), count=3, which=which, tolerance=1e-7
    )
    assert found.converged
    assert np.abs(found.values - expected(truth, 3, which)).max() < 1e-8
    operator = HessianOperator(model, "cross_entropy", (inputs, target))
    kind = {"largest": "LA", "smallest": "SA", "both": "BE"}[which]
    scipy = eigsh(
        operator.to_scipy(), k=len(found.values), which=kind, return_eigenvectors=False
    )
    assert np.abs(np.sort(found.values) - np.sort(scipy)).max() < 1e-8


def test_vectors_and_residuals_are_true():
    model, inputs, target = network()
    dense = dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    found = hessian_eigenvalues(
        model, "cross_entropy", (inputs, target), count=4, tolerance=1e-3
    )
    images = found.vectors @ dense
    measured = np.linalg.norm(images - found.values[:, None] * found.vectors, axis=1)
    assert found.residuals == pytest.approx(measured, rel=1e-6, abs=1e-12)
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(1)
    assert found.vectors.shape == (4, len(dense))
    assert found.vectors.dtype == np.float64


def test_linear_regression_in_closed_form():
    inputs = torch.randn(
        40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = hessian_eigenvalues(
        nn.Linear(6, 1, bias=False).double(),
        "mse",
        (inputs, torch.ones(40, 1)),
        count=6,
    )
    assert found.values == pytest.approx(
        np.linalg.eigvalsh(2 * inputs.T @ inputs / 40)[::-1], rel=1e-8
    )
    assert found.others is None
    assert found.certified


@pytest.mark.parametrize("classes", [1, 4])
def test_logistic_and_softmax_regression_in_closed_form(classes):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    model = nn.Linear(5, classes, bias=False).double()
    nn.init.normal_(model.weight, generator=generator)
    outputs = model(inputs).detach()
    if classes == 1:
        target = torch.randint(0, 2, (60, 1), generator=generator).double()
        loss = "binary_cross_entropy"
        chance = outputs.sigmoid()
        inner = (chance * (1 - chance))[:, :, None]
    else:
        target = torch.randint(0, classes, (60,), generator=generator)
        loss = "cross_entropy"
        chance = outputs.softmax(1)
        inner = torch.diag_embed(chance) - chance[:, :, None] * chance[:, None, :]
    closed = (
        torch.einsum("nab,ni,nj->aibj", inner, inputs, inputs).reshape(5 * classes, -1)
        / 60
    )
    truth = np.linalg.eigvalsh(closed.numpy())[::-1]
    for operator in ("hessian", "gauss-newton"):
        found = hessian_eigenvalues(
            model, loss, (inputs, target), count=3, operator=operator
        )
        assert found.values == pytest.approx(truth[:3], rel=1e-7)


def test_a_quadratic_through_the_model():
    spectrum = np.concatenate([[-4.0, 6.0], np.linspace(-1, 1, 48)])
    found = hessian_eigenvalues(*quadratic(spectrum), which="both")
    assert found.values == pytest.approx([6, -4], abs=1e-6)
    assert hessian_eigenvalues(
        *quadratic(spectrum), which="magnitude", count=2
    ).values == pytest.approx([6, -4], abs=1e-6)


def test_ragged_batches_and_cuts_agree_with_one_batch():
    model, inputs, target = network()
    whole = hessian_eigenvalues(
        model, "cross_entropy", (inputs, target), count=3, tolerance=1e-9
    )
    ragged = [
        (inputs[:37], target[:37]),
        (inputs[37:48], target[37:48]),
        (inputs[48:], target[48:]),
    ]
    for data, size in ((ragged, None), ((inputs, target), 7)):
        cut = hessian_eigenvalues(
            model, "cross_entropy", data, count=3, tolerance=1e-9, batch_size=size
        )
        assert cut.values == pytest.approx(whole.values, abs=1e-10)


def test_the_seed_decides_everything():
    dense = matrix(SPECTRA["network"])
    first, again, other = (
        eigenvalues_of(dense, count=3, seed=seed) for seed in (5, 5, 6)
    )
    assert (first.vectors == again.vectors).all()
    assert (first.vectors != other.vectors).any()
    assert first.values == pytest.approx(other.values, abs=1e-6)


def test_float32_weights_can_be_measured_in_float64():
    model, inputs, target = network(dtype=torch.float32)
    found = hessian_eigenvalues(
        model, "cross_entropy", (inputs, target), tolerance=1e-10, dtype=torch.float64
    )
    truth = np.linalg.eigvalsh(
        dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    )
    assert found.values[0] == pytest.approx(truth[-1], abs=1e-9)


def test_one_layer():
    model, inputs, target = network()
    dense = dense_hessian(model, nn.functional.cross_entropy, inputs, target)
    found = hessian_eigenvalues(
        model, "cross_entropy", (inputs, target), parameters="0.weight"
    )
    assert found.values[0] == pytest.approx(
        np.linalg.eigvalsh(dense[:32, :32])[-1], abs=1e-6
    )
    assert found.vectors.shape == (1, 32)


def test_too_few_products_are_said():
    found = eigenvalues_of(matrix(SPECTRA["cluster"]), count=3, max_products=6)
    assert not found.converged
    assert not found.pair_converged.all()
    assert found.products == 6 + 3
    assert "pairs converged in 6 products. Raise max_products" in found.notes[0]
    assert (found.residuals > 1e-4 * found.norm).any()
    assert found.others is None


def test_the_cost_is_counted_and_foretold():
    model, inputs, target = network()
    found = hessian_eigenvalues(model, "cross_entropy", (inputs, target), count=2)
    assert 2 * found.products <= found.gradients <= 3 * found.products + 6
    size = Size(parameters=len(found.vectors[0]), samples=50, outputs=3)
    foretold = hessian_eigenvalues.expected(size, count=2, seed=0)
    assert foretold.gradients / 3 < found.gradients < 3 * foretold.gradients
    assert eigenvalues_of(matrix(SPECTRA["network"])).gradients == 0


def test_measuring_leaves_no_trace():
    model, inputs, target = network()
    state = torch.get_rng_state()
    hessian_eigenvalues(model, "cross_entropy", (inputs, target))
    before = tensors_alive()
    for _ in range(50):
        hessian_eigenvalues(
            model, "cross_entropy", (inputs, target), max_products=3, certify=False
        )
    assert tensors_alive() == before
    assert (torch.get_rng_state() == state).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"count": 201},
            r"count=201 is impossible: the matrix has 200 eigenvalues.* "
            r"Give 1 to 200\.",
        ),
        ({"count": 0}, "count=0 is impossible"),
        (
            {"count": 101, "which": "both"},
            r"count=101 at each end is impossible.* Give 1 to 100\.",
        ),
        (
            {"which": "biggest"},
            "no choice of eigenvalues 'biggest'.*Choices: largest, smallest",
        ),
        (
            {"tolerance": 1e-9},
            r"tolerance=1e-09 is impossible in torch.float32.*dtype=torch.float64",
        ),
        ({"tolerance": 1.0}, "tolerance=1 is impossible"),
        ({"count": 5, "max_products": 4}, "max_products=4 is too few for 5 pairs"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        eigenvalues_of(matrix(SPECTRA["network"], dtype=torch.float32), **options)


def test_an_unknown_operator_is_refused():
    model, inputs, target = network()
    with pytest.raises(
        UsageError, match=r"no operator 'fisher'.*Choices: hessian, gauss-newton"
    ):
        hessian_eigenvalues(model, "cross_entropy", (inputs, target), operator="fisher")


def test_an_infinite_curvature_is_refused():
    model, _, data = quadratic([1.0, 2.0])
    with torch.no_grad():
        model.theta.zero_()
    loss = Closure(lambda model, batch: model.theta.abs().pow(1.5).sum())
    with pytest.raises(UsageError, match="no finite second derivative here"):
        hessian_eigenvalues(model, loss, data)


def test_too_little_memory_is_refused(monkeypatch):
    monkeypatch.setattr(module, "rows_that_fit", lambda matrix: 20)
    with pytest.raises(
        UsageError, match=r"10 eigenvectors of 200 entries need .* GB.*Ask for fewer"
    ):
        eigenvalues_of(matrix(SPECTRA["network"]), count=10)
    # This search takes restarts.
    assert eigenvalues_of(matrix(SPECTRA["network"]), count=2).converged


def test_the_figure_and_the_record():
    found = eigenvalues_of(matrix(SPECTRA["network"]), count=3, max_products=10)
    axes = found.plot().axes[0]
    assert axes.get_xlabel() == "place in the list"
    assert axes.get_ylabel() == "eigenvalue"
    assert "not converged" in axes.get_legend_handles_labels()[1]
    record = json.loads(json.dumps(found.to_dict()))
    assert record["values"] == found.values.tolist()
    assert record["converged"] is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [1e6, -1e6, 1e4, 1e3])
def test_the_interval_of_the_others_holds_them_beside_an_extreme_value(
    extreme: float, dtype: torch.dtype
) -> None:
    """The first random start beside 1e6 hardly sees more than the others' middle."""
    values = torch.linspace(0, 1, 100, dtype=dtype)
    values[50] = extreme
    others = torch.cat([values[:50], values[51:]])
    for seed in range(10):
        found = eigenvalues_of(torch.diag(values), which="magnitude", seed=seed)
        assert found.values[0] == pytest.approx(extreme, rel=1e-4)
        low, high = found.others
        assert low <= float(others.min())
        assert high >= float(others.max())
        assert found.certified
        assert max(-low, high) < abs(extreme)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
def test_the_others_lie_where_it_is_said_beside_one_large_eigenvalue(
    which: str, dtype: torch.dtype
) -> None:
    """Products in float32 beside 1e6 know the others to 0.1 only."""
    for size, large in ((50, 1e6), (300, -1e6), (40, 30.0)):
        spectrum = torch.linspace(0, 1, size, dtype=torch.float64)
        spectrum[0] = large
        rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
        matrix = (rotation * spectrum) @ rotation.T
        matrix = ((matrix + matrix.T) / 2).to(dtype)
        truth = torch.linalg.eigvalsh(matrix.double()).tolist()
        found = eigenvalues_of(matrix, which=which)
        for value in found.values:
            truth.remove(min(truth, key=lambda other, value=value: abs(other - value)))
        assert found.others is not None
        assert found.others[0] <= truth[0]
        assert truth[-1] <= found.others[1]
