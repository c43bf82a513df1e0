"""Principal components: the best that any linear code of a given size can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.baselines.krylov import GUARD, Pairs, krylov_pairs
from nablab.errors import UsageError

BLOCK = 4_096  # samples that are taken at once
ROWS = 256  # the same where little is done to each number: they stay in the cache
COLUMNS = 512  # of a symmetric product that are computed at once
# A covariance of so many takes 0.2 GB, its eigenvectors three times that and a minute.
MOST_COORDINATES = 5_000
# Below, LAPACK takes a fraction of a second.
SMALL = 600
# What components may miss, as a share of what they lose, and still be called exact.
EXACT = 1e-12
# The same for components of samples in float32, whose own rounding is about as large.
FINE = 1e-7
PASSES = 4  # over samples, before their whole covariance is computed
WIDEST = 127  # in int8, the same on both sides of 0


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
        middle = 128
        whole = (x.to(torch.int16) - middle).to(torch.int8)
        mean = whole.sum(0, dtype=torch.int64).double() / len(x)
        covariance = _whole_products(whole) / len(x) - torch.outer(mean, mean)
        return cls(mean + middle, covariance)

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
        note: What a reader should know of how they were found.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total: float
    missed: float = 0.0
    note: str = ""

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

    Moments are taken to all digits of float64. Many float32 samples of many coordinates
    are faster without their covariance: the loss is then within 1e-7 of the smallest,
    and `PrincipalComponents.missed` bounds by how much. Where that cannot be reached,
    the covariance is computed after all, and a note says so.

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
    if isinstance(source, Tensor):
        _check_rows(source)
        size = source.shape[1]
    else:
        size = len(source.mean)
    if not 1 <= count <= size:
        raise UsageError(
            f"{count:,} principal components are asked for; samples of {size:,} "
            f"coordinates have 1 to {size:,}."
        )
    few = size > SMALL and (count + GUARD) * 6 <= size
    note = ""
    if few and isinstance(source, Tensor) and _pays(source):
        found = _of_samples(source, count, seed)
        if found is not None:
            return found
        note = (
            f"The {count:,} first principal components are too close to the next ones "
            "for a quick search, so the whole covariance was computed."
        )
    moments = _moments(source)
    if few:
        pairs = krylov_pairs(moments.covariance, count, tolerance=EXACT, seed=seed)
        if pairs is not None:
            return _components(moments.mean, pairs, count, moments.total, note)
    return _by_lapack(moments, count, note)


def _check_rows(x: Tensor) -> None:
    if x.ndim != 2 or not len(x):
        raise UsageError(
            f"Moments are those of samples (N, d); got the shape {tuple(x.shape)}."
        )


def _moments(source: Tensor | Moments) -> Moments:
    return source if isinstance(source, Moments) else Moments.of(source)


def _pays(x: Tensor) -> bool:
    """Tell whether a search in the samples is faster than their covariance."""
    return x.dtype == torch.float32 and len(x) >= x.shape[1] <= MOST_COORDINATES


def _by_lapack(moments: Moments, count: int, note: str) -> PrincipalComponents:
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
        note=note,
    )


def _components(
    mean: Tensor, pairs: Pairs, count: int, total: float, note: str = ""
) -> PrincipalComponents:
    return PrincipalComponents(
        mean=mean,
        axes=pairs.vectors[:, :count].T.contiguous(),
        variances=pairs.values[:count].clone(),
        total=total,
        missed=pairs.missed(count),
        note=note,
    )


def _of_samples(x: Tensor, count: int, seed: int) -> PrincipalComponents | None:
    r"""Search for the axes in samples, float32 (N, d), that are rounded to 8 bits.

    Rounding errors are like noise, which averages out over many samples, so the rounded
    samples' covariance S has nearly the right axes V. One pass over the samples
    themselves gives C V, where C is their covariance. So S is corrected to agree with C
    on all that V spans, and its axes are taken again. What is still wrong is off by
    products of two small numbers.

    Returns:
        None if the bound is not small enough after some passes.
    """
    # About the mean; what it is off is taken off in the end. The difference of two
    # floats is rounded once, so samples that are far from 0 lose no digits.
    shift = _mean(x[:: max(1, len(x) // ROWS)]).float()
    lowest, highest = torch.zeros_like(shift), torch.zeros_like(shift)
    sums, squares = (torch.zeros(len(shift), dtype=torch.float64) for _ in range(2))
    for block in torch.split(x, ROWS):
        centered = block - shift
        lowest = torch.minimum(lowest, centered.amin(0))
        highest = torch.maximum(highest, centered.amax(0))
        sums += centered.sum(0)
        squares += centered.square_().sum(0)
    rest = sums / len(x)
    mean = shift.double() + rest
    total = float((squares / len(x) - rest.square()).sum())
    # Samples in an order of their own may be far from where the sparse ones are.
    if not math.isfinite(total) or float(rest.square().sum()) > total:
        return None
    peaks = torch.maximum(highest, -lowest)
    scales = (peaks / WIDEST).clamp(min=torch.finfo(torch.float32).tiny)
    whole = torch.empty(x.shape, dtype=torch.int8)
    for to, block in zip(torch.split(whole, ROWS), torch.split(x, ROWS), strict=True):
        to.copy_((block - shift).div_(scales).round_())
    sketch = _whole_products(whole).div_(len(x))
    del whole
    sketch.mul_(scales.double()).mul_(scales.double()[:, None])
    sketch.sub_(torch.outer(rest, rest))
    start = None
    for _ in range(PASSES):
        rough = krylov_pairs(sketch, count, tolerance=FINE, seed=seed, start=start)
        if rough is None:
            return None
        given = rough.vectors.float()
        vectors = given.double()
        products = _covariance_times(x, shift, given)
        products.sub_(torch.outer(rest, rest @ vectors))
        pairs = Pairs.of(vectors, products)
        left = max(0.0, total - float(pairs.values[:count].sum()))
        if pairs.missed(count) <= FINE * left:
            return _components(mean, pairs, count, total)
        wrong = pairs.products - sketch @ pairs.vectors  # (C - S) V
        half = wrong - pairs.vectors @ (pairs.vectors.T @ wrong) / 2
        change = half @ pairs.vectors.T
        sketch.add_(change).add_(change.T)
        start = pairs.vectors
    return None


def _covariance_times(x: Tensor, shift: Tensor, vectors: Tensor) -> Tensor:
    """Multiply the covariance about ``shift`` with float32 (d, m), in one pass."""
    product = torch.zeros(vectors.shape, dtype=torch.float64)
    for block in torch.split(x, ROWS):
        centered = block - shift
        product += centered.T @ (centered @ vectors)
    return product.div_(len(x))


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


def _whole_products(x: Tensor) -> Tensor:
    """Compute X'X of int8 (N, d) without any rounding, in float64 (d, d)."""
    found = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    if torch.cpu._is_vnni_supported():
        # Sums of 65,536 products of up to 2^14 stay below 2^31.
        for block in torch.split(x, 2**16):
            for first in range(0, len(found), COLUMNS):
                strip = block[:, first : first + COLUMNS].T
                found[first : first + COLUMNS, first:] += torch._int_mm(
                    strip, block[:, first:]
                )
    else:
        # Sums of 1,024 such products stay below 2^24, where float32 is exact.
        for block in torch.split(x, 2**10):
            _add_products(found, block.float())
    return _mirrored(found)


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
