"""An independent library agrees: curvlinops, on products, trace and eigenvalues."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from nablab.instruments import GaussNewtonOperator, HessianOperator, hessian_eigenvalues
from tests.instruments.networks import case

LOSSES = {"mse": nn.MSELoss(), "cross_entropy": nn.CrossEntropyLoss()}


@pytest.fixture(scope="module")
def curvlinops() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports are deprecated
        return pytest.importorskip("curvlinops")


def theirs(
    curvlinops: Any, kind: str, name: str, ragged: bool
) -> tuple[Any, Any, Any, Any]:
    model, loss, (x, y) = case(name)
    model.double()
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    data = [(x[:5], y[:5]), (x[5:], y[5:])] if ragged else [(x, y)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = getattr(curvlinops, kind)(
        model, LOSSES[loss], parameters, data, check_deterministic=False
    )
    return operator, model, loss, data


@pytest.mark.parametrize("ragged", [False, True])
# There is no layer norm: curvlinops is wrong through it.
@pytest.mark.parametrize("name", ["dense", "convolutional"])
@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("HessianLinearOperator", HessianOperator),
        ("GGNLinearOperator", GaussNewtonOperator),
    ],
)
def test_products(
    curvlinops: Any, kind: str, ours: Any, name: str, ragged: bool
) -> None:
    operator, model, loss, data = theirs(curvlinops, kind, name, ragged)
    mine = ours(model, loss, data)
    vector = torch.randn(mine.shape[0], dtype=torch.float64)
    torch.testing.assert_close(mine @ vector, operator @ vector, rtol=1e-8, atol=1e-10)


def test_eigenvalues(curvlinops: Any) -> None:
    operator, model, loss, data = theirs(
        curvlinops, "HessianLinearOperator", "dense", True
    )
    found = hessian_eigenvalues(model, loss, data, count=3, tolerance=1e-9)
    expected = np.sort(
        eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    )[::-1]
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
