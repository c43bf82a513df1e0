r"""The diagonal of the Hessian and its blocks' traces, by random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.curvature.matrices import (
    Array,
    Curvature,
    Matrix,
    check_matrix,
    curvature,
    gradients_spent,
    notes_of,
)
from nablab.instruments.curvature.operators import Operator
from nablab.instruments.curvature.stand_ins import by_products
from nablab.instruments.curvature.trace_estimators import (
    BLOCK,
    exact_diagonal,
    sign_products,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Diagonal(Measurement):
    """An estimate of a diagonal.

    Attributes:
        values: The entries (P,), in the order of the parameters.
        standard_errors: Their standard errors (P,); 0 if exact.
        layers: The trace of each parameter's block, by name.
        layer_errors: The standard errors of those.
        exact: Whether the entries are exact (one product for each parameter).
        products: Products with the matrix.
    """

    values: Array
    standard_errors: Array
    layers: dict[str, float]
    layer_errors: dict[str, float]
    exact: bool
    products: int

    def plot(self) -> Figure:
        """Plot the trace of each parameter's block, with two standard errors."""
        from matplotlib.figure import Figure

        layers = self.layers or {"all parameters": float(self.values.sum())}
        errors = self.layer_errors or {
            "all parameters": float(np.linalg.norm(self.standard_errors))
        }
        place = np.arange(len(layers))
        figure = Figure(figsize=(6, 1.2 + 0.35 * len(layers)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color="#767676", linewidth=0.6)
        axes.errorbar(
            list(layers.values()),
            place,
            xerr=[2 * error for error in errors.values()],
            fmt="o",
            markersize=5,
            color="#0072b2",
            capsize=3,
        )
        axes.set_yticks(place, list(layers))
        axes.invert_yaxis()
        axes.set_xlabel(
            "trace of the block of the Hessian"
            + ("" if self.exact else ", ± 2 standard errors")
        )
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def _expected(size: Size, *, samples: int = 30, **_: Any) -> Expected:
    return Expected(
        2.5 * min(samples, size.parameters), (2 * BLOCK + 4) * size.parameters
    )


@instrument(expected=_expected, rehearse=by_products(lambda: diagonal_of))
def hessian_diagonal(
    model: torch.nn.Module,
    loss: Any,
    data: Any,
    *,
    samples: int = 30,
    operator: Curvature = "hessian",
    parameters: Any = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Diagonal:
    r"""Estimate the diagonal of the mean loss's Hessian, and its sum by parameter.

    The estimate is the mean of :math:`v \odot H v` over random signs v (Bekas,
    Kokiopoulou and Saad 2007); the variance of entry i is :math:`\sum_{j \ne i}
    H_{ij}^2 / n`.

    Args:
        model: Any module, in the mode in which it is measured.
        loss: A name, ``loss(output, target)``, or a `Closure`.
        data: One batch, an iterable of batches, or a data set.
        samples: Products with random signs. With as many as parameters unit vectors are
            taken instead, and the diagonal is exact.
        operator: ``"hessian"`` or ``"gauss-newton"``.
        parameters: Names or glob patterns of the parameters.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches to bound the memory.
        seed: Seed of the random signs.

    Raises:
        UsageError: Fewer than two samples.

    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.diag(torch.tensor([2.0, 1.0]))
    >>> found = hessian_diagonal(model, "mse", (inputs, torch.ones(2, 1)))
    >>> found.values.tolist(), found.layers
    ([4.0, 1.0], {'weight': 5.0})
    """
    matrix = curvature(
        model,
        loss,
        data,
        operator=operator,
        parameters=parameters,
        dtype=dtype,
        batch_size=batch_size,
    )
    return diagonal_of(matrix, samples=samples, seed=seed)


def diagonal_of(matrix: Matrix, *, samples: int = 30, seed: int = 0) -> Diagonal:
    """Estimate the diagonal of a symmetric matrix from products.

    See `hessian_diagonal`.

    Args:
        matrix: An operator, a dense symmetric tensor, or anything with ``matrix @
            vectors``.
        samples: See `hessian_diagonal`.
        seed: See `hessian_diagonal`.

    >>> diagonal_of(torch.diag(torch.tensor([3.0, 1.0]))).values.tolist()
    [3.0, 1.0]
    """
    check_matrix(matrix)
    size, spent = matrix.shape[0], gradients_spent(matrix)
    if samples < 2 and samples < size:
        raise UsageError(
            f"samples={samples} is too few: a standard error needs at least 2. Try 30."
        )
    exact = samples >= size
    notes: tuple[str, ...] = ()
    if exact:
        values, errors = exact_diagonal(matrix), np.zeros(size)
        layers = {
            name: float(part.sum())
            for name, part in _by_layer(matrix, torch.from_numpy(values)).items()
        }
        layer_errors = dict.fromkeys(layers, 0.0)
        notes = (
            f"Exact: {samples} products were allowed and the matrix has {size} rows.",
        )
    else:
        values, errors, layers, layer_errors = _sampled_diagonal(matrix, samples, seed)
    return Diagonal(
        values=values,
        standard_errors=errors,
        layers=layers,
        layer_errors=layer_errors,
        exact=exact,
        products=min(samples, size),
        gradients=gradients_spent(matrix) - spent,
        notes=notes_of(matrix) + notes,
    )


def _sampled_diagonal(
    matrix: Matrix, samples: int, seed: int
) -> tuple[Array, Array, dict[str, float], dict[str, float]]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(matrix.shape[0], dtype=torch.float64, device=matrix.device)
    square, done = torch.zeros_like(mean), 0
    sums: dict[str, list[float]] = {}
    for signs, image in sign_products(matrix, samples, generator):
        for sign, product in zip(signs.T, image.T, strict=True):
            row = (sign * product).double()
            done += 1
            # Welford's update: no cancellation where the scatter is small
            step = row - mean
            mean += step / done
            square += step * (row - mean)
            for name, part in _by_layer(matrix, row).items():
                sums.setdefault(name, []).append(float(part.sum()))
        del signs, image, sign, product, row  # before the next block is made
    errors = (square / (samples * (samples - 1))).sqrt()
    layers = {name: float(np.mean(part)) for name, part in sums.items()}
    layer_errors = {
        name: float(np.std(part, ddof=1) / math.sqrt(samples))
        for name, part in sums.items()
    }
    return mean.cpu().numpy(), errors.cpu().numpy(), layers, layer_errors


def _by_layer(matrix: Matrix, vectors: Tensor) -> dict[str, Tensor]:
    return matrix.objective.unflatten(vectors) if isinstance(matrix, Operator) else {}
