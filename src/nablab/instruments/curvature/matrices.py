"""What the iterative instruments need of a matrix: its products, and checks."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nablab.errors import UsageError, unknown
from nablab.instruments.base.graphs import free_memory
from nablab.instruments.curvature.gauss_newton import GaussNewtonOperator
from nablab.instruments.curvature.operators import HessianOperator, Operator

Array = NDArray[np.float64]
Curvature = Literal["hessian", "gauss-newton"]

NOT_FINITE = (
    "{what} holds {bad} entries that are NaN or infinite, although weights, data and "
    "loss are finite: the loss has no finite second derivative here (a square root or "
    "a norm at zero does this). Smooth that function, or measure at another point."
)
MEMORY_SHARE = 0.5  # of the free memory may be filled with vectors


class Matrix(Protocol):
    """A symmetric matrix (P, P): an `Operator`, a dense tensor, or your own class."""

    @property
    def shape(self) -> Any:
        """(P, P)."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors."""

    @property
    def device(self) -> torch.device:
        """Where vectors live."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with a vector (P,) or a block (P, k)."""


def curvature(
    model: torch.nn.Module,
    loss: Any,
    data: Any,
    *,
    operator: Curvature,
    parameters: Any,
    dtype: torch.dtype | None,
    batch_size: int | None,
) -> Operator:
    """Return the Hessian or the Gauss-Newton matrix as an operator.

    Raises:
        UsageError: ``operator`` is neither.
    """
    if operator not in get_args(Curvature):
        raise unknown("operator", operator, get_args(Curvature))
    kind = HessianOperator if operator == "hessian" else GaussNewtonOperator
    return kind(
        model, loss, data, parameters=parameters, dtype=dtype, batch_size=batch_size
    )


def gradients_spent(matrix: Matrix) -> float:
    """Return a matrix' gradient evaluations so far, or 0 if it counts none."""
    return matrix.objective.spent if isinstance(matrix, Operator) else 0.0


def notes_of(matrix: Matrix) -> tuple[str, ...]:
    """Return what a matrix has to say of itself."""
    return matrix.objective.notes if isinstance(matrix, Operator) else ()


def random_vector(matrix: Matrix, generator: torch.Generator) -> Tensor:
    """Draw a standard normal vector (P,).

    It is drawn on the CPU, so that every device gets the same.
    """
    return torch.randn(matrix.shape[0], generator=generator, dtype=matrix.dtype).to(
        matrix.device
    )


def random_signs(matrix: Matrix, count: int, generator: torch.Generator) -> Tensor:
    """Draw Rademacher vectors (P, count) on the CPU: every entry is 1 or -1."""
    bits = torch.randint(
        0, 2, (count, matrix.shape[0]), generator=generator, dtype=torch.int8
    )
    return (2 * bits - 1).T.to(matrix.device, matrix.dtype)


def rows_that_fit(matrix: Matrix) -> int:
    """Return how many vectors of the matrix' size may be held at once."""
    return int(
        MEMORY_SHARE
        * free_memory(matrix.device)
        / (true_rows(matrix) * matrix.dtype.itemsize)
    )


def true_rows(matrix: Matrix) -> int:
    """Return a matrix' rows; of a stand-in, those of the true matrix."""
    rows: int = getattr(matrix, "stands_for", matrix.shape[0])
    return rows


def require_rows(matrix: Matrix, rows: int, remedy: str) -> None:
    """Refuse what would not fit in memory.

    Raises:
        UsageError: ``rows`` vectors need more than half of the free memory.
    """
    if rows > rows_that_fit(matrix):
        gigabytes = rows * true_rows(matrix) * matrix.dtype.itemsize / 1e9
        free = free_memory(matrix.device) / 1e9
        raise UsageError(
            f"{rows} vectors of {true_rows(matrix):,} entries need {gigabytes:.3g} GB, "
            f"more than half of the {free:.3g} GB that are free. {remedy}"
        )


def check_matrix(matrix: Matrix) -> None:
    """Refuse what is not a square matrix of real floating-point numbers.

    Raises:
        UsageError: As the summary says.
    """
    if (
        len(matrix.shape) != 2
        or matrix.shape[0] != matrix.shape[1]
        or not matrix.dtype.is_floating_point
    ):
        raise UsageError(
            f"A {type(matrix).__name__} of shape {tuple(matrix.shape)} and "
            f"{matrix.dtype} is not a symmetric real matrix. Give a HessianOperator, a "
            "GaussNewtonOperator or a square tensor of floating-point numbers."
        )


def roundoff_of(matrix: Matrix, scale: float) -> float:
    """Return the precision of an eigenvalue of a matrix of norm ``scale``.

    It depends on the matrix' dtype.
    """
    # Rounding of a product adds up over entries as a random walk; ten such lengths are
    # safe.
    return 10 * math.sqrt(matrix.shape[0]) * torch.finfo(matrix.dtype).eps * scale


def finite_norm(image: Tensor) -> float:
    """Return the norm of a product, or raise an error if it is not finite.

    Raises:
        UsageError: It is not finite: the loss has no finite second derivative at this
            point.
    """
    norm = float(image.norm())
    if not math.isfinite(norm):
        bad = int((~image.isfinite()).sum())
        raise UsageError(NOT_FINITE.format(what="A product with the matrix", bad=bad))
    return norm
