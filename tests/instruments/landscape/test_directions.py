"""Directions: norms by filter, ReLU rescaling, Gaussians, planes through points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.landscape.directions import (
    directions_through,
    principal_directions,
    project,
    random_directions,
)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 4, 2),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5))


def by_name(model: nn.Module, vector: np.ndarray) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    parts = torch.from_numpy(vector).split([p.numel() for p in parameters.values()])
    return {
        name: part.view_as(p)
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def test_every_filter_has_the_norm_of_the_models_filter_and_vectors_stay() -> None:
    model = cnn()
    for vector in random_directions(model, 3, seed=4):
        moves = by_name(model, vector)
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                assert not moves[name].any()
                continue
            first, second = (moves[name], weight.detach().double())
            # A transposed convolution has its output channels in the second axis.
            if name == "3.weight":
                first, second = first.transpose(0, 1), second.transpose(0, 1)
            torch.testing.assert_close(
                first.flatten(1).norm(dim=1), second.flatten(1).norm(dim=1)
            )


def test_layers_as_a_whole_and_biases() -> None:
    model = cnn()
    moves = by_name(
        model, random_directions(model, 1, normalization="layer", biases="layer")[0]
    )
    for name, weight in model.named_parameters():
        assert moves[name].norm().item() == pytest.approx(weight.double().norm().item())
    ratios = moves["5.weight"].norm(dim=1) / model[5].weight.double().norm(dim=1)
    assert ratios.std() > 0.01
    filters = by_name(model, random_directions(model, 1, biases="layer")[0])
    assert filters["5.bias"].norm().item() == pytest.approx(
        model[5].bias.double().norm().item()
    )


def test_raw_directions_are_standard_normal_not_uniform() -> None:
    model = nn.Linear(200, 50, bias=False)
    direction = random_directions(model, 1, normalization="none", seed=1)[0]
    assert stats.kstest(direction, "norm").pvalue > 0.01
    assert (direction < 0).mean() == pytest.approx(0.5, abs=0.02)
    first, second = random_directions(model, 2, normalization="none")
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(cosine) < 5 / np.sqrt(10_000)  # uniform ones on [0, 1) have 0.75


def test_the_seed_decides_alone() -> None:
    model = cnn()
    state = torch.get_rng_state()
    first = random_directions(model, seed=7)
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, random_directions(model, seed=7))
    np.testing.assert_allclose(
        first, random_directions(model.double(), seed=7), rtol=1e-6
    )
    np.testing.assert_array_equal(
        first[0], random_directions(model.float(), 1, seed=7)[0]
    )
    assert np.abs(first - random_directions(model, seed=8)).max() > 0.1
    torch.set_rng_state(state)


def rescaled(model: nn.Sequential, factor: float) -> nn.Sequential:
    with torch.no_grad():
        model[0].weight *= factor
        model[0].bias *= factor
        model[2].weight /= factor
    return model


@pytest.mark.parametrize(
    ("normalization", "invariant"), [("filter", True), ("layer", True), ("none", False)]
)
def test_relu_rescaling_of_adjacent_layers_does_not_matter(
    normalization: str, invariant: bool
) -> None:
    """Doubling a layer and halving the next must leave the plane."""

    def moved(model: nn.Sequential) -> torch.Tensor:
        vector = random_directions(model, 1, normalization=normalization, seed=3)[0]  # type: ignore[arg-type]
        point = {
            k: v.detach() + 0.5 * by_name(model, vector)[k]
            for k, v in model.named_parameters()
        }
        return torch.func.functional_call(model, point, (x,))

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()

    x = torch.linspace(-1, 1, 15).double().view(5, 3)
    difference = (moved(network()) - moved(rescaled(network(), 8.0))).abs().max().item()
    assert (difference < 1e-12) == invariant


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: random_directions(nn.Linear(2, 2), normalization="filters"),
            "Did you mean 'filter'",
        ),  # type: ignore[arg-type]
        (
            lambda: random_directions(nn.Linear(2, 2), biases="keep"),
            "no biases 'keep'. Choices: zero, layer",
        ),  # type: ignore[arg-type]
        (
            lambda: random_directions(nn.BatchNorm1d(3)),
            "directions are zero.*biases='layer'",
        ),
        (
            lambda: random_directions(nn.Linear(2, 2), parameters="*.wight"),
            "no trainable parameter",
        ),
        (
            lambda: directions_through(np.zeros(3), [np.ones(3), np.ones(3)]),
            "two of them are equal",
        ),
        (
            lambda: directions_through(np.zeros(3), [np.ones(3), 2 * np.ones(3)]),
            "lie on one line",
        ),
        (
            lambda: directions_through(np.zeros(3), [np.zeros(3), np.ones(3)]),
            "span no plane",
        ),
        (
            lambda: project(np.zeros((1, 3)), np.zeros(3), np.ones((2, 3))),
            "parallel or zero",
        ),
    ],
)
def test_what_spans_nothing_is_refused(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_three_points_lie_exactly_at_their_coordinates() -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 200))
    directions, coordinates = directions_through(a, [b, c])
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(a + coordinates @ directions, [a, b, c], atol=1e-13)
    assert coordinates[1, 1] == 0
    assert (coordinates[1, 0], coordinates[2, 1]) > (0, 0)
    assert coordinates[1, 0] == pytest.approx(np.linalg.norm(b - a))


def test_principal_directions_are_the_singular_vectors_around_the_last_point() -> None:
    points = np.cumsum(np.random.default_rng(1).normal(size=(9, 30)), axis=0)
    directions, shares = principal_directions(points)
    _, values, vectors = np.linalg.svd(points - points[-1])
    np.testing.assert_allclose(
        np.abs(directions @ vectors[:2].T), np.eye(2), atol=1e-10
    )
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum(), rtol=1e-10)


def test_projection_on_directions_that_are_not_orthogonal() -> None:
    generator = np.random.default_rng(2)
    directions, center = generator.normal(size=(2, 20)), generator.normal(size=20)
    inside = center + np.array([[1.5, -2.0], [0.0, 0.5]]) @ directions
    coordinates, distances = project(inside, center, directions)
    np.testing.assert_allclose(coordinates, [[1.5, -2], [0, 0.5]], atol=1e-12)
    np.testing.assert_allclose(distances, 0, atol=1e-12)
    normal = np.linalg.svd(directions)[2][-1]
    coordinates, distances = project(inside + 3 * normal, center, directions)
    np.testing.assert_allclose(coordinates, [[1.5, -2], [0, 0.5]], atol=1e-12)
    np.testing.assert_allclose(distances, 3, rtol=1e-12)
