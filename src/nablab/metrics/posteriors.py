r"""Why a bound lies below the evidence: the family of posteriors, or the encoder.

The gap :math:`\log p(x) - \mathrm{ELBO}(q)` has two parts (Cremer et al. 2018). No normal
distribution with independent coordinates is the posterior: the best of them still leaves
the approximation gap. And the encoder gives another one than the best: the amortization
gap, the price of one network for all samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nablab.metrics.likelihoods import (
    Likelihood,
    Quadrature,
    divergence,
    evidence_by_quadrature,
)

AT_ONCE = 8_192  # codes that are decoded in one call
# Nodes along each coordinate while the best distribution is sought, and for the result.
SEARCHED, SCORED = 4, 10
# Of Adam, in standard deviations of the start; it falls to zero.
RATE = 0.1
# Nats by which a grid twice as coarse may differ: the error is then below 1e-4.
ROUGH = 0.1
HALVINGS = 2  # of the grid's spacing, each for four times as many points
NARROWEST, WIDEST = 5.0, 12.0  # radius of the plane that is integrated over


@dataclass(frozen=True, eq=False)
class InferenceGaps:
    """Evidence, the best bound of a normal distribution, and the encoder's bound.

    Attributes:
        quadrature: The evidence, with its own error.
        best: float64 (N,): the bound with the best normal distribution that was found,
            a lower bound of the best there is.
        bound: float64 (N,): the bound with the encoder's.
        mean: (N, 2): of the distribution where the search ended.
        log_variance: (N, 2): of it, logarithms.
    """

    quadrature: Quadrature
    best: Tensor
    bound: Tensor
    mean: Tensor
    log_variance: Tensor

    @property
    def approximation(self) -> Tensor:
        """What the best normal distribution leaves, (N,)."""
        return self.quadrature.values - self.best

    @property
    def amortization(self) -> Tensor:
        """What the encoder loses against it, (N,)."""
        return self.best - self.bound


def inference_gaps(
    net: Any,
    x: Tensor,
    likelihood: Likelihood,
    *,
    steps: int = 60,
    spacing: float = 0.05,
) -> InferenceGaps:
    """Split the gap between bound and evidence, for codes of two coordinates.

    The best distribution is sought for each sample by Adam on its mean and the logarithms
    of its variances, from the encoder's, or from the posterior's mode where that is a
    better start. Expectations are by Gauss-Hermite quadrature: no sampling noise.

    Args:
        net: The model; it is not changed.
        x: Samples (N, d).
        likelihood: Of a sample given its code.
        steps: Of the search.
        spacing: Of `evidence_by_quadrature`; its plane reaches beyond all codes' means.
            For samples with a narrow posterior it is halved, twice at most.

    Raises:
        UsageError: A code has another number of coordinates.
    """
    with torch.no_grad():
        mean, log_variance = net.encode(x)
        radius = min(max(NARROWEST, float(mean.abs().max()) + 1), WIDEST)
        found = _refined(net, x, likelihood, radius, spacing)
        bound, at_mode = (
            expected_bound(net, x, likelihood, place, log_variance)
            for place in (mean, found.modes)
        )
    starts = torch.where((at_mode > bound)[:, None], found.modes, mean)
    means, logs = [], []
    for place in range(0, len(x), size := AT_ONCE // SEARCHED**2):
        part = slice(place, place + size)
        ended = _searched(
            net, x[part], starts[part], log_variance[part], likelihood, steps
        )
        means.append(ended[0])
        logs.append(ended[1])
    mean, log_variance = torch.cat(means), torch.cat(logs)
    best = expected_bound(net, x, likelihood, mean, log_variance)
    return InferenceGaps(
        quadrature=found,
        best=torch.stack([bound, at_mode, best]).amax(0),
        bound=bound,
        mean=mean,
        log_variance=log_variance,
    )


def _refined(
    net: Any, x: Tensor, likelihood: Likelihood, radius: float, spacing: float
) -> Quadrature:
    """Integrate on a grid, and on finer ones where twice the distance changes much."""
    found = evidence_by_quadrature(net, x, likelihood, radius=radius, spacing=spacing)
    for halvings in range(1, HALVINGS + 1):
        (rough,) = torch.where(found.changes > ROUGH)
        if not len(rough):
            break
        finer = evidence_by_quadrature(
            net, x[rough], likelihood, radius=radius, spacing=spacing / 2**halvings
        )
        found = Quadrature(
            values=found.values.index_copy(0, rough, finer.values),
            changes=found.changes.index_copy(0, rough, finer.changes),
            at_border=max(found.at_border, finer.at_border),
            modes=found.modes.index_copy(0, rough, finer.modes),
        )
    return found


@torch.no_grad()
def expected_bound(
    net: Any,
    x: Tensor,
    likelihood: Likelihood,
    mean: Tensor,
    log_variance: Tensor,
    *,
    nodes: int = SCORED,
) -> Tensor:
    """Return the evidence lower bound of each sample, float64 (N,), without sampling.

    By Gauss-Hermite quadrature: exact where log p(x | code) is a polynomial of a degree
    below 2 nodes in each coordinate.

    Args:
        net: The model.
        x: Samples (N, d).
        likelihood: Of a sample given its code.
        mean: Of the normal distribution of codes, (N, code) with a small code.
        log_variance: Logarithms of its variances, (N, code).
        nodes: Along each coordinate.

    Raises:
        UsageError: The samples have no such likelihood.
    """
    likelihood.check(x)
    size = max(1, AT_ONCE // nodes ** mean.shape[1])
    parts = []
    for place in range(0, len(x), size):
        part = slice(place, place + size)
        found = _bound(net, likelihood, x[part], mean[part], log_variance[part], nodes)
        parts.append(found.double())
    return torch.cat(parts)


def _bound(
    net: Any,
    likelihood: Likelihood,
    x: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    nodes: int,
) -> Tensor:
    """Compute the bound (N,), with gradients."""
    points, weights = _hermite(nodes, mean.shape[1])
    spread = (log_variance / 2).exp()
    codes = mean + spread * points.to(x.dtype)[:, None]  # (nodes, N, code)
    logs = likelihood.log_of(
        net.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]), x
    )
    return weights.to(x.dtype) @ logs - divergence(mean, log_variance)


def _searched(
    net: nn.Module,
    x: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    likelihood: Likelihood,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Climb the bound of each sample; return means and logarithms of variances."""
    spread = (log_variance / 2).exp()
    moved = torch.zeros_like(mean).requires_grad_()
    grown = torch.zeros_like(mean).requires_grad_()
    optimizer = torch.optim.Adam([moved, grown], lr=RATE, betas=(0.8, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        bound = _bound(
            net, likelihood, x, mean + spread * moved, log_variance + grown, SEARCHED
        )
        # Of these two alone: the network's own gradients would take half of the time.
        moved.grad, grown.grad = torch.autograd.grad(-bound.sum(), (moved, grown))
        optimizer.step()
    return (mean + spread * moved).detach(), (log_variance + grown).detach()


def _hermite(nodes: int, coordinates: int) -> tuple[Tensor, Tensor]:
    """Return nodes (M, coordinates) and weights (M,) of a standard normal distribution."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    axis = torch.from_numpy(points)
    shares = torch.from_numpy(weights / math.sqrt(2 * math.pi))
    grid = torch.cartesian_prod(*[axis] * coordinates).reshape(-1, coordinates)
    products = torch.cartesian_prod(*[shares] * coordinates).reshape(-1, coordinates)
    return grid, products.prod(1)
