"""How likely samples are under a model with a code: bounds, and the number itself.

All in nats, summed over the coordinates of a sample. A model has ``encode(x)``, the mean
and the logarithm of the variance of its codes, and ``decode(codes)``; the prior of codes
is standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from nablab.errors import UsageError

LOG_2_PI = math.log(2 * math.pi)
POINTS_AT_ONCE = 4_096  # of a grid, that are decoded in one call
ACTIVE = 0.01  # variance of a unit's means from which on it tells samples apart


class Likelihood(Protocol):
    """The distribution of a sample, given what its code is decoded to."""

    def log_of(self, decoded: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | code), (...,), of pairs (..., d)."""
        ...

    def log_table(self, decoded: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | code), (N, M), of all pairs of x (N, d) and codes (M, d)."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise `UsageError` for samples (N, d) that have no likelihood of this kind."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """Coordinates that are 0 or 1, with independent chances given by logits."""

    def log_of(self, decoded: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_of`.

        >>> Bernoulli().log_of(torch.zeros(1, 3), torch.tensor([[0.0, 1, 1]])).exp()
        tensor([0.1250])
        """
        return (x * decoded - softplus(decoded)).sum(-1)

    def log_table(self, decoded: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_table`."""
        return x @ decoded.T - softplus(decoded).sum(-1)

    def check(self, x: Tensor) -> None:
        """See `Likelihood.check`."""
        check_binary(x)


@dataclass(frozen=True)
class Gaussian:
    """Real coordinates with independent normal noise around what is decoded.

    Attributes:
        variance: Of the noise, above 0.
    """

    variance: float

    def log_of(self, decoded: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_of`."""
        squares = (x - decoded).square().sum(-1)
        return -0.5 * (squares / self.variance + self._constant(x))

    def log_table(self, decoded: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_table`."""
        squares = torch.cdist(x, decoded, compute_mode="donot_use_mm_for_euclid_dist")
        return -0.5 * (squares.square() / self.variance + self._constant(x))

    def check(self, x: Tensor) -> None:
        """See `Likelihood.check`: all real numbers will do."""

    def _constant(self, x: Tensor) -> float:
        return x.shape[-1] * (LOG_2_PI + math.log(self.variance))


def check_binary(x: Tensor) -> None:
    """Raise `UsageError` unless all values are 0 or 1.

    The logits of a pixel of .5 give no likelihood: what is called one then is neither
    normalized nor comparable with any that is.
    """
    if bool(((x != 0) & (x != 1)).any()):
        low, high = float(x.min()), float(x.max())
        raise UsageError(
            f"A Bernoulli likelihood is one of zeros and ones; these values go from "
            f"{low:g} to {high:g}. Binarize them: x = (uniform < x)."
        )


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence KL(q || prior) of each code's normal distribution, (N,).

    >>> divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


@torch.no_grad()
def evidence_lower_bound(
    net: Any,
    x: Tensor,
    likelihood: Likelihood,
    *,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Estimate the evidence lower bound (ELBO) of each sample, (N,).

    Args:
        net: The model.
        x: Samples (N, d).
        likelihood: Of a sample given its code.
        draws: Codes per sample; the divergence is exact.
        generator: Where their noise comes from.

    Raises:
        UsageError: The samples have no such likelihood.
    """
    likelihood.check(x)
    mean, log_variance = net.encode(x)
    total = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(draws):
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        codes = mean + (log_variance / 2).exp() * noise
        total += likelihood.log_of(net.decode(codes), x)
    return total / draws - divergence(mean, log_variance)


@torch.no_grad()
def importance_weighted_bound(
    net: Any,
    x: Tensor,
    likelihood: Likelihood,
    *,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    r"""Estimate log p(x) by importance sampling from the encoder, (N,).

    :math:`\log \frac{1}{k} \sum_i p(x, z_i) / q(z_i | x)`. Its mean is a lower bound of
    log p(x) that rises with k, the IWAE bound (Burda et al. 2016).

    Args:
        net: The model.
        x: Samples (N, d).
        likelihood: Of a sample given its code.
        draws: k.
        generator: Where the codes' noise comes from.

    Raises:
        UsageError: The samples have no such likelihood.
    """
    likelihood.check(x)
    mean, log_variance = net.encode(x)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for _ in range(draws):
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        codes = mean + (log_variance / 2).exp() * noise
        # log prior - log q: the constants of both normal distributions cancel
        ratio = 0.5 * (noise.square() - codes.square() + log_variance).sum(-1)
        weight = likelihood.log_of(net.decode(codes), x) + ratio
        total = torch.logaddexp(total, weight.double())
    return total - math.log(draws)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """The evidence by integration over a plane of codes.

    Attributes:
        values: float64 (N,): log p(x) of each sample.
        changes: float64 (N,): what twice the distance between points would have
            changed. The error falls so fast with the distance that it is far smaller,
            where this is below 0.1.
        at_border: Largest share of any sample's integral in the outermost points; it
            must be small, or the plane is too small.
        modes: (N, 2): the point with the largest posterior density of each sample.
    """

    values: Tensor
    changes: Tensor
    at_border: float
    modes: Tensor

    @property
    def change(self) -> float:
        """The largest of the changes, in nats."""
        return float(self.changes.max())


@torch.no_grad()
def evidence_by_quadrature(
    net: Any,
    x: Tensor,
    likelihood: Likelihood,
    *,
    radius: float = 7.0,
    spacing: float = 0.05,
) -> Quadrature:
    r"""Integrate p(x | z) p(z) over codes of two coordinates: log p(x), no bound.

    A sum over a square grid. For a smooth integrand that has died away at the border
    the error falls like :math:`e^{-2 \pi^2 s^2 / h^2}`, with the posterior's smallest
    standard deviation s and the spacing h: where h = s it is about 3e-9.

    Args:
        net: The model; a code has two coordinates.
        x: Samples (N, d).
        likelihood: Of a sample given its code.
        radius: The grid goes from minus this to this in both directions.
        spacing: Between points.

    Raises:
        UsageError: A code has another number of coordinates, or the samples have no
            such likelihood.
    """
    likelihood.check(x)
    coordinates = net.encode(x[:1])[0].shape[-1]
    if coordinates != 2:
        raise UsageError(
            f"Quadrature is for codes of 2 coordinates; these have {coordinates}. "
            "importance_weighted_bound is for any number."
        )
    half = math.ceil(radius / spacing / 2) * 2
    axis = torch.arange(-half, half + 1)
    grid = torch.cartesian_prod(axis, axis)
    even = (grid % 2 == 0).all(1)
    border = (grid.abs() == half).any(1)
    empty = torch.full((len(x),), -math.inf, dtype=torch.float64)
    coarse, fine, outside, highest = empty, empty, empty, empty
    modes = torch.zeros(len(x), 2, dtype=x.dtype)
    for points, inside_coarse, on_border in _blocks(grid, even, border):
        codes = points.to(x.dtype) * spacing
        log_prior = -0.5 * codes.square().sum(1) - LOG_2_PI
        table = (likelihood.log_table(net.decode(codes), x) + log_prior).double()
        fine = torch.logaddexp(fine, table.logsumexp(1))
        coarse = torch.logaddexp(coarse, _part(table, inside_coarse))
        outside = torch.logaddexp(outside, _part(table, on_border))
        top, place = table.max(1)
        modes = torch.where((top > highest)[:, None], codes[place], modes)
        highest = torch.maximum(highest, top)
    values = fine + 2 * math.log(spacing)
    twice = coarse + 2 * math.log(2 * spacing)
    return Quadrature(
        values=values,
        changes=(values - twice).abs(),
        at_border=float((outside - fine).exp().max()),
        modes=modes,
    )


def linear_evidence_lower_bound(
    encoder: Tensor,
    decoder: Tensor,
    log_variance: Tensor,
    log_noise: Tensor,
    covariance: Tensor,
) -> Tensor:
    r"""Return the mean bound of a linear model with normal noise, without sampling.

    With codes :math:`z \sim N(V x, \mathrm{diag}(D))` and samples
    :math:`x \sim N(W z, \sigma^2)` the expectation over both is a function of the
    samples' covariance S alone. What is lost is
    :math:`\mathrm{tr}((1 - W V) S (1 - W V)^\top) + \sum_i D_i |w_i|^2` (Lucas et al.
    2019).

    Args:
        encoder: V (k, d).
        decoder: W (d, k).
        log_variance: log D (k,), of the codes.
        log_noise: log of the noise's variance, without axes.
        covariance: S (d, d), of samples with mean zero.
    """
    size = len(covariance)
    seen = encoder @ covariance  # V S
    codes = seen @ encoder.T  # covariance of the codes' means
    gram = decoder.T @ decoder
    lost = covariance.trace() - 2 * (seen * decoder.T).sum() + (codes * gram).sum()
    lost = lost + (log_variance.exp() * gram.diagonal()).sum()
    reconstruction = -0.5 * (lost / log_noise.exp() + size * (LOG_2_PI + log_noise))
    spread = log_variance.exp() - 1 - log_variance
    return reconstruction - 0.5 * (codes.diagonal() + spread).sum()


def active_units(means: Tensor) -> int:
    """Count coordinates of the code whose means differ between samples.

    Those with a variance above 0.01 (Burda et al. 2016); the others have collapsed to
    the prior.

    Args:
        means: Of the codes (N, code).
    """
    return int((means.var(0) > ACTIVE).sum())


def _part(table: Tensor, chosen: Tensor) -> Tensor:
    """Add up the chosen columns of logarithms, (N,)."""
    return table.masked_fill(~chosen, -math.inf).logsumexp(1)


def _blocks(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(part, POINTS_AT_ONCE) for part in parts), strict=True)
