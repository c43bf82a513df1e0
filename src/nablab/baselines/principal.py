"""Principal components: the best that any linear code of a given size can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.errors import UsageError

BLOCK = 4_096  # samples that are widened to float64 at once
# A covariance of so many takes 0.2 GB, its eigenvectors three times that and a minute.
MOST_COORDINATES = 5_000


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
        """Compute them in float64, block by block.

        Args:
            x: (N, d), any real type.

        Raises:
            UsageError: There are no samples, or not as rows of a matrix, or of too many
                coordinates.

        >>> Moments.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).covariance.tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        if x.ndim != 2 or not len(x):
            raise UsageError(
                f"Moments are those of samples (N, d); got the shape {tuple(x.shape)}."
            )
        check_coordinates(x.shape[1])
        total = torch.zeros(x.shape[1], dtype=torch.float64)
        for block in torch.split(x, BLOCK):
            total += block.sum(0, dtype=torch.float64)
        mean = total / len(x)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in torch.split(x, BLOCK):
            centered = block.double() - mean
            covariance.addmm_(centered.T, centered)
        return cls(mean, covariance / len(x))

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
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total: float

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


def principal_components(moments: Moments, count: int) -> PrincipalComponents:
    """Return the leading eigenvectors of the covariance, by LAPACK in float64.

    Args:
        moments: Of the samples.
        count: How many, from 1 to d.

    Raises:
        UsageError: ``count`` is none of these.
    """
    from scipy.linalg import eigh

    size = len(moments.mean)
    if not 1 <= count <= size:
        raise UsageError(
            f"{count:,} principal components are asked for; samples of {size:,} "
            f"coordinates have 1 to {size:,}."
        )
    variances, columns = eigh(
        moments.covariance.numpy(), subset_by_index=[size - count, size - 1]
    )
    return PrincipalComponents(
        mean=moments.mean,
        axes=torch.from_numpy(columns.T[::-1].copy()),
        variances=torch.from_numpy(variances[::-1].copy()),
        total=moments.total,
    )


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
