"""Trajectory PCA against NumPy's singular values, closed forms, and itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.landscape import weight_paths
from nablab.instruments.landscape.trajectories import (
    TrajectoryPCA,
    random_walk_shares,
    trajectory_pca,
)

CENTERS = ("mean", "first", "last")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def path(
    points: int = 9, size: int = 40, *, seed: int = 0, offset: float = 0.0
) -> np.ndarray:
    """A curved path with noise: several components of clearly different variance."""
    draw = np.random.default_rng(seed)
    time = np.linspace(0, 1, points)
    shapes = np.stack([time, time**2, np.sin(5 * time)], axis=1)
    noise = 0.01 * draw.normal(size=(points, size))
    return shapes @ draw.normal(size=(3, size)) * [3.0] + noise + offset


def centered(x: np.ndarray, center: str) -> np.ndarray:
    return x - {"mean": x.mean(axis=0), "first": x[0], "last": x[-1]}[center]


def state_dicts(
    points: int = 6, *, norm: bool = False, dtype: torch.dtype = torch.float32
) -> list[Any]:
    found = []
    for seed in range(points):
        torch.manual_seed(seed)
        extra = [nn.BatchNorm1d(5)] if norm else []
        found.append(
            nn.Sequential(nn.Linear(3, 5), *extra, nn.Linear(5, 2))
            .to(dtype)
            .state_dict()
        )
    return found


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([t.reshape(-1).double() for t in state.values()]).numpy()


def same(a: TrajectoryPCA, b: TrajectoryPCA, tolerance: float = 1e-10) -> None:
    for name in (
        "coordinates",
        "explained_variance_ratio",
        "projection_error",
        "distance",
    ):
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("center", CENTERS)
def test_equals_the_singular_value_decomposition(center: Any) -> None:
    x = path()
    y = centered(x, center)
    u, s, vt = np.linalg.svd(y, full_matrices=False)
    result = trajectory_pca(x, center=center, components=3)
    np.testing.assert_allclose(
        result.explained_variance_ratio, (s**2 / (s**2).sum())[:8], atol=1e-14
    )
    signs = np.sign((result.coordinates * u[:, :3]).sum(axis=0))
    np.testing.assert_allclose(result.coordinates, (u * s)[:, :3] * signs, atol=1e-12)
    np.testing.assert_allclose(result.directions(), vt[:3].T * signs, atol=1e-11)
    np.testing.assert_allclose(result.center_point(), x[0] - y[0], atol=1e-14)
    projected = (u * s)[:, :3] @ vt[:3]
    np.testing.assert_allclose(
        result.projection_error, np.linalg.norm(y - projected, axis=1), atol=1e-12
    )
    np.testing.assert_allclose(result.distance, np.linalg.norm(y, axis=1), atol=1e-13)
    relative = (
        np.linalg.norm(y - projected, axis=1)[1:-1] / np.linalg.norm(y, axis=1)[1:-1]
    )
    np.testing.assert_allclose(
        result.relative_projection_error[1:-1], relative, atol=1e-12
    )
    if center != "mean":
        assert result.relative_projection_error[0 if center == "first" else -1] == 0


def test_coordinates_are_what_the_directions_give() -> None:
    x = path(12, 200)
    result = trajectory_pca(x, components=4)
    directions = result.directions()
    np.testing.assert_allclose(directions.T @ directions, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(
        (x - result.center_point()) @ directions, result.coordinates, atol=1e-11
    )


@pytest.mark.parametrize("block", [1, 7, 100, 10**6])
def test_streamed_equals_dense(block: int) -> None:
    x = path(offset=3.0)
    dense, streamed = trajectory_pca(x), trajectory_pca(x, block=block)
    same(dense, streamed)
    np.testing.assert_allclose(dense.directions(), streamed.directions(), atol=1e-11)
    np.testing.assert_allclose(
        dense.center_point(), streamed.center_point(), atol=1e-14
    )


def test_a_large_path_is_never_held_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 points of 200,000 float32 entries, in blocks of 100,000 numbers."""
    points, size, limit = 40, 200_000, 100_000
    x = torch.randn(points, size, generator=torch.Generator().manual_seed(0))
    held: list[int] = []
    create = np.empty
    monkeypatch.setattr(
        weight_paths.np,
        "empty",
        lambda shape: held.append(math.prod([shape])) or create(shape),
    )
    result = trajectory_pca(x, block=limit)
    assert held == [limit]
    monkeypatch.undo()
    y = x.double().numpy()
    y -= y.mean(axis=0)
    variances = np.linalg.eigvalsh(y @ y.T)[::-1]
    np.testing.assert_allclose(
        result.explained_variance_ratio, variances[:-1] / variances.sum(), rtol=1e-10
    )


def test_points_far_from_the_origin_lose_no_digits() -> None:
    x = path()
    near, far = trajectory_pca(x), trajectory_pca(x + 1e6)
    # Adding 1e6 rounds the points themselves to 1e-10; a Gram matrix of uncentered
    # points would lose 1e-2.
    same(near, far, 1e-8)


@pytest.mark.parametrize("center", CENTERS)
def test_rotation_order_of_entries_and_scale_do_not_matter(center: Any) -> None:
    x = path()
    draw = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(draw.normal(size=(40, 40)))
    before = trajectory_pca(x, center=center)
    same(before, trajectory_pca(x @ rotation, center=center))
    same(before, trajectory_pca(x[:, draw.permutation(40)], center=center))
    np.testing.assert_allclose(
        trajectory_pca(3 * x, center=center).coordinates, 3 * before.coordinates
    )


def test_all_forms_of_points_agree(tmp_path: Path) -> None:
    states = state_dicts()
    files = [tmp_path / f"{index}.safetensors" for index in range(len(states))]
    for file, state in zip(files, states, strict=True):
        save_file(state, file)
    array = np.stack([flat(state) for state in states])
    expected = trajectory_pca(array)
    same(expected, trajectory_pca(torch.from_numpy(array)))
    same(expected, trajectory_pca(list(array)))
    same(expected, trajectory_pca(states))
    same(expected, trajectory_pca(files))
    same(expected, trajectory_pca([str(file) for file in files], block=11))
    frozen = array.copy()
    frozen.flags.writeable = False  # as a memory-mapped array is
    same(expected, trajectory_pca(frozen))
    assert trajectory_pca(states).names == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_half_precision_is_read_exactly() -> None:
    states = state_dicts(dtype=torch.bfloat16)
    same(
        trajectory_pca(states),
        trajectory_pca(np.stack([flat(state) for state in states])),
    )


def test_one_layer() -> None:
    states = state_dicts()
    one = trajectory_pca(states, parameters="0.*")
    same(
        one,
        trajectory_pca(
            [flat({k: s[k] for k in ("0.weight", "0.bias")}) for s in states]
        ),
    )
    assert one.names == ("0.weight", "0.bias")
    assert one.size == 20
    named = one.unflatten(one.directions()[:, 0])
    assert {name: part.shape for name, part in named.items()} == {
        "0.weight": (5, 3),
        "0.bias": (5,),
    }
    np.testing.assert_array_equal(
        np.concatenate([p.ravel() for p in named.values()]), one.directions()[:, 0]
    )
    assert trajectory_pca(states, parameters=["1.bias", "0.bias"]).names == (
        "0.bias",
        "1.bias",
    )


def test_running_statistics_are_no_weights() -> None:
    states = state_dicts(norm=True)
    result = trajectory_pca(states)
    assert not [name for name in result.names if "running" in name or "num" in name]
    assert result.notes == (
        "The running statistics of batch norm are left out: they are not weights.",
    )
    for state in states:
        state["1.running_mean"] = torch.randn(5)
    asked = trajectory_pca(states, parameters="*running_mean")
    assert asked.names == ("1.running_mean",)
    assert asked.notes == ()


def test_several_runs_share_one_projection() -> None:
    runs = {"a": path(5, seed=1), "b": path(8, seed=2)}
    joint = trajectory_pca(runs, components=3)
    same(joint, trajectory_pca(np.concatenate(list(runs.values())), components=3))
    assert joint.labels == ("a", "b")
    assert joint.lengths == (5, 8)
    assert {label: len(part) for label, part in joint.paths.items()} == {"a": 5, "b": 8}
    np.testing.assert_array_equal(
        np.concatenate(list(joint.paths.values())), joint.coordinates
    )


def test_a_straight_line_has_one_component_and_no_second_direction() -> None:
    line = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
    result = trajectory_pca(line)
    np.testing.assert_allclose(
        result.coordinates[:, 0], [10, 5, 0, -5, -10], atol=1e-12
    )
    np.testing.assert_allclose(
        result.explained_variance_ratio, [1, 0, 0, 0], atol=1e-14
    )
    np.testing.assert_allclose(result.projection_error, 0, atol=1e-6)
    with pytest.raises(UsageError, match=r"span 1 of the 2 dimensions.*components=1"):
        result.directions()
    np.testing.assert_allclose(
        np.abs(trajectory_pca(line, components=1).directions()[:, 0]), [0.6, 0.8, 0]
    )


# --- the random walk ------------------------------------------------------------------


def test_the_shares_of_an_endless_walk() -> None:
    """6/(π j)² gives 60.8 and 15.2 %, as Antognini and Sohl-Dickstein (2018)."""
    index = np.arange(1, 6)
    np.testing.assert_allclose(
        random_walk_shares(20_000)[:5], 6 / (np.pi * index) ** 2, rtol=1e-3
    )
    expected = 8 / (np.pi * (2 * index - 1)) ** 2
    np.testing.assert_allclose(
        random_walk_shares(20_000, "last")[:5], expected, rtol=1e-3
    )
    np.testing.assert_array_equal(
        random_walk_shares(50, "first"), random_walk_shares(50, "last")
    )


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("length", [2, 3, 17])
def test_the_closed_form_equals_the_expected_gram_matrix(
    length: int, center: Any
) -> None:
    steps = np.arange(length, dtype=float)
    gram = np.minimum.outer(steps, steps)
    shift = (
        np.eye(length)
        - {
            "mean": np.full((length, length), 1 / length),
            "first": np.eye(length)[[0] * length],
            "last": np.eye(length)[[-1] * length],
        }[center]
    )
    values = np.linalg.eigvalsh(shift @ gram @ shift.T)[::-1][: length - 1]
    np.testing.assert_allclose(
        random_walk_shares(length, center), values / values.sum(), atol=1e-12
    )


@pytest.mark.parametrize("center", CENTERS)
def test_simulated_walks_have_these_shares(center: Any) -> None:
    draw = np.random.default_rng(0)
    lengths = (8, 5)
    start = draw.normal(size=20_000)
    steps = [draw.normal(size=(n, 20_000)) for n in lengths]
    walks = {
        str(n): start + np.cumsum(np.vstack([0 * s[:1], s[1:]]), axis=0)
        for n, s in zip(lengths, steps, strict=True)
    }
    result = trajectory_pca(walks, center=center)
    np.testing.assert_allclose(
        result.explained_variance_ratio, result.random_walk, atol=0.01
    )
    single = trajectory_pca(walks["8"], center=center)
    np.testing.assert_allclose(
        single.explained_variance_ratio, single.random_walk, atol=0.01
    )


def test_a_walk_of_independent_runs_has_as_many_shares_as_points() -> None:
    shares = random_walk_shares((4, 4))
    assert len(shares) == 7
    assert shares.sum() == pytest.approx(1)
    # The two starts are one point, so one dimension is lost.
    assert shares[-1] == pytest.approx(0, abs=1e-12)


# --- what is handed back --------------------------------------------------------------


def test_the_result_is_plain_json() -> None:
    content = json.loads(json.dumps(trajectory_pca(state_dicts()).to_dict()))
    assert content["lengths"] == [6]
    assert len(content["coordinates"]) == 6
    assert not [name for name in content if name.startswith("_")]


def test_measuring_does_not_touch_the_points() -> None:
    x = path()
    before = x.copy()
    trajectory_pca(x, center="last").directions()
    np.testing.assert_array_equal(x, before)


def test_the_figure_shows_every_run_with_its_start_and_end() -> None:
    runs = {"a": path(5, seed=1), "b": path(8, seed=2)}
    result = trajectory_pca(runs)
    figure = result.plot()
    (ax,) = figure.axes
    lines = ax.get_lines()
    assert len(lines) == 6
    np.testing.assert_array_equal(np.c_[lines[0].get_data()], result.paths["a"])
    np.testing.assert_array_equal(np.c_[lines[1].get_data()], result.paths["a"][:1])
    np.testing.assert_array_equal(np.c_[lines[5].get_data()], result.paths["b"][-1:])
    assert lines[0].get_color() != lines[3].get_color()
    assert f"{result.explained_variance_ratio[0]:.1%}" in ax.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert len(trajectory_pca(path(), components=1).plot().axes[0].get_lines()) == 3


# --- bad input ------------------------------------------------------------------------


def broken(**tensors: torch.Tensor) -> list[Any]:
    states = state_dicts(3)
    states[2] = {**states[2], **tensors}
    return states


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (path()[:1], {}, r"at least two points, and every run one; got 1"),
        ([], {}, r"at least two points"),
        ({}, {}, r"at least two points.*got 0"),
        (np.zeros(5), {}, r"has shape \(T, P\).*\(5,\)"),
        (np.ones((3, 5)), {}, r"All points are equal"),
        (
            path(3),
            {"components": 3},
            r"components=3 is impossible: 3 points with 40 entries span at most 2",
        ),
        (path(3), {"components": 0}, r"components=0 is impossible"),
        (
            path(3),
            {"center": "maen"},
            r"Did you mean 'mean'\? Choices: mean, first, last",
        ),
        (
            broken(**{"1.weight": torch.zeros(2, 4)}),
            {},
            r"Point 2 has shape \(2, 4\) for '1.weight', Point 0 has",
        ),
        (
            {"a": state_dicts(2), "b": [{"0.weight": torch.zeros(1)}]},
            {},
            r"Point 0 of run 'b' has shape \(1,\)",
        ),
        ([np.zeros(3), np.zeros(4)], {}, r"Point 1 has shape \(4,\) for the vector"),
        (
            broken(**{"0.bias": torch.full((5,), math.nan)}),
            {},
            r"Point 2 holds values.*in '0.bias'.*diverged",
        ),
        (
            {"a": path(3), "b": path(3) * np.inf},
            {},
            r"Point 0 of run 'b' holds values that are NaN",
        ),
        (
            state_dicts(),
            {"parameters": "2.*"},
            r"no tensor in the points '2.\*'.*Choices: 0.weight",
        ),
        (
            ["nowhere.safetensors", "else"],
            {},
            r"'nowhere.safetensors' cannot be read as safetensors",
        ),
        ("nowhere.safetensors", {}, r"Points of type str cannot be read"),
        ([1, 2], {}, r"A point of type int cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_refused(
    points: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        trajectory_pca(points, **options)


def test_the_expected_cost_is_one_block() -> None:
    assert trajectory_pca.expected(None).gradients == 0
    assert trajectory_pca.expected(None).numbers < 1e7
