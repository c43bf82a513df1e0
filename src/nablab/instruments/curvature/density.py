r"""The density of the Hessian's eigenvalues by Lanczos quadrature, with its error.

A random sign vector v of length one weighs every eigenvalue with the square of its
component. Lanczos from v gives the Gauss quadrature of that measure: nodes are the Ritz
values, weights the squared first components (Golub and Welsch 1969). The mean over
probes estimates the density (Lin, Saad and Yang 2016; Ubaru, Chen and Saad 2017;
Ghorbani, Krishnan and Xiao 2019).

The picture is sharp at the ends of the spectrum and blurred in the bulk, where a few
nodes stand for thousands of eigenvalues. It cannot say how many of those are positive.
`SpectralDensity.share_above` therefore works out how much weight may lie on the wrong
side of a threshold, and refuses where that is too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.curvature.lanczos import Krylov
from nablab.instruments.curvature.matrices import (
    Array,
    Curvature,
    Matrix,
    check_matrix,
    curvature,
    gradients_spent,
    notes_of,
    random_signs,
    require_rows,
    roundoff_of,
    rows_that_fit,
)
from nablab.instruments.curvature.stand_ins import by_products

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The kernel's width is a share of the range of the nodes: 100 widths across the
# picture.
WIDTH = 0.01
# Up to this many kernel widths beyond the outermost nodes, the density holds all but
# 6e-7 of its mass.
MARGIN = 5.0


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the eigenvalues.

    Attributes:
        value: The mean over probes of the middle of what the quadrature allows.
        low: The mean over probes of the least that it allows.
        high: The mean over probes of the most that it allows.
        standard_error: Of the mean over probes (`value`, `low` and `high` share it),
            from few random vectors.
    """

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class SpectralDensity(Measurement):
    """An estimate of the density of eigenvalues.

    Attributes:
        grid: Eigenvalues at which the density is given (points,).
        density: The mean over probes (points,); it integrates to 1.
        density_error: Its standard error over probes (points,).
        cumulative: The share of eigenvalues up to each point of the grid (points,),
            without a kernel.
        cumulative_error: Its standard error over probes (points,).
        width: Standard deviation of the Gaussian kernel; nothing finer than it can be
            seen in `density`.
        nodes: Ritz values of each probe (probes, steps), ascending; where Lanczos ended
            early the last is repeated with weight 0.
        weights: Their weights (probes, steps); each row sums to 1.
        residuals: Residual norms of the Ritz values (probes, steps).
        roundoff: An eigenvalue is known to no better than this (from the dtype of the
            products).
        products: Products with the matrix.
    """

    grid: Array
    density: Array
    density_error: Array
    cumulative: Array
    cumulative_error: Array
    width: float
    nodes: Array
    weights: Array
    residuals: Array
    roundoff: float
    products: int

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest Ritz value, its residual and rounding.

        An eigenvalue lies within that.
        """
        probe = int(self.nodes[:, 0].argmin())
        return float(self.nodes[probe, 0]), float(
            self.residuals[probe, 0]
        ) + self.roundoff

    @property
    def largest(self) -> tuple[float, float]:
        """The largest Ritz value, its residual and rounding.

        An eigenvalue lies within that.
        """
        last = np.where(self.weights > 0, self.nodes, -np.inf)
        probe, place = np.unravel_index(int(last.argmax()), last.shape)
        return float(self.nodes[probe, place]), float(
            self.residuals[probe, place]
        ) + self.roundoff

    def share_above(self, threshold: float, *, within: float = 0.01) -> Share:
        r"""Return the share of eigenvalues above a threshold, where it is resolved.

        Two bounds hold for each probe, and the narrower one counts. Chebyshev, Markov
        and Stieltjes: the true weight up to a node lies between the sums of weights
        before and after it. And by residuals: the Ritz vector y of a node at distance d
        from the threshold, with residual r, has a part of at most r / d on the other
        side, so that the roots of the true and of the counted weight differ by at most
        :math:`\sum_i \sqrt{w_i} \min(1, r_i / d_i)`.

        Args:
            threshold: Where to divide the spectrum. 0 asks for the sign of the bulk,
                which is refused except for spectra with a gap there.
            within: The widest interval between the two bounds that is accepted.

        Raises:
            UsageError: The threshold lies where the density does not resolve the
                eigenvalues.
        """
        bounds = np.array(
            [
                _bounds_above(*probe, threshold, self.roundoff)
                for probe in zip(self.nodes, self.weights, self.residuals, strict=True)
            ]
        )
        low, high = bounds.mean(0)
        if high - low > within:
            raise UsageError(
                f"The density does not resolve the eigenvalues near {threshold:g}: the "
                f"share above it lies between {low:.3g} and {high:.3g}, and its nodes "
                f"there are {self.spacing(threshold):.2g} apart (the kernel has width "
                f"{self.width:.2g}). Do not read a sign of the bulk from it. Use "
                "instruments.inertia, which counts exact eigenvalues; or more steps; "
                "or a threshold in a gap of the spectrum."
            )
        middle = bounds.mean(1)
        return Share(
            value=float(middle.mean()),
            low=float(low),
            high=float(high),
            standard_error=_standard_error(middle),
        )

    def spacing(self, threshold: float) -> float:
        """Return the mean distance between the two nodes around a threshold."""
        gaps = []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            held = nodes[weights > 0]
            place = int(
                np.clip(np.searchsorted(held, threshold), 1, max(len(held) - 1, 1))
            )
            gaps.append(float(held[place] - held[place - 1]) if len(held) > 1 else 0.0)
        return float(np.mean(gaps))

    def plot(self) -> Figure:
        """Plot the density on a logarithmic axis with two standard errors.

        The extreme Ritz values are marked.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.add_subplot()
        floor = max(float(self.density.max()) * 1e-7, 1e-300)
        low = np.maximum(self.density - 2 * self.density_error, floor)
        high = np.maximum(self.density + 2 * self.density_error, floor)
        axes.fill_between(
            self.grid,
            low,
            high,
            color="#0072b2",
            alpha=0.25,
            linewidth=0,
            label="± 2 standard errors",
        )
        axes.plot(
            self.grid,
            np.maximum(self.density, floor),
            color="#0072b2",
            linewidth=1.2,
            label="density",
        )
        for (value, residual), name, side in (
            (self.smallest, "smallest", "left"),
            (self.largest, "largest", "right"),
        ):
            axes.axvline(value, color="#d55e00", linewidth=0.8, linestyle="--")
            axes.text(
                value,
                1.01,
                f"{name} {value:.4g} ± {residual:.1g}",
                color="#d55e00",
                fontsize=8,
                ha=side,
                transform=axes.get_xaxis_transform(),
            )
        axes.set_yscale("log")
        axes.set(
            xlabel=f"eigenvalue (kernel width {self.width:.2g})",
            ylabel="density of eigenvalues",
        )
        axes.set_ylim(floor, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def _expected(size: Size, *, probes: int = 10, steps: int = 80, **_: Any) -> Expected:
    steps = min(steps, size.parameters)
    return Expected(2.5 * probes * steps, size.parameters * (steps + probes))


@instrument(expected=_expected, rehearse=by_products(lambda: density_of))
def spectral_density(
    model: torch.nn.Module,
    loss: Any,
    data: Any,
    *,
    probes: int = 10,
    steps: int = 80,
    width: float | None = None,
    points: int = 1000,
    operator: Curvature = "hessian",
    parameters: Any = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of the mean loss's Hessian.

    Args:
        model: Any module, in the mode in which it is measured.
        loss: A name, ``loss(output, target)``, or a `Closure`.
        data: One batch, an iterable of batches, or a data set.
        probes: Random vectors; the errors fall with their square root.
        steps: Lanczos steps for each, which set the resolution.
        width: Standard deviation of the kernel; by default 1 % of the range of the
            nodes.
        points: Points of the grid.
        operator: ``"hessian"`` or ``"gauss-newton"``.
        parameters: Names or glob patterns of the parameters.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches to bound the memory.
        seed: Seed of the probes.

    Raises:
        UsageError: Fewer than two probes, no step, or too little memory.

    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.diag(torch.tensor([2.0, 1.0]))
    >>> found = spectral_density(model, "mse", (inputs, torch.ones(2, 1)))
    >>> found.nodes.shape, found.share_above(2.0).value
    ((10, 2), 0.5)
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
    return density_of(
        matrix, probes=probes, steps=steps, width=width, points=points, seed=seed
    )


def density_of(
    matrix: Matrix,
    *,
    probes: int = 10,
    steps: int = 80,
    width: float | None = None,
    points: int = 1000,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of eigenvalues of a symmetric matrix from products.

    See `spectral_density`.

    Args:
        matrix: An operator, a dense symmetric tensor, or anything with ``matrix @
            vectors``.
        probes: See `spectral_density`.
        steps: See `spectral_density`.
        width: See `spectral_density`.
        points: See `spectral_density`.
        seed: See `spectral_density`.

    >>> found = density_of(torch.diag(torch.arange(1.0, 101.0)), steps=30)
    >>> round(float(np.trapezoid(found.density, found.grid)), 5)
    1.0
    """
    _check(matrix, probes, steps, width, points)
    spent = gradients_spent(matrix)
    steps = min(steps, matrix.shape[0])
    generator = torch.Generator().manual_seed(seed)
    runs: list[tuple[Array, Array, Array]] = []
    group = _group(matrix, probes, steps)
    for start in range(0, probes, group):
        signs = random_signs(matrix, min(group, probes - start), generator)
        runs += _quadratures(matrix, signs, steps)
    length = max(len(nodes) for nodes, _, _ in runs)
    # A run that ended early gets nodes of no weight.
    missing = [(0, length - len(run[0])) for run in runs]
    padded = list(zip(runs, missing, strict=True))
    nodes = np.stack([np.pad(run[0], pad, mode="edge") for run, pad in padded])
    weights = np.stack([np.pad(run[1], pad) for run, pad in padded])
    residuals = np.stack([np.pad(run[2], pad) for run, pad in padded])
    span = float(nodes.max() - nodes.min())
    scale = float(np.abs(nodes).max()) or 1.0
    # A spectrum of one point has no range; its size then sets the kernel.
    width = width or WIDTH * (span if span > 1e-6 * scale else scale)
    grid = np.linspace(
        nodes.min() - MARGIN * width, nodes.max() + MARGIN * width, points
    )
    densities, cumulatives = _on_grid(nodes, weights, grid, width)
    return SpectralDensity(
        grid=grid,
        density=densities.mean(0),
        density_error=densities.std(0, ddof=1) / np.sqrt(probes),
        cumulative=cumulatives.mean(0),
        cumulative_error=cumulatives.std(0, ddof=1) / np.sqrt(probes),
        width=width,
        nodes=nodes,
        weights=weights,
        residuals=residuals,
        roundoff=roundoff_of(matrix, scale),
        products=sum(len(nodes) for nodes, _, _ in runs),
        gradients=gradients_spent(matrix) - spent,
        notes=notes_of(matrix),
    )


def _quadratures(
    matrix: Matrix, starts: torch.Tensor, steps: int
) -> list[tuple[Array, Array, Array]]:
    """Return nodes, weights and residuals of Lanczos from each column.

    They run in lockstep for cheaper products.
    """
    runs = [Krylov(start, steps) for start in starts.T]
    going = runs
    while going:
        images = matrix @ torch.stack([run.newest for run in going], dim=1)
        for run, image in zip(going, images.T, strict=True):
            run.absorb(image)
        going = [run for run in going if run.coupling and not run.full]
    found = []
    for run in runs:
        values, rotation, residuals = run.ritz()
        found.append((values, rotation[0] ** 2, residuals))
    return found


def _on_grid(
    nodes: Array, weights: Array, grid: Array, width: float
) -> tuple[Array, Array]:
    """Return each probe's density and distribution function (probes, points)."""
    densities, cumulatives = [], []
    for place, weight in zip(nodes, weights, strict=True):
        kernel = np.exp(-0.5 * ((grid[:, None] - place) / width) ** 2) / (
            width * np.sqrt(2 * np.pi)
        )
        densities.append(kernel @ weight)
        steps = np.concatenate([[0.0], np.cumsum(weight)])
        cumulatives.append(steps[np.searchsorted(place, grid, side="right")])
    return np.stack(densities), np.stack(cumulatives)


def _bounds_above(
    nodes: Array, weights: Array, residuals: Array, threshold: float, roundoff: float
) -> tuple[float, float]:
    """Bound the weight above a threshold that one probe's quadrature allows."""
    held = weights > 0
    nodes, weights, residuals = nodes[held], weights[held], residuals[held]
    total = np.concatenate([[0.0], np.cumsum(weights)])
    # Up to the last node below, which rounding may have moved, all but that node's
    # weight is certain.
    before = int(np.searchsorted(nodes, threshold - roundoff))
    after = int(np.searchsorted(nodes, threshold + roundoff, side="right"))
    low, high = total[max(before - 1, 0)], total[min(after + 1, len(weights))]
    distance = np.maximum(np.abs(nodes - threshold), np.finfo(float).tiny)
    strayed = float(
        (np.sqrt(weights) * np.minimum(1, (residuals + roundoff) / distance)).sum()
    )
    below = float(weights[nodes <= threshold].sum())
    low = max(low, np.clip(np.sqrt(below) - strayed, 0, 1) ** 2)
    high = min(high, np.clip(np.sqrt(below) + strayed, 0, 1) ** 2)
    # The same holds for the weight above, which is the sharper statement where most
    # lies below.
    most = np.clip(np.sqrt(max(1 - below, 0.0)) + strayed, 0, 1) ** 2
    least = np.clip(np.sqrt(max(1 - below, 0.0)) - strayed, 0, 1) ** 2
    return float(max(1 - high, least)), float(min(1 - low, most))


def _group(matrix: Matrix, probes: int, steps: int) -> int:
    """Return how many probes run in lockstep."""
    require_rows(
        matrix, steps + 1, "Take fewer steps, or choose some parameters by parameters=."
    )
    if getattr(matrix, "cached", False):
        return 1  # a block saves nothing: the graph of the gradient is kept anyhow
    return max(1, min(probes, rows_that_fit(matrix) // (steps + 1)))


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _check(
    matrix: Matrix, probes: int, steps: int, width: float | None, points: int
) -> None:
    check_matrix(matrix)
    if probes < 2:
        raise UsageError(
            f"probes={probes} is too few: an error over probes needs at "
            "least 2. Try 10."
        )
    if steps < 1:
        raise UsageError(
            f"steps={steps} is impossible: Lanczos takes at least one step. Try 80."
        )
    if width is not None and not 0 < width < float("inf"):
        raise UsageError(
            f"width={width} is impossible: the kernel's standard "
            "deviation must be positive."
        )
    if points < 2:
        raise UsageError(
            f"points={points} is too few for a grid: give at least 2, such as 1000."
        )
