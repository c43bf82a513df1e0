"""Principal components and linear autoencoders: closed forms, other libraries, what
must not matter.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from nablab.baselines import (
    LinearAutoencoder,
    Moments,
    PrincipalComponents,
    filtered_error,
    largest_angle,
    principal_components,
    regularized_optimum,
    wiener_filter,
)
from nablab.baselines.krylov import Pairs
from nablab.errors import UsageError


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    scales = 0.6 ** torch.arange(12)
    return torch.randn(5_000, 12, generator=generator).double() * scales @ mixed + 3


@pytest.fixture(scope="module")
def moments(x: torch.Tensor) -> Moments:
    return Moments.of(x)


def test_moments_are_numpys_whatever_the_type(x: torch.Tensor) -> None:
    for samples, tolerance in ((x, 1e-12), (x.float(), 1e-5)):
        found = Moments.of(samples)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=tolerance)
        np.testing.assert_allclose(
            found.covariance,
            np.cov(x.T.numpy(), bias=True),
            atol=tolerance * found.total,
        )
    images = torch.tensor([[0, 255], [255, 255], [3, 1]], dtype=torch.uint8)
    np.testing.assert_allclose(Moments.of(images).mean, [86, 511 / 3])


def test_components_are_those_of_scikit_learn(
    x: torch.Tensor, moments: Moments
) -> None:
    from sklearn.decomposition import PCA

    pca = PCA(5, svd_solver="full").fit(x.numpy())
    found = principal_components(moments, 5)
    np.testing.assert_allclose(
        found.variances * 5_000 / 4_999, pca.explained_variance_, rtol=1e-9
    )
    assert largest_angle(found.axes.T, torch.from_numpy(pca.components_.T)) < 1e-5
    rebuilt = pca.inverse_transform(pca.transform(x.numpy()))
    np.testing.assert_allclose(found.reconstruct(x, 5), rebuilt, atol=1e-9)
    measured = float((x - found.reconstruct(x, 5)).square().sum(1).mean())
    assert measured == pytest.approx(found.lost(5), rel=1e-9)
    assert found.lost(3) > found.lost(4) > found.lost(5)


def test_all_components_lose_nothing(moments: Moments) -> None:
    found = principal_components(moments, 12)
    assert found.lost(12) == pytest.approx(0, abs=1e-9 * moments.total)
    assert found.lost(0) == pytest.approx(moments.total)


@pytest.mark.parametrize("count", [0, 13, -1])
def test_more_components_than_coordinates_are_refused(
    moments: Moments, count: int
) -> None:
    with pytest.raises(UsageError, match="coordinates have 1 to 12"):
        principal_components(moments, count)


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 2, 2)])
def test_moments_need_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="samples"):
        Moments.of(torch.zeros(shape))


def started(seed: int = 0) -> LinearAutoencoder:
    return LinearAutoencoder.start(12, 4, np.random.default_rng(seed))


def test_what_is_lost_is_the_error_on_the_samples(
    x: torch.Tensor, moments: Moments
) -> None:
    net = started()
    centered = x - moments.mean
    rebuilt = centered @ net.encoder.T @ net.decoder.T
    wanted = float((centered - rebuilt).square().sum(1).mean())
    assert net.lost(moments.covariance) == pytest.approx(wanted, rel=1e-10)


def test_alternating_reaches_the_optimum_and_never_goes_below(moments: Moments) -> None:
    components = principal_components(moments, 4)
    best, net, losses = components.lost(4), started(), []
    for _ in range(60):
        net.alternate(moments.covariance)
        losses.append(net.lost(moments.covariance))
    for before, after in pairwise(losses):
        assert after <= before * (1 + 1e-12)
    assert losses[-1] / best - 1 < 1e-10
    assert min(losses) / best - 1 > -1e-12
    assert largest_angle(net.decoder, components.axes.T) < 1e-3


def test_a_preconditioned_step_forgets_how_inputs_are_scaled(moments: Moments) -> None:
    best = principal_components(moments, 4).lost(4)
    net = started()
    for _ in range(150):
        net.preconditioned_step(moments.covariance, 0.8)
    assert -1e-12 < net.lost(moments.covariance) / best - 1 < 1e-8
    # units of the samples change nothing but the units of the error
    first, second = started(1), started(1)
    for _ in range(3):
        first.preconditioned_step(moments.covariance, 0.8)
        second.preconditioned_step(moments.covariance * 1e6, 0.8)
    torch.testing.assert_close(first.decoder, second.decoder)
    torch.testing.assert_close(first.encoder, second.encoder)


def test_the_regularized_optimum_is_where_training_ends(moments: Moments) -> None:
    components = principal_components(moments, 4)
    penalty = float(components.variances[2]) / 3
    wanted = regularized_optimum(components, penalty)
    net = started()
    parts = [p.clone().requires_grad_() for p in (net.encoder, net.decoder)]
    optimizer = torch.optim.LBFGS(
        parts, max_iter=2_000, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        encoder, decoder = parts
        rest = torch.eye(12, dtype=torch.float64) - decoder @ encoder
        lost = (rest @ moments.covariance * rest).sum()
        total = lost + penalty * (encoder.square().sum() + decoder.square().sum())
        total.backward()
        return total

    optimizer.step(loss)
    product = (parts[1] @ parts[0]).detach()
    torch.testing.assert_close(
        product, wanted.decoder @ wanted.encoder, atol=1e-4, rtol=0
    )


def test_a_penalty_above_a_variance_drops_its_axis(moments: Moments) -> None:
    components = principal_components(moments, 4)
    between = float(components.variances[1] + components.variances[2]) / 2
    found = regularized_optimum(components, between)
    assert [bool(row.any()) for row in found.encoder] == [True, True, False, False]
    free = regularized_optimum(components, 0.0)
    assert free.lost(moments.covariance) == pytest.approx(components.lost(4))


def test_the_angle_between_planes() -> None:
    plane = torch.eye(3, dtype=torch.float64)[:, :2]
    tilted = torch.tensor([[1.0, 0.0], [0.0, 0.5**0.5], [0.0, 0.5**0.5]]).double()
    assert largest_angle(plane, tilted) == pytest.approx(45)
    assert (
        largest_angle(plane, plane @ torch.tensor([[2.0, 1], [0, 3]]).double()) < 1e-5
    )


def test_no_linear_map_of_that_rank_removes_noise_better(
    x: torch.Tensor, moments: Moments
) -> None:
    noise, components = 0.7, principal_components(moments, 4)
    filtered = wiener_filter(components, noise)
    best = filtered_error(components, noise)

    def lost(matrix: torch.Tensor) -> float:
        rest = torch.eye(12, dtype=torch.float64) - matrix
        blurred = float((rest @ moments.covariance * rest).sum())
        return blurred + noise**2 * float(matrix.square().sum())

    assert lost(filtered) == pytest.approx(best, rel=1e-10)
    assert torch.linalg.matrix_rank(filtered) == 4
    generator = torch.Generator().manual_seed(1)
    left, values, right = torch.linalg.svd(filtered)
    for _ in range(50):
        turn = torch.linalg.qr(
            torch.eye(12, dtype=torch.float64)
            + 0.05 * torch.randn(12, 12, generator=generator, dtype=torch.float64)
        )[0]
        scales = 1 + 0.05 * torch.randn(12, generator=generator, dtype=torch.float64)
        assert lost(turn @ left @ torch.diag(values * scales) @ right) > best
    # as measured on samples
    centered = x - moments.mean
    noisy = centered + noise * torch.randn(x.shape, generator=generator).double()
    measured = float((noisy @ filtered - centered).square().sum(1).mean())
    assert measured == pytest.approx(best, rel=0.05)


def test_without_noise_the_filter_is_the_projection(moments: Moments) -> None:
    components = principal_components(moments, 4)
    projection = components.axes.T @ components.axes
    torch.testing.assert_close(wiener_filter(components, 0.0), projection)
    assert filtered_error(components, 0.0) == pytest.approx(components.lost(4))
    with pytest.raises(UsageError, match=r"0 or more; got -0\.1"):
        wiener_filter(components, -0.1)


def spread(samples: int, variances: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Draw float64 (N, d) whose covariance about 0 has such variances, exactly."""
    generator = torch.Generator().manual_seed(seed)
    size = len(variances)
    left, right = (
        torch.linalg.qr(torch.randn(n, size, generator=generator).double())[0]
        for n in (samples, size)
    )
    left = torch.linalg.qr(left - left.mean(0))[0]
    return samples**0.5 * left * variances.sqrt() @ right.T


def excess(found: PrincipalComponents, x: torch.Tensor, best: float) -> float:
    """Return how much more than the best is lost on samples, in float64."""
    x = x.double() - x.double().mean(0)
    kept = (x @ found.axes.T).square().sum() / len(x)
    return float(x.square().sum() / len(x) - kept) / best - 1


FALLING = torch.arange(1.0, 701.0, dtype=torch.float64) ** -1.5


def test_samples_in_single_precision_lose_no_digit_of_the_loss() -> None:
    x = spread(2_000, FALLING)
    for samples in (x.float(), x.float() + 1_000):
        found = principal_components(samples, 8)
        assert found.missed > 0, "not searched"
        best = float(Moments.of(samples).covariance.trace())
        best -= float(torch.linalg.eigvalsh(Moments.of(samples).covariance)[-8:].sum())
        assert abs(excess(found, samples, best)) < 1e-10
        assert found.missed < 1e-12 * best
        assert found.lost(8) == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(found.mean, samples.double().mean(0), atol=1e-5)
        eye = torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(found.axes @ found.axes.T, eye)
    first = principal_components(x.float(), 8)
    assert largest_angle(first.axes.T, found.axes.T) < 0.1
    np.testing.assert_allclose(first.variances, FALLING[:8], rtol=1e-6)
    again = principal_components(x.float(), 8)
    assert torch.equal(again.axes, first.axes)
    # Their moments give the same, to all digits.
    exact = principal_components(Moments.of(x), 8)
    np.testing.assert_allclose(exact.variances, FALLING[:8], rtol=1e-11)
    assert exact.lost(8) == pytest.approx(float(FALLING[8:].sum()), rel=1e-11)
    assert excess(exact, x, float(FALLING[8:].sum())) < 1e-11


@pytest.mark.parametrize(
    ("variances", "searched"),
    [
        (torch.cat([torch.ones(8), torch.full((692,), 1e-4)]), True),  # flat below
        (torch.cat([torch.ones(60), torch.full((640,), 1e-4)]), True),  # within a level
        (torch.cat([torch.ones(9), torch.zeros(691)]), True),  # nearly of that rank
        (torch.ones(700), False),  # no direction is better
        (torch.cat([1 + 1e-5 * torch.arange(30), FALLING[30:]]), True),  # a cluster
    ],
)
def test_levels_and_ranks_are_decided_exactly(
    variances: torch.Tensor, searched: bool
) -> None:
    variances = variances.double().sort(descending=True).values
    x = spread(1_400, variances).float()
    found = principal_components(x, 8)
    best = float(variances[8:].sum())
    assert found.lost(8) == pytest.approx(best, rel=1e-5)
    assert abs(excess(found, x, best)) < 1e-5
    assert searched or found.missed == 0


@pytest.mark.parametrize("shape", [(50, 700), (700, 3), (1, 5), (2_000, 640)])
def test_wide_tall_and_constant_samples(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 0.97 ** torch.arange(shape[1])
    x[:, 1] = 7
    count = min(3, shape[1])
    found = principal_components(x, count)
    values = torch.linalg.svdvals(x.double() - x.double().mean(0)) ** 2 / len(x)
    wanted = torch.zeros(count, dtype=torch.float64)
    wanted[: len(values)] = values[:count]
    np.testing.assert_allclose(found.variances, wanted, rtol=1e-5, atol=1e-12)


def test_bytes_are_added_up_without_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3_000, 530), generator=generator, dtype=torch.uint8)
    x[:, 0], x[:, 1] = 255, 0
    found = Moments.of(x)
    whole = x.long()
    counted = len(x) * (whole.T @ whole) - torch.outer(whole.sum(0), whole.sum(0))
    assert torch.equal(found.covariance, counted.double() / len(x) ** 2)
    assert torch.equal(found.covariance[0], torch.zeros(530, dtype=torch.float64))
    torch.testing.assert_close(found.mean, x.double().mean(0))


def test_the_bound_holds_whatever_the_space() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 0.8 ** torch.arange(60, dtype=torch.float64)
    matrix = torch.diag(values)
    for error in (0.03, 1e-3, 1e-6):
        noise = error * torch.randn(60, 20, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(torch.eye(60, dtype=torch.float64)[:, :20] + noise)[0]
        pairs = Pairs.of(basis, matrix @ basis)
        missed = float(values[:8].sum() - pairs.values[:8].sum())
        assert missed <= pairs.missed(8) + 1e-14
        assert pairs.missed(8) < 30 * missed + 1e-14
