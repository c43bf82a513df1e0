"""Likelihoods of models with codes: a linear model in closed form, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nablab import baselines, metrics, models
from nablab.errors import UsageError

DRAWS = 400


class Linear(nn.Module):
    """Probabilistic PCA with its exact posterior, or one that is shifted."""

    def __init__(self, pca: baselines.ProbabilisticPca, shift: float = 0.0) -> None:
        super().__init__()
        self.weights, self.variance, self.shift = pca.weights, pca.variance, shift
        code = pca.weights.shape[1]
        # W'W is diagonal, so the posterior's covariance is, too.
        gram = pca.weights.T @ pca.weights + pca.variance * torch.eye(code).double()
        self.inverse = torch.linalg.inv(gram)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.weights @ self.inverse + self.shift
        spread = (self.variance * self.inverse.diagonal()).log()
        return mean, spread.expand_as(mean)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.weights.T


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    scales = 0.5 ** torch.arange(6)
    rows = torch.randn(300, 6, generator=generator).double() * scales @ mixed
    return rows - rows.mean(0)


@pytest.fixture(scope="module")
def pca(x: Tensor) -> baselines.ProbabilisticPca:
    moments = baselines.Moments.of(x)
    return baselines.probabilistic_pca(baselines.principal_components(moments, 2))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def exact(x: Tensor, pca: baselines.ProbabilisticPca) -> Tensor:
    from scipy.stats import multivariate_normal

    covariance = pca.weights @ pca.weights.T + pca.variance * torch.eye(6).double()
    found = multivariate_normal(cov=covariance.numpy()).logpdf(x.numpy())
    return torch.from_numpy(np.asarray(found))


def test_probabilistic_pca_is_scikit_learns(
    x: Tensor, pca: baselines.ProbabilisticPca
) -> None:
    from sklearn.decomposition import PCA

    assert pca.log_likelihood == pytest.approx(float(exact(x, pca).mean()), rel=1e-9)
    # scikit-learn divides by N - 1
    theirs = PCA(2, svd_solver="full").fit(x.numpy())
    assert pca.variance == pytest.approx(theirs.noise_variance_ * 299 / 300)
    assert pca.log_likelihood == pytest.approx(theirs.score(x.numpy()), abs=1e-4)


def test_more_noise_than_nothing_is_needed(x: Tensor) -> None:
    components = baselines.principal_components(baselines.Moments.of(x), 6)
    with pytest.raises(UsageError, match="the noise is what is left"):
        baselines.probabilistic_pca(components)


def test_with_the_exact_posterior_every_weight_is_the_evidence(
    x: Tensor, pca: baselines.ProbabilisticPca
) -> None:
    net, likelihood = Linear(pca), metrics.Gaussian(pca.variance)
    wanted = exact(x, pca)
    for draws in (1, 7):
        found = metrics.importance_weighted_bound(
            net, x, likelihood, draws=draws, generator=generator()
        )
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    bound = metrics.evidence_lower_bound(
        net, x, likelihood, draws=DRAWS, generator=generator()
    )
    assert (bound - wanted).abs().mean() < 0.1
    # the mean over all samples is known 17 times better
    assert float(bound.mean()) == pytest.approx(pca.log_likelihood, abs=0.01)


def test_quadrature_gives_the_evidence_whatever_the_encoder(
    x: Tensor, pca: baselines.ProbabilisticPca
) -> None:
    likelihood = metrics.Gaussian(pca.variance)
    for net in (Linear(pca), Linear(pca, shift=2.0)):
        found = metrics.evidence_by_quadrature(net, x[:40], likelihood)
        torch.testing.assert_close(found.values, exact(x, pca)[:40], rtol=0, atol=1e-8)
        assert found.change < 1e-5
        assert found.at_border < 1e-8


def test_quadrature_says_when_its_grid_is_too_coarse_or_too_small(
    x: Tensor, pca: baselines.ProbabilisticPca
) -> None:
    net, likelihood = Linear(pca), metrics.Gaussian(pca.variance)
    coarse = metrics.evidence_by_quadrature(net, x[:20], likelihood, spacing=1.0)
    assert coarse.change > 0.1
    small = metrics.evidence_by_quadrature(net, x[:20], likelihood, radius=1.0)
    assert small.at_border > 1e-3


def test_a_wrong_posterior_loses_its_divergence(
    x: Tensor, pca: baselines.ProbabilisticPca
) -> None:
    net, likelihood = Linear(pca, shift=0.3), metrics.Gaussian(pca.variance)
    wanted = exact(x, pca)
    bounds = [
        float(
            metrics.importance_weighted_bound(
                net, x, likelihood, draws=draws, generator=generator()
            ).mean()
        )
        for draws in (1, 10, DRAWS)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < float(wanted.mean()) + 0.02
    # KL between two normal distributions of one covariance
    precisions = 1 / (pca.variance * net.inverse.diagonal())
    gap = 0.5 * 0.3**2 * float(precisions.sum())
    bound = metrics.evidence_lower_bound(
        net, x, likelihood, draws=DRAWS, generator=generator()
    )
    assert float((wanted - bound).mean()) == pytest.approx(gap, rel=0.02)


def test_bernoulli_tables_are_its_pairs() -> None:
    decoded, x = torch.randn(5, 4).double(), (torch.rand(3, 4) < 0.5).double()
    table = metrics.Bernoulli().log_table(decoded, x)
    chances = torch.distributions.Bernoulli(logits=decoded)
    for n in range(3):
        wanted = chances.log_prob(x[n].expand(5, 4)).sum(1)
        torch.testing.assert_close(table[n], wanted)
        torch.testing.assert_close(metrics.Bernoulli().log_of(decoded, x[n]), wanted)
    gaussian = metrics.Gaussian(0.3)
    pairs = gaussian.log_of(decoded[None], x[:, None])
    torch.testing.assert_close(gaussian.log_table(decoded, x), pairs)
    normal = torch.distributions.Normal(decoded[0], math.sqrt(0.3))
    torch.testing.assert_close(pairs[1, 0], normal.log_prob(x[1]).sum())


def test_a_bernoulli_model_by_quadrature_and_by_sampling() -> None:
    torch.manual_seed(0)
    net = models.dense_vae(9, 2, hidden=(6,), activation="tanh").double()
    x = (torch.rand(30, 9, generator=generator()) < 0.4).double()
    truth = metrics.evidence_by_quadrature(net, x, metrics.Bernoulli(), spacing=0.1)
    sampled = metrics.importance_weighted_bound(
        net, x, metrics.Bernoulli(), draws=5_000, generator=generator()
    )
    assert (truth.values - sampled).abs().max() < 0.1
    # all samples that there are have a chance of 1 together
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 9)
    found = metrics.evidence_by_quadrature(net, every, metrics.Bernoulli(), spacing=0.1)
    assert float(found.values.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    own = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    wanted = torch.distributions.kl_divergence(own, prior).sum(1)
    torch.testing.assert_close(metrics.divergence(mean, log_variance), wanted)


def test_units_that_say_nothing_are_not_active() -> None:
    means = torch.stack([torch.randn(100), 0.01 * torch.randn(100)], dim=1)
    assert metrics.active_units(means) == 1


def test_shares_of_ink_are_no_samples_of_a_bernoulli() -> None:
    metrics.check_binary(torch.tensor([0.0, 1.0]))
    with pytest.raises(UsageError, match=r"from 0 to 0\.5\. Binarize them"):
        metrics.check_binary(torch.tensor([0.0, 0.5]))


def test_quadrature_is_for_two_coordinates() -> None:
    net = models.dense_vae(9, 3)
    with pytest.raises(UsageError, match="of 2 coordinates; these have 3"):
        metrics.evidence_by_quadrature(net, torch.zeros(1, 9), metrics.Bernoulli())


@pytest.mark.parametrize(
    "measure",
    [
        lambda *all: metrics.evidence_lower_bound(
            *all, draws=1, generator=torch.Generator()
        ),
        lambda *all: metrics.importance_weighted_bound(
            *all, draws=1, generator=torch.Generator()
        ),
        metrics.evidence_by_quadrature,
        metrics.inference_gaps,
    ],
)
def test_gray_pixels_have_no_likelihood_of_zeros_and_ones(measure: Any) -> None:
    net, gray = models.dense_vae(3, 2), torch.tensor([[0.0, 0.5, 1.0]])
    with pytest.raises(UsageError, match="Binarize them"):
        measure(net, gray, metrics.Bernoulli())
