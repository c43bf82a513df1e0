"""Gaps below the evidence: a linear model in closed form, and decoders that bend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nablab import metrics, models
from nablab.errors import UsageError

VARIANCE = 0.4


class Turned(nn.Module):
    """A linear model whose posterior is no distribution of independent coordinates."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.weights = torch.tensor([[1.0, 0.5], [0.2, -0.6], [0.4, 0.9]]).double()
        self.precision = self.weights.T @ self.weights / VARIANCE + torch.eye(2)
        self.shift = shift

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.weights @ self.precision.inverse() / VARIANCE
        spread = self.precision.diagonal().reciprocal().log()
        return mean + self.shift, spread.expand_as(mean)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.weights.T


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_gaps_of_a_linear_model_are_known(x: Tensor, shift: float) -> None:
    r"""The best independent normal has variances :math:`1 / \Lambda_{ii}`.

    It lacks :math:`(\sum \log \Lambda_{ii} - \log \det \Lambda) / 2` (Bishop 2006, 10.1.2);
    a shift of all means by s costs :math:`s^2 / 2` times the sum of the precisions.
    """
    net = Turned(shift)
    found = metrics.inference_gaps(net, x, metrics.Gaussian(VARIANCE))
    logs = net.precision.diagonal().log().sum() - net.precision.logdet()
    approximation = torch.full((7,), 0.5 * float(logs)).double()
    amortization = torch.full((7,), 0.5 * shift**2 * float(net.precision.sum()))
    torch.testing.assert_close(found.approximation, approximation, rtol=0, atol=2e-4)
    torch.testing.assert_close(
        found.amortization, amortization.double(), rtol=0, atol=2e-4
    )
    covariance = net.weights @ net.weights.T + VARIANCE * torch.eye(3)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    torch.testing.assert_close(
        found.quadrature.values, normal.log_prob(x), rtol=0, atol=1e-6
    )


def test_the_search_finds_modes_that_the_encoder_misses(x: Tensor) -> None:
    """An encoder far off is no worse a start: the grid knows where the posterior is."""
    near = metrics.inference_gaps(Turned(), x, metrics.Gaussian(VARIANCE), steps=30)
    far = metrics.inference_gaps(Turned(3.0), x, metrics.Gaussian(VARIANCE), steps=30)
    torch.testing.assert_close(near.best, far.best, rtol=0, atol=5e-3)


def test_modes_are_the_highest_points_of_the_grid(x: Tensor) -> None:
    net = Turned(1.0)
    found = metrics.evidence_by_quadrature(net, x, metrics.Gaussian(VARIANCE))
    torch.testing.assert_close(found.modes, net.encode(x)[0] - 1, rtol=0, atol=0.05)


def test_expected_bounds_are_the_means_of_sampled_ones() -> None:
    torch.manual_seed(0)
    net = models.dense_vae(12, 2, hidden=(8,), activation="tanh")
    x = (torch.rand(6, 12) < 0.4).float()
    exact = metrics.expected_bound(net, x, metrics.Bernoulli(), *net.encode(x))
    sampled = metrics.evidence_lower_bound(
        net,
        x,
        metrics.Bernoulli(),
        draws=2_000,
        generator=torch.Generator().manual_seed(1),
    )
    torch.testing.assert_close(exact, sampled, rtol=0, atol=0.06)
    # in blocks of any size, and for one coordinate
    parts = [
        metrics.expected_bound(net, row, metrics.Bernoulli(), *net.encode(row))
        for row in x.split(1)
    ]
    torch.testing.assert_close(torch.cat(parts), exact, rtol=1e-5, atol=1e-5)
    line = models.dense_vae(12, 1)
    assert metrics.expected_bound(
        line, x, metrics.Bernoulli(), *line.encode(x)
    ).shape == (6,)


def test_gaps_are_for_two_coordinates_and_leave_the_network_alone() -> None:
    net = models.dense_vae(12, 3)
    with pytest.raises(UsageError, match="2 coordinates; these have 3"):
        metrics.inference_gaps(net, torch.zeros(2, 12), metrics.Bernoulli())
    plane = models.dense_vae(12, 2)
    metrics.inference_gaps(plane, torch.zeros(2, 12), metrics.Bernoulli(), steps=2)
    assert all(part.grad is None for part in plane.parameters())


def test_the_bound_of_a_linear_model_needs_no_samples(x: Tensor) -> None:
    """Against samples that have exactly this covariance, and against sampled codes."""
    torch.manual_seed(0)
    net = models.LinearVae(3, 2).double()
    with torch.no_grad():
        net.log_noise.fill_(-0.7)
        net.log_variance.copy_(torch.tensor([-1.0, -0.3]))
    centered = x - x.mean(0)
    covariance = centered.T @ centered / len(x)
    found = metrics.linear_evidence_lower_bound(
        net.encoder.weight,
        net.decoder.weight,
        net.log_variance,
        net.log_noise[0],
        covariance,
    )
    likelihood = metrics.Gaussian(float(net.log_noise.detach().exp()))
    exact = metrics.expected_bound(net, centered, likelihood, *net.encode(centered))
    assert float(found.detach()) == pytest.approx(float(exact.mean()), rel=1e-9)


def test_narrow_posteriors_are_integrated_on_finer_grids(x: Tensor) -> None:
    narrow = 4e-4  # posteriors of a standard deviation of a fiftieth

    class Plane(nn.Module):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            spread = torch.full_like(x[:, :2], narrow / (1 + narrow)).log()
            return x[:, :2] / (1 + narrow), spread

        def decode(self, codes: Tensor) -> Tensor:
            return codes

    x = x[:, :2]
    likelihood = metrics.Gaussian(narrow)
    normal = torch.distributions.Normal(0.0, (1 + narrow) ** 0.5)
    evidence = normal.log_prob(x).sum(1)
    coarse = metrics.evidence_by_quadrature(Plane(), x, likelihood)
    assert float((coarse.values - evidence).abs().max()) > 0.05
    assert coarse.change > metrics.ROUGH
    found = metrics.inference_gaps(Plane(), x, likelihood, steps=1)
    assert found.quadrature.change < metrics.ROUGH
    torch.testing.assert_close(found.quadrature.values, evidence, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.bound, evidence, rtol=0, atol=1e-4)
