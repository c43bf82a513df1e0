"""Weight trajectories: what it records is recomputed here from the stored paths, and
its settings are " "checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models, training
from nablab.contract import Condition, Records, Trial, Trials
from nablab.contract.configuration import parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.weight_trajectories import OWN, SHARED, WeightTrajectories
from tests.experiments.memory import Memory


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> WeightTrajectories:
    values = {
        "target": "sinc@30",
        "network": "1-6-5-1",
        "layer": 2,
        "steps": 60,
        "points": 12,
        "batch_size": 8,
    }
    return resolve(
        WeightTrajectories, "quick", {**values, "learning_rate": 1e-2, **overrides}
    )


def run(
    experiment: WeightTrajectories, seeds: Sequence[int] = (0, 1, 2)
) -> tuple[Records, list[Memory]]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(condition))
        experiment.run(Trials([condition], seeds), labs[-1])  # type: ignore[arg-type]
    return Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[WeightTrajectories, Records, list[Memory]]:
    experiment = small()
    return experiment, *run(experiment)


def flat(module: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


def two_components(rows: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Explained share, coordinates and relative error by the singular value
    decomposition.
    """
    x = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    error = np.linalg.norm(x - (u[:, :2] * s[:2]) @ v[:2], axis=1) / np.linalg.norm(
        x, axis=1
    )
    return float((s[:2] ** 2).sum() / (s**2).sum()), u[:, :2] * s[:2], error


def test_paths_go_from_the_start_to_the_trained_network(finished: Any) -> None:
    _, records, labs = finished
    starts = {}
    for lab in labs:
        for k, record in enumerate(records.where(**lab.condition)):
            path = record.arrays["path"]
            assert path.shape == (13, models.parameter_count("1-6-5-1"))
            assert path.dtype == np.float32
            np.testing.assert_array_equal(path[-1], flat(lab.result.module(k)))
            np.testing.assert_array_equal(
                record.arrays["train_loss"], lab.result.evaluations["train_loss"][k]
            )
            assert len(record.arrays["train_loss"]) == len(path)
            starts[lab.condition["start"], record.seed] = path[0]
    for seed in (1, 2):
        np.testing.assert_array_equal(starts[SHARED, seed], starts[SHARED, 0])
        assert np.abs(starts[OWN, seed] - starts[OWN, 0]).max() > 0.1


def test_runs_from_one_start_differ_by_their_batches(finished: Any) -> None:
    _, records, _ = finished
    ends = [record.arrays["path"][-1] for record in records.where(start=SHARED)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_what_two_components_show_is_recomputed(finished: Any) -> None:
    from scipy.spatial import procrustes

    _, records, _ = finished
    walk = sum(6 / (13**2 - 1) / (4 * math.sin(math.pi * j / 26) ** 2) for j in (1, 2))
    for record in records:
        path = record.arrays["path"]
        share, plane, error = two_components(path)
        # after 6 weights and 6 biases
        layer_share, layer_plane, _ = two_components(path[:, 12:47])
        assert record.scalars["explained_variance"] == pytest.approx(share, abs=1e-6)
        assert record.scalars["explained_variance_of_layer"] == pytest.approx(
            layer_share, abs=1e-6
        )
        assert record.scalars["above_random_walk"] == pytest.approx(
            share - walk, abs=1e-6
        )
        assert record.scalars["mean_projection_error"] == pytest.approx(
            error.mean(), abs=1e-5
        )
        agreement = 1 - procrustes(plane, layer_plane)[2]
        assert record.scalars["layer_agreement"] == pytest.approx(agreement, abs=1e-5)
        steps, values = record.curves["projection_error"]
        assert steps.tolist() == list(range(0, 61, 5))
        np.testing.assert_allclose(values, error, atol=1e-5)
        assert record.curves["explained_share"].steps.tolist() == list(range(1, 11))
        assert record.curves["explained_share"].values[:2].sum() == pytest.approx(
            share, abs=1e-6
        )


def test_distances_are_those_of_run_and_partner(finished: Any) -> None:
    _, records, labs = finished
    for lab in labs:
        for k, record in enumerate(records.where(**lab.condition)):
            a, b = (flat(lab.result.module(i)).astype(np.float64) for i in (k, k + 3))
            expected = np.linalg.norm(a - b) / math.sqrt((a**2).sum() + (b**2).sum())
            assert record.scalars["end_distance"] == pytest.approx(expected, rel=1e-5)
            assert (
                record.scalars["end_distance_matched"]
                <= record.scalars["end_distance"] + 1e-12
            )
            share = (
                record.scalars["end_distance_matched"] / record.scalars["end_distance"]
            )
            assert record.scalars["matched_share"] == pytest.approx(share)
            assert math.isnan(record.scalars["matching_gain"]) == (
                lab.condition["start"] == SHARED
            )


def test_matching_gain_compares_ends_with_starts(finished: Any) -> None:
    from nablab.instruments.landscape.matching import match_units

    _, records, labs = finished
    lab = labs[1]
    seeds = lab.result.seeds
    for k, record in enumerate(records.where(start=OWN)):
        first, second = training.build_replicas(
            lambda: models.dense("1-6-5-1"), [seeds[k], seeds[k + 3]]
        )
        start = match_units(first, second)
        expected = (
            start.distance_after / start.distance_before
            - record.scalars["matched_share"]
        )
        assert record.scalars["matching_gain"] == pytest.approx(expected, rel=1e-5)


def test_every_claim_finds_its_metric(finished: Any) -> None:
    from nablab.verdicts import judge

    experiment, records, _ = finished
    verdicts = judge(experiment.active_claims(), records, resamples=99)
    assert len(verdicts) == 11
    assert all(verdict.effect is not None for verdict in verdicts)


def test_the_paths_figure_shows_each_run_in_each_row(finished: Any) -> None:
    experiment, records, _ = finished
    figure = experiment.figures(records)["paths"]
    axes = [ax for ax in figure.figure.axes if ax.get_title(loc="left")]
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == [
        f"{start} · {part}"
        for start in (SHARED, OWN, f"{OWN}, matched")
        for part in ("whole network", "layer 2")
    ]
    runs = [record.arrays["path"] for record in records.where(start=OWN)]
    joint, plane, _ = two_components(np.concatenate(runs))
    lines = [line for line in axes[2].get_lines() if len(line.get_xdata()) == 13]
    drawn = np.concatenate([np.stack(line.get_data(), axis=1) for line in lines])
    np.testing.assert_allclose(np.abs(drawn), np.abs(plane), atol=1e-5)
    assert len({line.get_color() for line in lines}) == 3
    shares = [
        int(text.split("(")[1].split()[0])
        for text in (axes[2].get_xlabel(), axes[2].get_ylabel())
    ]
    assert sum(shares) == pytest.approx(100 * joint, abs=1.01)
    assert set(figure.table) == {"panel", "run", "point", "x", "y", "value"}
    assert len(figure.table["x"]) == 6 * 3 * 13


def test_matched_paths_are_the_same_networks_in_another_order(finished: Any) -> None:
    experiment, records, _ = finished
    rows = experiment._rows_of(records)
    goal = rows[OWN][0][1][-1]
    x = torch.linspace(-1, 1, 7)[:, None]

    def distance(point: Any) -> float:
        return sum(float((point[name] - goal[name]).square().sum()) for name in goal)

    for (_, plain), (_, matched) in zip(
        rows[OWN], rows[f"{OWN}, matched"], strict=True
    ):
        assert distance(matched[-1]) <= distance(plain[-1])
        for before, after in zip(plain, matched, strict=True):
            outputs = []
            for point in (before, after):
                network = models.dense("1-6-5-1")
                network.load_state_dict(point)
                outputs.append(network(x).detach())
            torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        rows[OWN][0][1][3]["0.weight"], rows[f"{OWN}, matched"][0][1][3]["0.weight"]
    )


def test_other_figures_name_their_axes_and_unfinished_runs_have_figures(
    finished: Any,
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["paths", "share", "error", "ends"]
    assert figures["share"].figure.axes[0].get_ylabel() == "share of the variance"
    walk = [
        line
        for line in figures["share"].figure.axes[0].get_lines()
        if line.get_linestyle() == "--"
    ]
    assert walk[0].get_ydata()[0] == pytest.approx(
        6 / (13**2 - 1) / (4 * math.sin(math.pi / 26) ** 2)
    )
    assert [ax.get_title(loc="left") for ax in figures["ends"].figure.axes] == [
        "units as trained",
        "units matched",
    ]
    assert len({ax.get_ylim() for ax in figures["ends"].figure.axes}) == 1
    experiment.figures(Records(list(records)[:1]))
    experiment.figures(Records([]))


@pytest.fixture(scope="module")
def on_images() -> tuple[WeightTrajectories, Records, list[Memory]]:
    images = {
        "target": "digits@100",
        "network": "784-4-3-10",
        "batch_size": 20,
        "weight_decay": 1e-4,
    }
    experiment = small(**images, steps=40, points=4)
    return experiment, *run(experiment, [0, 1])


def test_images_are_learned_with_cross_entropy(on_images: Any) -> None:
    experiment, records, labs = on_images
    assert experiment.data_sets() == ("digits@100",)
    task = data.task("digits@100")
    for lab in labs:
        for k, record in enumerate(records.where(**lab.condition)):
            network = lab.result.module(k)
            for pair, kind in (
                (task.prepared(), "train"),
                (task.prepared(held_out=True), "test"),
            ):
                outputs = network(pair[0]).detach()
                loss = float(torch.nn.functional.cross_entropy(outputs, pair[1]))
                accuracy = float((outputs.argmax(dim=1) == pair[1]).float().mean())
                assert record.scalars[f"{kind}_loss"] == pytest.approx(loss, rel=1e-4)
                assert record.scalars[f"{kind}_accuracy"] == pytest.approx(
                    accuracy, abs=1e-6
                )
                assert record.arrays[f"{kind}_accuracy"].shape == (5,)
            path = record.arrays["path"]
            assert path.shape == (5, models.parameter_count("784-4-3-10"))
            share, _, _ = two_components(path)
            layer_share, _, _ = two_components(path[:, 785 * 4 : 785 * 4 + 5 * 3])
            assert record.scalars["explained_variance"] == pytest.approx(
                share, abs=1e-5
            )
            assert record.scalars["explained_variance_of_layer"] == pytest.approx(
                layer_share, abs=1e-5
            )


def test_the_figure_of_images_says_the_accuracy_at_the_ends(on_images: Any) -> None:
    experiment, records, _ = on_images
    figure = experiment.figures(records)["paths"]
    run = records.where(start=OWN)[0]
    texts = [text.get_text() for text in figure.figure.axes[2].texts]
    assert f"{100 * run.scalars['test_accuracy']:.1f} %" in texts
    errors = [
        value
        for panel, run_, value in zip(
            *(figure.table[c] for c in ("panel", "run", "value")), strict=True
        )
        if panel == f"{OWN} · whole network" and run_ == run.seed
    ]
    assert errors == pytest.approx(list(1 - run.arrays["test_accuracy"]))
    assert any(
        ax.get_xlabel().startswith("test error (1 - accuracy)")
        for ax in figure.figure.axes
    )


def test_points_near_the_origin_are_counted() -> None:
    """A random walk's picture is a parabola with a third of its points within half its
    radius.
    """
    walk = np.cumsum(
        np.random.default_rng(0).normal(size=(300, 20_000)), axis=0, dtype=np.float32
    )
    path = [
        {"0.weight": torch.from_numpy(row), "2.weight": torch.from_numpy(row[:9])}
        for row in walk
    ]
    lab = Memory(Condition(start=OWN))
    small()._describe(path, range(300), Trial(Condition(start=OWN), 0), lab)  # type: ignore[arg-type]
    assert lab.scalars[0]["share_near_origin"] == pytest.approx(1 / 3, abs=0.02)
    far = walk.astype(np.float64) - walk.mean(axis=0)
    radius = np.linalg.norm(np.hstack([far, far[:, :9]]), axis=1)
    assert lab.scalars[0]["share_near_mean"] == pytest.approx(
        (radius < radius.max() / 2).mean()
    )


@pytest.mark.filterwarnings(
    "ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)
def test_diverged_runs_are_recorded_as_such() -> None:
    experiment = small(optimizer="SGD", learning_rate=1e9)
    records, _ = run(experiment, [0])
    for record in records:
        for metric in (
            "explained_variance",
            "layer_agreement",
            "end_distance",
            "matched_share",
        ):
            assert math.isnan(record.scalars[metric])
    figures = experiment.figures(records)
    assert figures["paths"].table["x"] == []


def test_a_layer_that_never_moves_has_no_picture() -> None:
    experiment = small()
    path = [
        {"0.weight": torch.ones(1) * t, "2.weight": torch.ones(1)} for t in range(3)
    ]
    assert not experiment._moves(path)
    assert small(layer=1)._moves(path)


def test_a_training_of_two_points_is_described() -> None:
    """A dry run takes a few steps only."""
    records, _ = run(small(steps=2, points=2), [0])
    assert records[0].scalars["explained_variance"] == pytest.approx(1)


def test_presets() -> None:
    expected = {
        "quick": (1_200, 8),
        "standard": (3_600, 16),
        "paper": (12_000, 30),
        "sgd": (12_000, 16),
    }
    for preset, (steps, seeds) in expected.items():
        assert resolve(WeightTrajectories, preset, {}).steps == steps
        assert WeightTrajectories.presets[preset]["seeds"] == seeds


@pytest.mark.parametrize(
    ("preset", "parameters", "epochs", "batch"),
    [
        ("mnist", 8_280, 45, 1_000),
        ("mnist-wide", 418_060, 45, 1_000),
        ("mnist-deep", 242_762, 24, 128),
    ],
)
def test_the_course_s_networks(
    preset: str,
    parameters: int,
    epochs: int,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "load", None)  # to be checked, a preset reads no data
    experiment = resolve(WeightTrajectories, preset, {})
    assert models.parameter_count(experiment.network) == parameters
    steps_per_epoch = -(-60_000 // batch)
    assert experiment.steps == epochs * steps_per_epoch
    assert experiment.steps // experiment.points == 3 * steps_per_epoch
    assert WeightTrajectories.presets[preset]["seeds"] == 8
    assert experiment.data_sets() == ("mnist",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer=0"], r"layer=0 is impossible: it must be from 1"),
        (["layer=9"], r"layer=9 is impossible"),
        (
            ["network=1-1", "layer=1"],
            r"network=1-1 has 1 layers, and at least 2 are needed",
        ),
        (["network=2-5-1"], r"The network 2-5-1 must begin with 1 and end with 1"),
        (
            ["target=digits"],
            r"begins with 1, but images of 1 x 28 x 28 have 784 values",
        ),
        (["target=digits", "network=lenet"], r"'lenet' is not a list of layer widths"),
        (
            ["weight_decay=-1"],
            r"weight_decay=-1 is impossible: it must be 0 or more",
        ),
        (["points=1"], r"points=1 is impossible: it must be from 2"),
        (["points=5000"], r"points=5000 is impossible"),
        (["batch_size=0"], r"batch_size=0 is impossible"),
        (["learning_rate=-1"], r"learning_rate=-1 is impossible"),
        (["target=snic"], r"Did you mean 'sinc'"),
    ],
)
def test_impossible_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(WeightTrajectories, "quick", parse_overrides(WeightTrajectories, words))
