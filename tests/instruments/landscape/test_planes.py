"""Planes: paraboloids, the straight scan, exact models, paths, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.base.objective import Objective
from nablab.instruments.landscape import partial_results
from nablab.instruments.landscape.directions import random_directions
from nablab.instruments.landscape.interpolation import interpolate
from nablab.instruments.landscape.planes import LossPlane, loss_plane


class Point(nn.Module):
    """A vector of weights; losses are closures over it."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor(values, dtype=torch.float64))


NOTHING = torch.zeros(1, dtype=torch.float64)


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def classes(
    samples: int = 60, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 4, (samples,), generator=generator)


def shifted(model: nn.Sequential, step: np.ndarray) -> nn.Sequential:
    found = network()
    vector = nn.utils.parameters_to_vector(model.parameters()) + torch.from_numpy(step)
    nn.utils.vector_to_parameters(vector.detach(), found.parameters())
    return found


@pytest.mark.parametrize("batched", [True, False])
def test_a_quadratic_is_an_exact_paraboloid(batched: bool) -> None:
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double()
    loss = Closure(lambda model, _: (matrix @ model.vector).square().sum())
    center = np.array([1.0, -2, 3, 0.5])
    directions = np.random.default_rng(0).normal(size=(2, 4))
    plane = loss_plane(
        Point(*center),
        loss,
        NOTHING,
        directions=directions,
        extent=2.0,
        resolution=7,
        batched=batched,
    )
    for j, beta in enumerate(plane.betas):
        for i, alpha in enumerate(plane.alphas):
            point = center + alpha * directions[0] + beta * directions[1]
            assert plane.losses[j, i] == pytest.approx(
                ((matrix.numpy() @ point) ** 2).sum(), rel=1e-12
            )
    np.testing.assert_array_equal(plane.alphas[[0, 3, -1]], [-2, 0, 2])


@pytest.mark.parametrize("batched", [True, False])
def test_rows_are_scanned_in_one_sense(batched: bool) -> None:
    """A serpentine scan would reverse every other row of an asymmetric function."""
    loss = Closure(lambda model, _: 10 * model.vector[0] + 1000 * model.vector[1])
    plane = loss_plane(
        Point(0.0, 0.0),
        loss,
        NOTHING,
        directions=np.eye(2),
        extent=3,
        resolution=7,
        batched=batched,
    )
    steps = np.arange(-3.0, 4.0)
    np.testing.assert_array_equal(
        plane.losses, 10 * steps[None, :] + 1000 * steps[:, None]
    )
    np.testing.assert_array_equal(plane.alphas, steps)
    np.testing.assert_array_equal(plane.betas, steps)


@pytest.mark.parametrize("resolution", [5, 25])
def test_the_center_is_the_model_itself_to_the_bit(resolution: int) -> None:
    model, data = network(dtype=torch.float32), classes(dtype=torch.float32)
    plane = loss_plane(model, "cross_entropy", data, resolution=resolution)
    assert plane.center == (resolution // 2, resolution // 2)
    assert plane.losses[plane.center] == Objective(model, "cross_entropy", data).loss()
    assert (plane.alphas[plane.center[1]], plane.betas[plane.center[0]]) == (0, 0)


def test_rows_and_columns_through_the_center_are_lines() -> None:
    model, data = network(), classes()
    plane = loss_plane(model, "cross_entropy", data, resolution=9, metrics="accuracy")
    for direction, along, values in (
        (0, plane.alphas, plane.losses[plane.center[0]]),
        (1, plane.betas, plane.losses[:, plane.center[1]]),
    ):
        other = shifted(model, plane.directions[direction])
        line = interpolate(model, other, "cross_entropy", data, alphas=along)
        np.testing.assert_allclose([line.at(a) for a in along], values, rtol=1e-12)


@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_blocks_equal_the_loop(loss: Any) -> None:
    model, (x, y) = network(), classes(300)
    data = {
        "train": [(x[:190], y[:190]), (x[190:200], y[190:200])],
        "test": (x[200:], y[200:]),
    }
    one, many = (
        loss_plane(model, loss, data, metrics=["error"], resolution=5, batched=b)
        for b in (False, True)
    )
    for name in ("train", "test"):
        for metric in ("loss", "error"):
            np.testing.assert_allclose(
                one.values[name][metric],
                many.values[name][metric],
                rtol=1e-12,
                atol=1e-15,
            )
    assert one.gradients == pytest.approx(many.gradients)


def test_the_plane_is_that_of_the_directions_and_the_seed() -> None:
    model, data = network(), classes()
    plane = loss_plane(model, "cross_entropy", data, resolution=5, seed=3)
    np.testing.assert_array_equal(plane.directions, random_directions(model, seed=3))
    again = loss_plane(
        model, "cross_entropy", data, resolution=5, directions=plane.directions
    )
    np.testing.assert_array_equal(plane.losses, again.losses)
    corner = shifted(model, plane.directions[0] - plane.directions[1])
    assert plane.losses[0, -1] == pytest.approx(
        Objective(corner, "cross_entropy", data).loss(), rel=1e-12
    )


def test_filter_normalized_planes_do_not_change_when_relu_layers_are_rescaled() -> None:
    def model(factor: float) -> nn.Sequential:
        torch.manual_seed(0)
        found = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).double()
        with torch.no_grad():
            found[0].weight *= factor
            found[0].bias *= factor
            found[2].weight /= factor
        return found

    def values(factor: float, normalization: Any) -> np.ndarray:
        found = loss_plane(
            model(factor),
            "cross_entropy",
            classes(),
            resolution=5,
            normalization=normalization,
        )
        return found.losses

    np.testing.assert_allclose(values(1, "filter"), values(10, "filter"), rtol=1e-12)
    assert np.abs(values(1, "none") - values(10, "none")).max() > 1


def test_some_parameters_may_stay() -> None:
    model, data = network(), classes()
    plane = loss_plane(
        model, "cross_entropy", data, resolution=5, parameters="2.*", seed=1
    )
    assert plane.directions.shape == (2, 36)
    step = np.concatenate([np.zeros(32), plane.directions[0]])
    moved = Objective(shifted(model, step), "cross_entropy", data).loss()
    assert plane.losses[2, -1] == pytest.approx(moved, rel=1e-12)


# Three models and paths


def test_three_models_lie_at_their_coordinates_with_their_own_losses() -> None:
    models, data = [network(seed) for seed in (1, 2, 3)], classes()
    plane = loss_plane(
        models[0], "cross_entropy", data, through=models[1:], resolution=9
    )
    points = [
        nn.utils.parameters_to_vector(m.parameters()).detach().numpy() for m in models
    ]
    for coordinates, point, model, loss in zip(
        plane.models, points, models, plane.model_losses, strict=True
    ):
        np.testing.assert_allclose(
            points[0] + coordinates @ plane.directions, point, atol=1e-13
        )
        assert loss == Objective(model, "cross_entropy", data).loss()
        for axis, at in ((plane.alphas, coordinates[0]), (plane.betas, coordinates[1])):
            assert axis[0] < at < axis[-1]
    assert plane.losses[plane.center] == plane.model_losses[0]
    assert 0.0 in plane.alphas
    np.testing.assert_allclose(np.diff(plane.alphas), plane.alphas[1] - plane.alphas[0])


def test_buffers_that_differ_between_the_models_are_said() -> None:
    def with_norm(mean: float) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
        model[1].running_mean.fill_(mean)
        return model

    a, b, c = (with_norm(mean) for mean in (0, 0, 1))
    plane = loss_plane(a, "cross_entropy", classes(), through=[b, c], resolution=5)
    assert "differ in buffers" in plane.notes[0]


def path_of(model: nn.Sequential, steps: int = 6) -> np.ndarray:
    """Points in a plane through the model, but for one that lies 0.001 off it."""
    first, second, normal = np.linalg.qr(np.random.default_rng(0).normal(size=(68, 3)))[
        0
    ].T
    center = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    time = np.linspace(1, 0, steps)[:, None]
    points = center + 3 * time * first + np.sin(3 * time) * second
    points[2] += 1e-3 * normal
    return points


def test_a_path_in_a_plane_is_found_with_its_coordinates_and_errors() -> None:
    model, data = network(), classes()
    points = path_of(model)
    plane = loss_plane(model, "cross_entropy", data, path=points, resolution=11)
    center = points[-1]
    offsets = plane.path @ plane.directions + center - points
    np.testing.assert_allclose(
        np.linalg.norm(offsets, axis=1), plane.path_error, atol=1e-12
    )
    left = np.linalg.svd(points - center)[1][2:]
    assert (plane.path_error**2).sum() == pytest.approx((left**2).sum(), rel=1e-6)
    assert 1e-4 < plane.path_error.max() < 1e-3
    np.testing.assert_allclose(plane.path[-1], 0, atol=1e-12)
    assert plane.explained.sum() == pytest.approx(1, abs=1e-6)
    assert plane.explained[0] > plane.explained[1]
    for axis, values in (
        (plane.alphas, plane.path[:, 0]),
        (plane.betas, plane.path[:, 1]),
    ):
        assert axis[0] < values.min()
        assert values.max() < axis[-1]


def test_a_path_may_be_given_by_name_and_without_its_end() -> None:
    model, data = network(), classes()
    points = path_of(model)
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    states = [
        dict(zip(names, torch.from_numpy(p).split(sizes), strict=True)) for p in points
    ]
    whole = loss_plane(model, "cross_entropy", data, path=points, resolution=5)
    for given in (states, torch.from_numpy(points), points[:-1]):
        plane = loss_plane(model, "cross_entropy", data, path=given, resolution=5)
        np.testing.assert_allclose(plane.directions, whole.directions, atol=1e-9)
    assert len(plane.path) == len(points) - 1


# Subsets


def test_the_intervals_of_a_subset_hold_the_full_value_as_often_as_they_say() -> None:
    model, (x, y) = network(), classes(400)
    parts = [(x[:250], y[:250]), (x[250:], y[250:])]
    full = loss_plane(model, "cross_entropy", parts, resolution=5)
    hits, variances = [], []
    for seed in range(60):
        part = loss_plane(
            model,
            "cross_entropy",
            parts,
            resolution=5,
            subset=100,
            seed=seed,
            directions=full.directions,
        )
        low, high = part.interval()
        hits.append((low <= full.losses) & (full.losses <= high))
        variances.append(part.standard_errors["data"]["loss"][2, 2] ** 2)
    assert 0.88 < np.mean(hits) <= 0.995
    assert part.degrees_of_freedom == 19
    # The variance of single losses over their number, less a quarter: drawn without
    # replacement.
    with torch.no_grad():
        spread = nn.functional.cross_entropy(model(x), y, reduction="none").var().item()
    assert np.mean(variances) == pytest.approx(0.75 * spread / 100, rel=0.15)


def test_without_a_subset_there_is_no_interval() -> None:
    plane = loss_plane(network(), "cross_entropy", classes(), resolution=5)
    with pytest.raises(UsageError, match="all data were measured"):
        plane.interval()


@pytest.mark.parametrize("size", [1, 60, 61])
def test_impossible_subsets_are_refused(size: int) -> None:
    with pytest.raises(
        UsageError, match=f"subset={size} is impossible: the data have 60 samples"
    ):
        loss_plane(network(), "cross_entropy", classes(), resolution=5, subset=size)


def test_a_subset_of_mappings() -> None:
    x, y = classes()
    loss = Closure(
        lambda model, batch: nn.functional.cross_entropy(
            model(batch["in"]["x"]), batch["y"]
        )
    )
    named = loss_plane(
        network(), loss, {"in": {"x": x}, "y": y}, resolution=5, subset=30, seed=2
    )
    plain = loss_plane(
        network(), "cross_entropy", (x, y), resolution=5, subset=30, seed=2
    )
    np.testing.assert_allclose(named.losses, plain.losses, rtol=1e-12)


# Checkpoints


class Stopped(Exception):
    """Somebody pressed a key."""


def counted(limit: float = float("inf")) -> tuple[list[int], Any]:
    calls: list[int] = []

    def metric(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > limit:
            raise Stopped
        return outputs.mean()

    return calls, metric


def test_an_interrupted_plane_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"resolution": 11, "batched": False}
    whole = loss_plane(
        network(), "cross_entropy", classes(), metrics={"m": counted()[1]}, **options
    )
    file = tmp_path / "sub" / "plane.npz"
    with pytest.raises(Stopped):
        loss_plane(
            network(),
            "cross_entropy",
            classes(),
            metrics={"m": counted(100)[1]},
            checkpoint=file,
            **options,
        )
    calls, metric = counted()
    resumed = loss_plane(
        network(),
        "cross_entropy",
        classes(),
        metrics={"m": metric},
        checkpoint=file,
        **options,
    )
    assert len(calls) == 121 - 64 + 1
    assert "64 of 121 points were found" in resumed.notes[0]
    for name in ("loss", "m"):
        np.testing.assert_array_equal(
            resumed.values["data"][name], whole.values["data"][name]
        )
    calls, metric = counted()
    again = loss_plane(
        network(),
        "cross_entropy",
        classes(),
        metrics={"m": metric},
        checkpoint=file,
        **options,
    )
    assert len(calls) == 1
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert [path.name for path in file.parent.iterdir()] == ["plane.npz"]


def test_it_is_saved_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 0.0)
    saves = []
    save = partial_results.PartialResults.save
    monkeypatch.setattr(
        partial_results.PartialResults,
        "save",
        lambda self: (saves.append(self.done), save(self))[1],
    )
    loss_plane(
        network(),
        "cross_entropy",
        classes(),
        resolution=11,
        checkpoint=tmp_path / "plane.npz",
    )
    assert saves == [64, 121, 121]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"extent": 2.0},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"model": network(1)},
        {"data": classes(59)},
        {"metrics": "error"},
        {"resolution": 7},
    ],
)
def test_a_checkpoint_of_another_plane_is_refused(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    base: dict[str, Any] = {
        "model": network(),
        "loss": "cross_entropy",
        "data": classes(),
        "resolution": 5,
    }
    file = tmp_path / "plane.npz"
    loss_plane(**base, checkpoint=file)
    with pytest.raises(UsageError, match=r"belongs to another measurement"):
        loss_plane(**{**base, **other}, checkpoint=file)


def test_a_file_that_is_no_checkpoint_is_refused_and_never_unpickled(
    tmp_path: Path,
) -> None:
    file = tmp_path / "plane.npz"
    file.write_text("no checkpoint")
    with pytest.raises(UsageError, match="cannot be read"):
        loss_plane(network(), "cross_entropy", classes(), resolution=5, checkpoint=file)
    np.savez(file, identity=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match=r"cannot be read \(ValueError\)"):
        loss_plane(network(), "cross_entropy", classes(), resolution=5, checkpoint=file)


# Results, purity, errors


def test_the_result_is_json_and_the_cost_is_foretold() -> None:
    from nablab.instruments.base.measurement import Size

    plane = loss_plane(network(), "cross_entropy", classes(), resolution=9)
    assert json.loads(json.dumps(plane.to_dict()))["center"] == [4, 4]
    expected = loss_plane.expected(
        Size(parameters=68, samples=60, outputs=4), resolution=9
    ).gradients
    assert expected == 27
    assert plane.gradients == pytest.approx(expected, abs=2)


def plotted(plane: LossPlane) -> Any:
    return plane.plot().axes


def test_figures_name_their_axes_and_mark_what_lies_in_the_plane() -> None:
    model, data = network(), classes()
    ax, bar = plotted(loss_plane(model, "cross_entropy", data, resolution=5))
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == (
        "direction 1",
        "direction 2",
        "loss",
    )
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0]])
    plane = loss_plane(model, "cross_entropy", data, path=path_of(model), resolution=5)
    ax, _ = plotted(plane)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), plane.path)
    assert [patch.get_radius() for patch in ax.patches] == plane.path_error.tolist()
    assert ax.get_xlim() == (plane.alphas[0], plane.alphas[-1])
    assert ax.get_xlabel() == (
        f"principal component 1 ({plane.explained[0]:.0%} of the path)"
    )
    plane = loss_plane(
        model, "cross_entropy", data, through=[network(1), network(2)], resolution=5
    )
    ax, _ = plotted(plane)
    assert [text.get_text() for text in ax.texts] == ["A", "B", "C"]
    np.testing.assert_array_equal(
        [line.get_xydata()[0] for line in ax.lines], plane.models
    )


def test_values_over_decades_are_drawn_on_a_logarithmic_scale() -> None:
    loss = Closure(
        lambda model, _: (3 * model.vector.sum()).exp() * 0 + 10 ** model.vector.sum()
    )
    plane = loss_plane(
        Point(0.0, 0.0), loss, NOTHING, directions=np.eye(2), extent=3, resolution=7
    )
    _, bar = plotted(plane)
    assert bar.get_ylabel() == "loss (logarithmic)"
    labels = [text.get_text() for text in bar.get_yticklabels()]
    np.testing.assert_allclose(
        [float(t) for t in labels], 10 ** np.array(bar.get_yticks()), rtol=1e-6
    )
    assert len(labels) >= 3


def test_points_where_the_loss_overflows_are_left_white() -> None:
    loss = Closure(lambda model, _: model.vector.sum().exp().exp().exp())
    plane = loss_plane(
        Point(0.0, 0.0), loss, NOTHING, directions=np.eye(2), extent=3, resolution=7
    )
    assert np.isinf(plane.losses[-1, -1])
    plane.plot()


def test_the_model_is_not_touched() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    loss_plane(model, "cross_entropy", classes(), resolution=5, subset=30)
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)
    )
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 24}, "resolution=24 is impossible: an odd number from 5 on"),
        ({"resolution": 3}, "odd number from 5 on"),
        ({"extent": 0.0}, "extent=0.0 is impossible"),
        (
            {"directions": np.eye(2, 68), "path": np.zeros((3, 68))},
            "give only one of them",
        ),
        (
            {"through": [network(1)]},
            "through holds 1 models: it takes two further ones",
        ),
        ({"through": [network(1), nn.Linear(3, 4)]}, "The models do not match"),
        ({"through": [network(1), network(1)]}, "two of them are equal"),
        (
            {"directions": np.eye(2, 67)},
            r"directions of the shape \(2, 67\) are not a plane",
        ),
        ({"directions": np.full((2, 68), np.nan)}, "two finite directions"),
        ({"directions": np.ones((2, 68))}, "parallel or zero"),
        (
            {"path": np.ones((4, 67))},
            "Point 0 of the path has 67 entries; the chosen parameters have 68",
        ),
        (
            {"path": [{"0.weight": np.ones(24)}]},
            "Point 0 of the path has no parameter '0.bias'",
        ),
        ({"path": np.zeros((1, 68))}, "components=2 is impossible"),
        ({"normalization": "filters"}, "Did you mean 'filter'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss_plane(network(), "cross_entropy", classes(), **options)


def test_a_diverged_model_is_refused() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"'0\.weight' holds 1 values that are NaN"):
        loss_plane(model, "cross_entropy", classes())


def test_a_loss_that_holds_the_model_is_right_at_every_point() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    data = torch.randn(9, 3), torch.randn(9, 1)

    def holding(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(output, target) + 0.1 * sum(
            p.square().sum() for p in model.parameters()
        )

    def given(
        network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        penalty = sum(p.square().sum() for p in network.parameters())
        return F.mse_loss(network(batch[0]), batch[1]) + 0.1 * penalty

    for batched in (True, False):
        found, right = (
            loss_plane(
                model, loss, data, resolution=5, batched=batched, dtype=torch.float64
            ).values
            for loss in (holding, Closure(given))
        )
        assert found["data"]["loss"] == pytest.approx(right["data"]["loss"], rel=1e-9)
