r"""The trace of the Hessian from products with random vectors, with its error.

- **Hutchinson** (1989): the mean of :math:`v^\top H v` over random signs v. Its error
  is :math:`\sqrt{2 \sum_{i \ne j} H_{ij}^2 / n}` after n products, large when a few
  eigenvalues dominate.
- **Hutch++** (Meyer, Musco, Musco and Woodruff 2021): the trace on a sketched range
  exactly, the rest by Hutchinson.
- **XTrace** (Epperly, Tropp and Webber 2024): every test vector serves both, by leaving
  one out at a time.

The sketches win where a few eigenvalues hold most of the trace: at 60 products XTrace
erred 1.3 to 10 times less than Hutchinson on trained perceptrons. Where the bulk holds
it Hutchinson's many samples win: 2.4 times on LeNet at 40 products. The standard errors
say which, so try both when it matters.

All are estimates of the Hessian of the mean loss: the trace does not grow with the
number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from nablab.errors import UsageError, unknown
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.curvature.matrices import (
    Array,
    Curvature,
    Matrix,
    check_matrix,
    curvature,
    gradients_spent,
    notes_of,
    require_rows,
)
from nablab.instruments.curvature.stand_ins import by_products
from nablab.instruments.curvature.trace_estimators import (
    BLOCK,
    exact_diagonal,
    hutch_plus_plus,
    hutchinson,
    xtrace,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["hutchinson", "hutch++", "xtrace"]

# Fewer products give no standard error.
LEAST_PRODUCTS = {"hutchinson": 2, "hutch++": 6, "xtrace": 4}


@dataclass(frozen=True, kw_only=True)
class Trace(Measurement):
    """An estimate of a trace.

    Attributes:
        value: The estimate: the mean of `estimates`.
        standard_error: Its standard error, from the scatter of the estimates; 0 if
            exact.
        estimates: What each test vector says (n,).
        method: How it was estimated; ``"exact"`` where there were as many products as
            parameters.
        products: Products with the matrix.
        parameters: Size of the matrix; ``value / parameters`` is the mean eigenvalue.
    """

    value: float
    standard_error: float
    estimates: Array
    method: str
    products: int
    parameters: int

    def plot(self) -> Figure:
        """Plot what each test vector says, their running mean, and the estimate."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        count = np.arange(1, len(self.estimates) + 1)
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        margin = 2 * self.standard_error
        axes.axhspan(
            self.value - margin,
            self.value + margin,
            color="#0072b2",
            alpha=0.2,
            linewidth=0,
            label="estimate ± 2 standard errors",
        )
        axes.plot(
            count,
            self.estimates,
            "o",
            markersize=3,
            color="#767676",
            label="one test vector",
        )
        axes.plot(
            count,
            np.cumsum(self.estimates) / count,
            color="#0072b2",
            label="mean so far",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="test vectors", ylabel="trace")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def _expected_trace(
    size: Size, *, method: str = "xtrace", products: int = 60, **_: Any
) -> Expected:
    products = min(products, size.parameters)
    held = {"hutchinson": 2 * BLOCK, "hutch++": products, "xtrace": 2 * products}.get(
        method, 0
    )
    return Expected(2.5 * products, size.parameters * held)


@instrument(expected=_expected_trace, rehearse=by_products(lambda: trace_of))
def hessian_trace(
    model: torch.nn.Module,
    loss: Any,
    data: Any,
    *,
    method: Method = "xtrace",
    products: int = 60,
    operator: Curvature = "hessian",
    parameters: Any = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Trace:
    """Estimate the trace of the Hessian of the mean loss.

    Args:
        model: Any module, in the mode in which it is measured.
        loss: A name, ``loss(output, target)``, or a `Closure`.
        data: One batch, an iterable of batches, or a data set.
        method: ``"xtrace"``, ``"hutch++"`` or ``"hutchinson"``; see the module.
        products: Products with the Hessian, all in all. With as many as parameters the
            trace is exact.
        operator: ``"hessian"`` or ``"gauss-newton"``.
        parameters: Names or glob patterns of the parameters.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches to bound the memory.
        seed: Seed of the test vectors.

    Raises:
        UsageError: An unknown method, too few products, or too little memory.

    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.diag(torch.tensor([2.0, 1.0]))
    >>> found = hessian_trace(model, "mse", (inputs, torch.ones(2, 1)))
    >>> found.value, found.standard_error, found.method
    (5.0, 0.0, 'exact')
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
    return trace_of(matrix, method=method, products=products, seed=seed)


def trace_of(
    matrix: Matrix, *, method: Method = "xtrace", products: int = 60, seed: int = 0
) -> Trace:
    """Estimate the trace of a symmetric matrix from its products.

    See `hessian_trace`.

    Args:
        matrix: An operator, a dense symmetric tensor, or anything with ``matrix @
            vectors``.
        method: See `hessian_trace`.
        products: See `hessian_trace`.
        seed: See `hessian_trace`.

    >>> found = trace_of(torch.diag(torch.arange(100.0)), products=40)
    >>> abs(found.value - 4950) < 4 * found.standard_error
    True
    """
    check_matrix(matrix)
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    spent = gradients_spent(matrix)
    size = matrix.shape[0]
    notes: tuple[str, ...] = ()
    if products >= size:
        estimates = np.array([exact_diagonal(matrix).sum()])
        error = 0.0
        used = size
        name = "exact"
        notes = (
            f"Exact: {products} products were allowed and the matrix has {size} rows.",
        )
    else:
        if products < LEAST_PRODUCTS[method]:
            raise UsageError(
                f"products={products} is too few for {method}: a standard error needs "
                f"at least {LEAST_PRODUCTS[method]}. 60 is a good start."
            )
        held = {"hutchinson": 2 * BLOCK, "hutch++": products, "xtrace": 2 * products}[
            method
        ]
        require_rows(matrix, held, "Use method='hutchinson', or fewer products.")
        generator = torch.Generator().manual_seed(seed)
        estimator = {
            "hutchinson": hutchinson,
            "hutch++": hutch_plus_plus,
            "xtrace": xtrace,
        }[method]
        estimates, error = estimator(matrix, products, generator)
        used, name = products - (products % 2 if method == "xtrace" else 0), method
    return Trace(
        value=float(estimates.mean()),
        standard_error=error,
        estimates=estimates,
        method=name,
        products=used,
        parameters=size,
        gradients=gradients_spent(matrix) - spent,
        notes=notes_of(matrix) + notes,
    )
