"""Principal components: the best that any linear code of a given size can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.baselines.krylov import GUARD, krylov_pairs
from nablab.errors import UsageError

BLOCK = 4_096  # samples that are taken at once in float64
# The same in float32: larger products are faster, and 3,072 coordinates take 0.2 GB.
SINGLE_BLOCK = 16_384
SOME = 1_024  # samples whose mean is near that of all
# Sums of so many products of numbers up to 128 stay below 2^24: exact in float32.
EXACT_ROWS = 1_024
COLUMNS = 512  # of a symmetric product that are computed at once
# A covariance of so many takes 0.2 GB, its eigenvectors three times that and a minute.
MOST_COORDINATES = 5_000
# Below, LAPACK takes a fraction of a second.
SMALL = 600
# What components may miss, as a share of what they lose, and still be called exact.
EXACT = 1e-12


def check_coordinates(count: int) -> None:
    """Raise `UsageError` if the covariance of so many coordinates is too large."""
    if count > MOST_COORDINATES:
        raise UsageError(
            f"Samples of {count:,} numbers have a covariance of {8e-9 * count**2:,.1f} "
            f"GB. Up to {MOST_COORDINATES:,} numbers can be analyzed: bring images to a "
            "smaller size."
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of samples: all that a linear code's error depends on.

    Attributes:
        mean: float64 (d,).
        covariance: float64 (d, d), divided by the number of samples.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Compute them in float64, block by block; of uint8 without any rounding.

        Args:
            x: (N, d), any real type.

        Raises:
            UsageError: There are no samples, or not as rows of a matrix, or of too many
                coordinates.

        >>> Moments.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).covariance.tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        _check_rows(x)
        check_coordinates(x.shape[1])
        if x.dtype == torch.uint8:
            return cls._of_bytes(x)
        mean = _mean(x)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in torch.split(x, BLOCK):
            _add_products(covariance, block.double() - mean)
        return cls(mean, _mirrored(covariance) / len(x))

    @classmethod
    def _of_bytes(cls, x: Tensor) -> Moments:
        """Add up whole numbers, so that nothing is rounded before the end."""
        middle, count = 128, len(x)
        sums = x.sum(0, dtype=torch.int64).double() - count * middle
        products = torch.zeros(len(sums), len(sums), dtype=torch.float64)
        for block in torch.split(x, EXACT_ROWS):
            _add_products(products, block.float() - middle)
        # Whole numbers still; constant coordinates get exactly 0.
        scaled = count * _mirrored(products) - torch.outer(sums, sums)
        return cls(sums / count + middle, scaled / count**2)

    @property
    def total(self) -> float:
        """The variance of all coordinates, added up."""
        return float(self.covariance.trace())


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Directions of largest variance, the first one first.

    Attributes:
        mean: float64 (d,).
        axes: float64 (k, d), orthonormal rows.
        variances: float64 (k,), falling.
        total: The variance of all d coordinates, added up.
        missed: A bound of how much more variance the best k axes could hold, beyond
            rounding.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total: float
    missed: float = 0.0

    def lost(self, count: int) -> float:
        """Return the smallest squared error that a linear code of ``count`` can have.

        It is added up over coordinates, and a mean over the samples that the components
        are of (Eckart and Young 1936).
        """
        kept = self.variances[:count].clamp(min=0).sum()
        return max(0.0, self.total - float(kept))

    def reconstruct(self, x: Tensor, count: int) -> Tensor:
        """Project samples (N, d) on the first ``count`` axes; same type as ``x``."""
        axes, mean = self.axes[:count].to(x.dtype), self.mean.to(x.dtype)
        return torch.addmm(mean, (x - mean) @ axes.T, axes)


def principal_components(
    source: Tensor | Moments, count: int, *, seed: int = 0
) -> PrincipalComponents:
    """Return the axes along which samples vary most.

    Many coordinates of which few components are wanted are searched through
    (`nablab.baselines.krylov`) until `PrincipalComponents.missed` is below 1e-12 of the
    loss; LAPACK does the rest. The covariance of float32 samples is computed in
    float32.

    Args:
        source: Samples (N, d), or their moments.
        count: How many, from 1 to d.
        seed: Of the directions from which a search begins.

    Raises:
        UsageError: ``count`` is none of these.

    >>> square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    >>> principal_components(square, 1).axes.abs().tolist()
    [[1.0, 0.0]]
    """
    moments = source if isinstance(source, Moments) else _moments(source)
    size = len(moments.mean)
    if not 1 <= count <= size:
        raise UsageError(
            f"{count:,} principal components are asked for; samples of {size:,} "
            f"coordinates have 1 to {size:,}."
        )
    if size > SMALL and (count + GUARD) * 6 <= size:
        pairs = krylov_pairs(moments.covariance, count, tolerance=EXACT, seed=seed)
        if pairs is not None:
            return PrincipalComponents(
                mean=moments.mean,
                axes=pairs.vectors[:, :count].T.contiguous(),
                variances=pairs.values[:count].clone(),
                total=moments.total,
                missed=pairs.missed(count),
            )
    return _by_lapack(moments, count)


def _check_rows(x: Tensor) -> None:
    if x.ndim != 2 or not len(x):
        raise UsageError(
            f"Moments are those of samples (N, d); got the shape {tuple(x.shape)}."
        )


def _moments(x: Tensor) -> Moments:
    if x.dtype == torch.float32 and x.ndim == 2 and len(x):
        check_coordinates(x.shape[1])
        return _in_single(x)
    return Moments.of(x)


def _by_lapack(moments: Moments, count: int) -> PrincipalComponents:
    from scipy.linalg import eigh

    size = len(moments.mean)
    variances, columns = eigh(
        moments.covariance.numpy(), subset_by_index=[size - count, size - 1]
    )
    return PrincipalComponents(
        mean=moments.mean,
        axes=torch.from_numpy(columns.T[::-1].copy()),
        variances=torch.from_numpy(variances[::-1].copy()),
        total=moments.total,
    )


def _in_single(x: Tensor) -> Moments:
    """Compute moments of float32 samples by products in float32, added up in float64.

    Products of a block's centered samples are rounded to seven digits, at random. What
    that turns the leading axes by costs a share of the loss far below 1e-12.
    """
    # About the mean of some; samples minus this lose no digits, however far from 0.
    near = _mean(x[:: max(1, len(x) // SOME)]).float()
    sums = torch.zeros(x.shape[1], dtype=torch.float64)
    products = torch.zeros(len(sums), len(sums), dtype=torch.float64)
    for block in torch.split(x, SINGLE_BLOCK):
        centered = block - near
        sums += torch.ones(len(block)) @ centered  # far faster than a sum in float64
        _add_products(products, centered)
    rest = sums / len(x)
    covariance = _mirrored(products) / len(x) - torch.outer(rest, rest)
    return Moments(near.double() + rest, covariance)


def _mean(x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for block in torch.split(x, BLOCK):
        total += block.sum(0, dtype=torch.float64)
    return total / len(x)


def _add_products(to: Tensor, block: Tensor) -> None:
    """Add X'X to the upper half of a matrix, in blocks of columns."""
    for first in range(0, len(to), COLUMNS):
        strip = block[:, first : first + COLUMNS]
        to[first : first + COLUMNS, first:] += strip.T @ block[:, first:]


def _mirrored(upper: Tensor) -> Tensor:
    """Copy the upper half of a matrix to the lower."""
    return torch.triu(upper) + torch.triu(upper, 1).T


def wiener_filter(components: PrincipalComponents, noise: float) -> Tensor:
    r"""Return the linear map of rank k that removes noise best, float64 (d, d).

    Of :math:`\mathbb{E}\|x - W (x + \sigma e)\|^2` with centered x and white noise e:
    :math:`W = U \Lambda (\Lambda + \sigma^2)^{-1} U^\top` with the k leading principal
    axes U and variances :math:`\Lambda` (reduced-rank Wiener filter). It is symmetric.

    Args:
        components: k of them.
        noise: Standard deviation of every coordinate's noise, not negative.

    Raises:
        UsageError: A negative noise.
    """
    if noise < 0:
        raise UsageError(f"Noise has a standard deviation of 0 or more; got {noise:g}.")
    variances = components.variances.clamp(min=0)
    shares = variances / (variances + noise**2).clamp(min=1e-300)
    return components.axes.T * shares @ components.axes


def filtered_error(components: PrincipalComponents, noise: float) -> float:
    r"""Return what `wiener_filter` loses, added up over coordinates.

    :math:`\mathrm{tr} S - \sum_{i \le k} \lambda_i^2 / (\lambda_i + \sigma^2)`, a mean
    over the samples that the components are of.
    """
    variances = components.variances.clamp(min=0)
    gained = variances.square() / (variances + noise**2).clamp(min=1e-300)
    return max(0.0, components.total - float(gained.sum()))


@dataclass(frozen=True, eq=False)
class ProbabilisticPca:
    """Probabilistic principal components: x = W z + mean + noise, all normal.

    Attributes:
        weights: W, float64 (d, k).
        variance: Of the noise.
        log_likelihood: Mean over the samples it is of, in nats.
    """

    weights: Tensor
    variance: float
    log_likelihood: float


def probabilistic_pca(components: PrincipalComponents) -> ProbabilisticPca:
    r"""Return the maximum of the likelihood in closed form (Tipping and Bishop 1999).

    The noise's variance is the mean of those that are left out, and
    :math:`W = U (\Lambda - \sigma^2)^{1/2}`. A variational autoencoder with linear
    encoder and decoder has the same optimum, and its bound is tight there (Lucas et al.
    2019).

    Args:
        components: Fewer than coordinates.

    Raises:
        UsageError: Nothing is left out, or has no variance.
    """
    count, size = components.axes.shape
    left = components.lost(count)
    if count >= size or left <= 0:
        raise UsageError(
            f"Probabilistic PCA needs variance beyond its {count:,} components: the "
            "noise is what is left."
        )
    variance = left / (size - count)
    weights = components.axes.T * (components.variances - variance).clamp(min=0).sqrt()
    logs = float(components.variances.log().sum()) + (size - count) * math.log(variance)
    log_likelihood = -0.5 * (size * (math.log(2 * math.pi) + 1) + logs)
    return ProbabilisticPca(weights, variance, log_likelihood)
