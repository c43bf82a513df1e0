r"""Principal components of a path through weight space, by its Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from nablab.errors import UsageError, unknown
from nablab.instruments.base.measurement import Expected, Measurement, instrument
from nablab.instruments.base.rehearsals import refuse
from nablab.instruments.landscape.weight_paths import (
    BLOCK,
    Center,
    Floats,
    Points,
    center_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MODEL = (
    "trajectory_pca runs no model: it costs seconds and `block` numbers of "
    "memory. Call it."
)
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
    "#767676",
    "#f0e442",
)


@dataclass(frozen=True, kw_only=True)
class TrajectoryPCA(Measurement):
    r"""What `trajectory_pca` found; T points, P entries each, k components.

    Attributes:
        coordinates: float64 (T, k): every point in the plane (or space) of the first k
            components, relative to the center. Rows of several runs follow each other;
            see `paths`.
        explained_variance_ratio: float64 (T-1,): the share of each component in the sum
            of the squared distances from the center, largest first.
        projection_error: float64 (T,): the distance of each point from its projection
            on k components.
        relative_projection_error: float64 (T,): the same as a share of `distance`; 0 at
            the center itself.
        distance: float64 (T,): the distance of each point from the center.
        random_walk: float64 (T-1,): the explained variance ratio of a random walk of as
            many points in infinitely many dimensions. A path that explains no more
            looks flat because any path does.
        labels: The name of each run.
        lengths: The points of each run.
        names: The parameters that count, in order.
        shapes: Their shapes.
        size: Number of their entries, P.
        center: What was subtracted.
    """

    coordinates: Floats
    explained_variance_ratio: Floats
    projection_error: Floats
    relative_projection_error: Floats
    distance: Floats
    random_walk: Floats
    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    size: int
    center: Center
    _points: Points = field(repr=False)
    _weights: Floats = field(repr=False)

    @property
    def paths(self) -> dict[str, Floats]:
        """The coordinates (T, k) of each run by its label."""
        ends = np.cumsum(self.lengths)[:-1]
        return dict(zip(self.labels, np.split(self.coordinates, ends), strict=True))

    def directions(self) -> Floats:
        """Return the first k components as orthonormal columns, float64 (P, k).

        Their entries are in the order of `names`.

        They are computed when asked for, by one more pass over the points, which must
        not have changed.

        Raises:
            UsageError: The points span fewer than k dimensions.
        """
        if np.isnan(self._weights).any():
            rank = int(np.flatnonzero(np.isnan(self._weights).any(axis=0))[0])
            raise UsageError(
                f"The points span {rank} of the {self._weights.shape[1]} dimensions "
                "asked for, up to rounding: the others have no direction. Ask for "
                f"components={rank}, or collect more points."
            )
        found = torch.empty(self.size, self._weights.shape[1], dtype=torch.float64)
        for start, block in self._points.blocks(self.center):
            part = found[start : start + block.shape[1]]
            torch.matmul(
                torch.from_numpy(block).T, torch.from_numpy(self._weights), out=part
            )
        # Rounding leaves angles that are not quite right where variances differ much;
        # they are close enough for one Cholesky step, which costs less than a QR
        # decomposition of P rows.
        triangle = torch.linalg.cholesky(found.T @ found, upper=True)
        return np.asarray(
            (found @ torch.linalg.inv(triangle)).numpy(), dtype=np.float64
        )

    def center_point(self) -> Floats:
        """Return the subtracted point, float64 (P,), in the order of `names`."""
        found = np.empty(self.size)
        for start, block in self._points.raw_blocks():
            found[start : start + block.shape[1]] = center_of(block, self.center)
        return found

    def unflatten(self, vector: npt.ArrayLike) -> dict[str, Floats]:
        """Return a vector (P,) as arrays by parameter name, in their shapes."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = np.split(np.asarray(vector, dtype=np.float64), ends)
        return {
            n: p.reshape(s)
            for n, s, p in zip(self.names, self.shapes, parts, strict=True)
        }

    def plot(self) -> Figure:
        """Plot the paths in the first two components, one color a run.

        The start is open and the end filled.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        ax = figure.subplots()
        for index, (label, path) in enumerate(self.paths.items()):
            x, y = path[:, 0], path[:, 1] if path.shape[1] > 1 else np.zeros(len(path))
            color = COLORS[index % len(COLORS)]
            ax.plot(x, y, ".-", color=color, lw=1.2, ms=4, label=label or "path")
            ax.plot(x[:1], y[:1], "o", color=color, mfc="white", ms=8, mew=1.5)
            ax.plot(x[-1:], y[-1:], "o", color=color, ms=8)
        ax.set_xlabel(self._axis_label(0))
        ax.set_ylabel(self._axis_label(1) if self.coordinates.shape[1] > 1 else "")
        ax.set_aspect("equal", adjustable="datalim")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_title("open circle: start, filled circle: end", loc="left", fontsize=10)
        if len(self.labels) > 1:
            figure.legend(loc="outside right upper", frameon=False)
        return figure

    def _axis_label(self, component: int) -> str:
        share = self.explained_variance_ratio[component]
        walk = self.random_walk[component]
        return (
            f"component {component + 1} ({share:.1%} of the variance; random walk "
            f"{walk:.0%})"
        )


def _expected(size: Any, *, points: int = 50, **_: Any) -> Expected:
    return Expected(gradients=0.0, numbers=float(2 * BLOCK + 3 * points**2))


@instrument(expected=_expected, rehearse=refuse(NO_MODEL))
def trajectory_pca(
    points: Any,
    *,
    parameters: str | Sequence[str] = "*",
    components: int = 2,
    center: Center = "mean",
    block: int = BLOCK,
) -> TrajectoryPCA:
    r"""Project a path through weight space on its principal components.

    With the centered points as the rows of :math:`X` (T × P), the eigenvectors of the
    small Gram matrix :math:`G = X X^\top = V \Lambda V^\top` (T × T) give the
    coordinates :math:`V \Lambda^{1/2}` and the directions :math:`X^\top V
    \Lambda^{-1/2}`. G is summed in float64 over blocks of entries, so that a path of
    float32 files of any size needs no more than ``block`` float64 numbers at once.
    Centering happens inside a block, before any product: points far from the origin
    lose no digits.

    A flat picture proves little. A random walk in many dimensions has 61 % and 15 % of
    its variance in its first two components, and its projections are cosines, whose
    pairs look like Lissajous curves (Antognini and Sohl-Dickstein 2018). With T points
    and steps of equal expected size the share of component j is

    .. math:: \frac{6}{T^2 - 1} \cdot \frac{1}{4 \sin^2(\pi j / 2T)} \to \frac{6}{\pi^2
    j^2},

    and, where the first or the last point is the center, with m = T - 1,
    :math:`\frac{2}{m(m+1)} \frac{1}{4 \sin^2(\pi (2j-1) / (4m+2))} \to \frac{8}{\pi^2
    (2j-1)^2}`. The result carries these shares. For several runs they are those of
    independent walks from one start.

    Source: Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018,
    arXiv:1712.09913, section 7 (center="last"); Antognini and Sohl-Dickstein, "PCA of
    high dimensional random walks with comparison to neural network training", NeurIPS
    2018, arXiv:1806.08805.

    Args:
        points: One run: an array or tensor (T, P), or a sequence of points, each a
            vector, a mapping from names to tensors (a state dict) or the path of a
            safetensors file. Several runs: a mapping from labels to runs; they are
            projected together.
        parameters: Names or glob patterns of the tensors that count, such as
            ``"layer1.*"``. Integer tensors and the running statistics of batch norm are
            left out, unless a pattern names ``running_``. An array has no names: it is
            taken whole.
        components: k, at least 1.
        center: ``"mean"`` of all points, or the ``"first"`` or ``"last"`` point of all
            (Li et al. take the differences from the last).
        block: Float64 numbers in memory at once.

    Raises:
        UsageError: Fewer than two points, points of unequal shapes (named), a value
            that is NaN or infinite (the point named), equal points, or more components
            than the points can span.

    >>> walk = np.cumsum(np.random.default_rng(0).normal(size=(20, 5000)), axis=0)
    >>> result = trajectory_pca(walk)
    >>> result.random_walk[:2].round(2)
    array([0.61, 0.15])
    >>> bool(np.abs(result.explained_variance_ratio - result.random_walk).max() < 0.03)
    True
    """
    if center not in get_args(Center):
        raise unknown("center", str(center), get_args(Center))
    source = Points(points, parameters, block)
    if not 1 <= components <= min(source.total - 1, source.size):
        raise UsageError(
            f"components={components} is impossible: {source.total} points with "
            f"{source.size} entries span at most {min(source.total - 1, source.size)} "
            "dimensions, and at least 1 is needed."
        )
    gram = np.zeros((source.total, source.total))
    for _, part in source.blocks(center):
        # PyTorch's product rather than NumPy's: two pools of threads that alternate
        # were ten times slower.
        columns = torch.from_numpy(part)
        torch.from_numpy(gram).addmm_(columns, columns.T)
    variances, vectors = _components(gram)
    coordinates = vectors[:, :components] * np.sqrt(variances[:components])
    # The sum over the components left out has no cancellation, unlike distance² -
    # coordinates².
    error = np.sqrt((vectors[:, components:] ** 2) @ variances[components:])
    distance = np.sqrt(np.diag(gram))
    return TrajectoryPCA(
        gradients=0.0,
        notes=source.notes,
        coordinates=coordinates,
        explained_variance_ratio=variances[: source.total - 1] / variances.sum(),
        projection_error=error,
        relative_projection_error=np.divide(
            error, distance, out=np.zeros_like(error), where=distance > 0
        ),
        distance=distance,
        random_walk=random_walk_shares(source.lengths, center),
        labels=source.labels,
        lengths=source.lengths,
        names=tuple(source.shapes),
        shapes=tuple(source.shapes.values()),
        size=source.size,
        center=center,
        _points=source,
        _weights=_direction_weights(vectors[:, :components], variances),
    )


def random_walk_shares(lengths: int | Sequence[int], center: Center = "mean") -> Floats:
    """Return a random walk's variance ratios (T-1,) in infinitely many dimensions.

    Args:
        lengths: The number of points of a walk, or of several independent walks from
            one start, whose first point is that start.
        center: As for `trajectory_pca`.

    >>> shares = random_walk_shares(10_000)
    >>> shares[:2].round(3), bool(np.isclose(shares[0], 6 / np.pi**2))
    (array([0.608, 0.152]), True)
    """
    lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    if min(lengths) < 1 or sum(lengths) < 2:
        raise UsageError(
            f"lengths={lengths}: walks need at least two points together, and one each."
        )
    total = sum(lengths)
    if len(lengths) == 1:
        index = np.arange(1, total)
        # The inverses of the eigenvalues of second differences: free ends, or one end
        # held at zero.
        angles = (
            index / (2 * total)
            if center == "mean"
            else (2 * index - 1) / (4 * total - 2)
        )
        shares = 1 / (4 * np.sin(np.pi * angles) ** 2)
        return np.asarray(shares / shares.sum())
    gram = np.zeros((total, total))
    for start, length in zip(np.cumsum((0, *lengths[:-1])), lengths, strict=True):
        steps = np.arange(length, dtype=np.float64)
        gram[start : start + length, start : start + length] = np.minimum.outer(
            steps, steps
        )
    if center == "mean":
        gram = gram - gram.mean(axis=0)
        gram = gram - gram.mean(axis=1, keepdims=True)
    elif center == "last":
        gram = gram - gram[-1] - gram[:, -1:] + gram[-1, -1]
    shares = np.linalg.eigvalsh(gram)[::-1][: total - 1].clip(min=0)
    return np.asarray(shares / shares.sum())


def _components(gram: Floats) -> tuple[Floats, Floats]:
    """Return variances (T,), largest first, and vectors (T, T).

    Signs do not depend on rounding.
    """
    variances, vectors = np.linalg.eigh(gram)
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1]
    if variances[0] <= 0:
        raise UsageError(
            "All points are equal: there is no path. Were the parameters frozen, or "
            "the same point kept T times?"
        )
    size = np.abs(vectors)
    # The first entry that is as large as any, up to rounding, is positive.
    leading = (size >= (1 - 1e-6) * size.max(axis=0)).argmax(axis=0)
    return variances, vectors * np.sign(vectors[leading, np.arange(len(gram))])


def _direction_weights(vectors: Floats, variances: Floats) -> Floats:
    """Return the points' factors for unit directions; NaN for rounding alone."""
    kept = variances[: vectors.shape[1]]
    noise = len(variances) * np.finfo(np.float64).eps * variances[0]
    scale = np.where(
        kept > noise, 1 / np.sqrt(np.where(kept > noise, kept, 1.0)), np.nan
    )
    return np.asarray(vectors * scale)
