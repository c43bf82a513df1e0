"""Loss landscape: what it records is measured again here, and its numbers have closed
forms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models
from nablab.contract import Condition, Record, Records, Trials
from nablab.contract.configuration import parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.loss_landscape import NETWORKS, LossLandscape
from nablab.instruments.landscape.shapes import largest_rise, nonconvex_share
from nablab.lab.rehearsal import Rehearsal
from nablab.plots.surface_figures import round_numbers
from tests.experiments.memory import Memory

SMALL: dict[str, Any] = {
    "targets": ("sinc@20",),
    "networks": ("1-6-1", "1-3-3-1"),
    "steps": 24,
    "learning_rate": 1e-2,
    "resolution": 5,
    "alphas": 9,
    "path_points": 6,
}


def run(
    seeds: Sequence[int] = (0, 1), **overrides: Any
) -> tuple[LossLandscape, Records, list[Memory]]:
    experiment = resolve(LossLandscape, "quick", {**SMALL, **overrides})
    labs = [Memory(condition) for condition in experiment.conditions()]
    for lab in labs:
        experiment.run(Trials([lab.condition], seeds), lab)  # type: ignore[arg-type]
    return experiment, Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[LossLandscape, Records, list[Memory]]:
    return run()


def test_the_networks_are_equal_in_size() -> None:
    assert [models.parameter_count(widths) for widths in NETWORKS.values()] == [
        571,
        571,
    ]


def test_every_trial_records_what_was_promised(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, _ = finished
    assert len(records) == 4
    for record in records:
        assert set(record.scalars) == {
            *("train_loss", "held_out_loss", "line_rise", "barrier", "nonconvex_share"),
            *("path_explained", "path_beyond_walk", "path_error", "plane_interval"),
        }
        assert all(math.isfinite(value) for value in record.scalars.values())
        for plane in ("plane", "trail", "three"):
            assert record.arrays[f"{plane}_values"].shape == (5, 5)
            assert 0 in record.arrays[f"{plane}_alphas"]
        assert record.arrays["trail_marks"].shape == (7, 2)
        np.testing.assert_allclose(record.arrays["trail_marks"][-1], 0, atol=1e-6)
        assert record.arrays["three_marks"].shape == (3, 2)


def test_losses_are_those_of_the_networks_that_were_trained(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    for lab in labs:
        target = data.target("sinc@20")
        for k, record in enumerate(records.where(**lab.condition)):
            solution = lab.result.module(3 * k)
            for part, (x, y) in (
                ("train", target.train()),
                ("held_out", target.held_out()),
            ):
                with torch.no_grad():
                    expected = (solution(x) - y).square().mean().item()
                assert record.scalars[f"{part}_loss"] == pytest.approx(
                    expected, rel=1e-5
                )
                line, alpha = record.arrays[f"line_{part}"], record.arrays["line_alpha"]
                assert line[alpha == 1] == pytest.approx(expected, rel=1e-5)
            assert record.arrays["line_train"][
                record.arrays["line_alpha"] == 0
            ] == pytest.approx(lab.result.train_loss[3 * k, 0], rel=1e-5)
            other = record.arrays["between_train"][record.arrays["between_alpha"] == 1]
            assert other == pytest.approx(lab.result.final[3 * k + 1], rel=1e-5)


def test_the_barrier_is_in_units_of_the_targets_variance(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    variance = np.var(data.target("sinc@20").train()[1].numpy())
    for record in finished[1]:
        alpha, loss = record.arrays["between_alpha"], record.arrays["between_train"]
        inside = (alpha >= 0) & (alpha <= 1)
        straight = np.interp(alpha[inside], [0, 1], loss[inside][[0, -1]])
        assert record.scalars["barrier"] == pytest.approx(
            (loss[inside] - straight).max() / variance, rel=1e-5
        )


def test_seeds_and_solutions_start_from_weights_of_their_own(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    used = [seed for lab in finished[2] for seed in lab.result.seeds]
    assert len(set(used)) == len(used) == 12


def test_a_seed_does_not_depend_on_its_company(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    _, alone, _ = run([1])
    for record in alone:
        twin = next(
            r
            for r in finished[1]
            if (r.condition, r.seed) == (record.condition, record.seed)
        )
        assert record.scalars == pytest.approx(twin.scalars, rel=1e-5)


def test_a_diverged_network_is_recorded_as_such() -> None:
    _, records, _ = run([0], learning_rate=1e30, networks=("1-4-1",))
    assert all(math.isnan(value) for value in records[0].scalars.values())
    assert records[0].notes == {"stop_reason": "diverged"}


@pytest.fixture(scope="module")
def images() -> tuple[LossLandscape, Records, list[Memory]]:
    own = {
        "targets": ("digits@300",),
        "networks": ("conv4k5s3-pool-9",),
        "batch_size": 50,
        "subset": 60,
    }
    return run(**own)


def test_images_come_with_accuracies_of_both_splits(
    images: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = images
    task = data.task("digits@300")
    for k, record in enumerate(records):
        solution = labs[0].result.module(3 * k)
        for held_out, name in ((False, "train"), (True, "held_out")):
            x, y = task.prepared(60, held_out=held_out)
            with torch.no_grad():
                outputs = solution(x)
            at = record.arrays["line_alpha"] == 1
            accuracy = (outputs.argmax(1) == y).float().mean().item()
            assert record.arrays[f"line_{name}_accuracy"][at] == pytest.approx(accuracy)
            loss = torch.nn.functional.cross_entropy(outputs, y).item()
            assert record.scalars[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)


def test_planes_of_images_are_drawn_with_their_interval(
    images: tuple[Any, Records, list[Memory]],
) -> None:
    _, records, labs = images
    x, y = data.task("digits@300").prepared()
    for k, record in enumerate(records):
        assert 0 < record.scalars["plane_interval"] < 1
        with torch.no_grad():
            whole = torch.nn.functional.cross_entropy(
                labs[0].result.module(3 * k)(x), y
            ).item()
        center = record.arrays["plane_values"][2, 2]  # 60 of 300 images
        assert center == pytest.approx(whole, rel=0.3)
        assert center != pytest.approx(whole, rel=1e-6)
        row = record.arrays["trail_values"][record.arrays["trail_betas"] == 0][0]
        # the same images
        assert row[record.arrays["trail_alphas"] == 0] == pytest.approx(center)


def test_functions_are_measured_on_all_points(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    assert {record.scalars["plane_interval"] for record in finished[1]} == {0.0}
    assert not any(
        "accuracy" in name for record in finished[1] for name in record.arrays
    )


def test_figures_of_images(images: tuple[Any, Records, list[Memory]]) -> None:
    experiment, records, _ = images
    figures = experiment.figures(records)
    assert list(figures) == [
        "line",
        "between",
        "plane",
        "path",
        "solutions",
        "accuracy",
    ]
    assert figures["line"].figure.axes[0].get_ylabel() == (
        "training loss (cross-entropy)"
    )
    axes = figures["accuracy"].figure.axes
    assert [ax.get_ylabel() for ax in axes] == [
        "training accuracy",
        "test accuracy",
    ] * 2
    assert experiment.data_sets() == ("digits@300",)
    entropy = experiment.baselines(records)["train_loss"]["digits@300: best constant"]
    assert 2.2 < entropy < math.log(10)


class Line:
    """Only what `largest_rise` reads."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.alphas = np.array([-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5])
        self.losses = np.array([9.0, *losses, 9.0])


@pytest.mark.parametrize(
    ("losses", "rise"),
    [([4, 3, 2, 1, 0], 0.0), ([4, 5, 2, 1, 0], 0.25), ([4, 1, 2, 3, 0], 0.5)],
)
def test_the_largest_rise_counts_from_the_lowest_so_far(
    losses: list[float], rise: float
) -> None:
    assert largest_rise(Line(losses)) == rise  # type: ignore[arg-type]


class Grid:
    """Only what `nonconvex_share` reads."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.alphas, self.betas = np.linspace(-1, 1, 21), np.linspace(-2, 2, 31)
        self.losses = function(self.alphas[None, :], self.betas[:, None])


@pytest.mark.parametrize(
    ("function", "share"),
    [
        (lambda a, b: a**2 + 3 * b**2 + a * b, 0.0),
        (lambda a, b: a**2 - b**2, 1.0),
        # a saddle across the axes: the mixed term tells
        (lambda a, b: a**2 + b**2 + 3 * a * b, 1.0),
        (lambda a, b: -(a**2) - b**2, 1.0),
        (lambda a, b: a**2 - 0.05 * b**2, 0.0),  # not clearly
        # concave where a is positive
        (lambda a, b: np.sin(np.pi * a) + 0 * b + b**2 * 1e-9, 9 / 19),
    ],
)
def test_the_nonconvex_share_of_known_surfaces(
    function: Callable[[Any, Any], Any], share: float
) -> None:
    assert nonconvex_share(Grid(function)) == pytest.approx(share, abs=0.03)  # type: ignore[arg-type]


def test_figures_show_every_seed_and_name_their_axes(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["line", "between", "plane", "path", "solutions"]
    ax = figures["line"].figure.axes[0]
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "alpha (0: initial weights, 1: solution)",
        "training loss (MSE)",
    )
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 9]
    assert len(drawn) == 2 * (2 + 1)
    assert len(figures["line"].table["held_out"]) == 4 * 9
    paths = figures["path"].figure.axes[0]
    assert paths.get_xlabel() == "principal component 1"
    np.testing.assert_array_equal(
        paths.lines[0].get_xydata(), records[0].arrays["trail_marks"]
    )
    radii = [patch.get_radius() for patch in paths.patches]
    np.testing.assert_array_equal(radii, records[0].arrays["trail_errors"])
    table = figures["plane"].table
    assert len(table["value"]) == 2 * 25
    corner = records[0].arrays["plane_values"][0, -1]
    row = table["value"].index(corner)
    alphas, betas = records[0].arrays["plane_alphas"], records[0].arrays["plane_betas"]
    assert (table["alpha"][row], table["beta"][row]) == (alphas[-1], betas[0])


def test_an_unfinished_run_has_figures_too(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(Records(list(records)[:1]))
    assert "A single seed" in figures["line"].caption
    _, diverged, _ = run([0], learning_rate=1e30)
    assert "No runs yet" in experiment.figures(diverged)["plane"].caption


def test_baselines_are_the_mean_and_a_random_walk() -> None:
    experiment = resolve(LossLandscape, "quick", SMALL)
    assert experiment.baselines(Records([]))["train_loss"] == {}
    _, y = data.target("sinc@20").train()
    kept = {"constant_loss": np.array([data.task("sinc@20").constant_loss()])}
    condition = Condition(model="deep", target="sinc@20")
    found = experiment.baselines(Records([Record(condition, 0, {}, arrays=kept)]))
    assert found["train_loss"]["sinc@20: best constant"] == pytest.approx(
        (y - y.mean()).square().mean().item()
    )
    assert 0.85 < found["path_explained"]["random walk of as many points"] < 1


def test_only_claims_that_can_be_tested_are_active() -> None:
    standard = resolve(LossLandscape, "standard", {})
    assert len(standard.active_claims()) == 4
    assert len(dataclasses.replace(standard, networks=("deep",)).active_claims()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["targets=snic"], "Did you mean 'sinc'"),
        (["targets=()"], "targets is too short: give 1 or more."),
        (["networks=deep,deep"], "networks names deep twice: give each one once."),
        (["networks=1-5-2"], "must begin with 1 and end with 1"),
        (["networks=depp"], "is not a list of layer widths"),
        (["resolution=24"], "resolution=24 is impossible: it must be odd"),
        (["targets=digits"], "There is no image network 'deep'"),
        (["targets=digits@0", "networks=lenet"], "asks for no image"),
        (["subset=9"], "subset=9 is impossible: it must be 20 or more"),
        (["batch_size=0"], "batch_size=0 is impossible"),
        (["steps=0"], "steps=0 is impossible"),
        (["extent=-1"], "extent=-1 is impossible"),
        (["alphas=2"], "alphas=2 is impossible: it must be from 5"),
        (["path_points=2"], "path_points=2 is impossible: it must be from 3"),
    ],
)
def test_impossible_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(LossLandscape, "quick", parse_overrides(LossLandscape, words))


@pytest.mark.parametrize(("low", "high"), [(1e-5, 300.0), (0.12, 0.9), (3.0, 3.5e3)])
def test_ticks_of_color_bars_are_few_and_inside(low: float, high: float) -> None:
    ticks = round_numbers(low, high)
    assert 2 <= len(ticks) <= 10
    assert low <= min(ticks) < max(ticks) <= high


def test_a_dry_run_of_few_steps_keeps_a_path_that_spans_a_plane() -> None:
    experiment = LossLandscape(
        targets=("sign_sin",),
        networks=("shallow",),
        steps=5_000,
        resolution=5,
        alphas=5,
    )
    rehearsal = Rehearsal(
        experiment,
        Trials([experiment.conditions()[0]], [0]),
        device="cpu",
        replicas="auto",
    )
    assert rehearsal.rehearse().steps == 5_000
