"""Least squares of smallest norm: dense truth, the closed form of its expected error,
the peak at P = N.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nablab import models
from nablab.errors import UsageError


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("features", [7, 20, 33])
def test_it_is_the_pseudo_inverse(features: int) -> None:
    phi, targets = gaussian(20, features, seed=1), gaussian(20, 3, seed=2)
    torch.testing.assert_close(
        models.minimum_norm(phi, targets), torch.linalg.pinv(phi) @ targets
    )


def test_above_the_threshold_it_interpolates_with_the_smallest_norm() -> None:
    phi, targets = gaussian(10, 30, seed=3), gaussian(10, 2, seed=4)
    solution = models.minimum_norm(phi, targets)
    torch.testing.assert_close(phi @ solution, targets)
    # Every other interpolating solution differs by a vector that the samples do not
    # see.
    unseen = torch.linalg.svd(phi).Vh[10:].T @ gaussian(20, 2, seed=5)
    torch.testing.assert_close(phi @ (solution + unseen), targets)
    assert (solution + unseen).norm() > solution.norm()
    torch.testing.assert_close(
        solution.T @ unseen, torch.zeros(2, 2, dtype=torch.float64)
    )


def test_below_the_threshold_the_residual_is_orthogonal_to_the_features() -> None:
    phi, targets = gaussian(30, 10, seed=6), gaussian(30, 2, seed=7)
    residual = targets - phi @ models.minimum_norm(phi, targets)
    torch.testing.assert_close(
        phi.T @ residual, torch.zeros(10, 2, dtype=torch.float64)
    )


def test_equal_columns_share_the_weight() -> None:
    phi = torch.ones(4, 2, dtype=torch.float64)
    solution = models.minimum_norm(phi, 3 * torch.ones(4, 1, dtype=torch.float64))
    torch.testing.assert_close(
        solution[:, 0], torch.full((2,), 1.5, dtype=torch.float64)
    )


@pytest.mark.parametrize("used", [10, 20, 60, 120])
def test_the_expected_error_is_that_of_the_closed_form(used: int) -> None:
    """Belkin, Hsu and Xu 2020, theorem 1: Gaussian features, ``used`` of 160, 40
    samples, noise of 0.5.
    """
    samples, noise, errors = 40, 0.5, []
    truth = torch.ones(160, 1, dtype=torch.float64) / 160**0.5
    for draw in range(300):
        x = gaussian(samples, 160, seed=1_000 + draw)
        y = x @ truth + noise * gaussian(samples, 1, seed=9_000 + draw)
        weights = torch.zeros_like(truth)
        weights[:used] = models.minimum_norm(x[:, :used], y)
        errors.append(float((weights - truth).square().sum()) + noise**2)
    kept, rest = used / 160, 1 - used / 160 + noise**2
    if used < samples:
        expected = rest * (1 + used / (samples - used - 1))
    else:
        expected = kept * (1 - samples / used) + rest * (
            1 + samples / (used - samples - 1)
        )
    # 300 draws: the mean's standard error is below 2 % in each of the cases.
    assert sum(errors) / 300 == pytest.approx(expected, rel=0.06)


def test_the_error_peaks_where_features_equal_samples() -> None:
    """On noisy labels of real digits: at P = N above both sides by far, and at no other
    size as high.
    """
    from nablab import data

    train, test = (data.load("digits", split=split) for split in ("train", "test"))
    train = train.first(150)
    x, x_test = train.normalize(train.images), train.normalize(test.images)
    hot = torch.nn.functional.one_hot
    for seed in range(3):
        labels = data.corrupt(train.labels, 0.2, classes=10, seed=seed).labels
        errors = {}
        for features in (19, 38, 75, 120, 150, 188, 300, 600, 1_200):
            model = models.RandomFeatures.fit(
                x,
                hot(labels, 10) - 0.1,
                features=features,
                generator=torch.Generator().manual_seed(seed),
            )
            errors[features] = float(
                (model(x_test) - (hot(test.labels, 10) - 0.1)).square().mean()
            )
            # there a feature may be 0 for all samples, and one short of interpolating
            if features != 150:
                missed = float((model(x) - (hot(labels, 10) - 0.1)).abs().max())
                assert (missed < 1e-6) == (features > 150)
        assert max(errors, key=lambda size: errors[size]) == 150
        assert errors[150] > 5 * max(errors[75], errors[300])
        assert errors[1_200] < errors[300]


def test_features_are_relu_of_gaussian_directions_of_one_scale() -> None:
    x, targets = torch.randn(5, 1, 3, 3), torch.randn(5, 2)
    model = models.RandomFeatures.fit(
        x, targets, features=20_000, generator=torch.Generator().manual_seed(0)
    )
    assert model.directions.dtype == torch.float64
    assert float(model.directions.var()) == pytest.approx(1 / 9, rel=0.02)
    by_hand = (x.flatten(1).double() @ model.directions.T).clamp(min=0) @ model.weights
    torch.testing.assert_close(model(x), by_hand)
    torch.testing.assert_close(model(x), targets.double())


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 4)
    model = models.RandomFeatures.fit(
        x, x[:, :1], features=9, generator=torch.Generator().manual_seed(0)
    )
    whole = model(x)
    monkeypatch.setattr("nablab.models.random_features.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(model(x), whole)


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 1)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(3, 0), torch.zeros(3, 1)),
    ],
)
def test_what_does_not_fit_together_is_refused(features: Any, targets: Any) -> None:
    with pytest.raises(
        UsageError, match=r"features \(N, D\) and targets \(N, K\) of the same N"
    ):
        models.minimum_norm(features, targets)
