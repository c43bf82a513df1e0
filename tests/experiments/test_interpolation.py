"""Interpolation: what it records is measured again here, on the networks that were
trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab import data, training
from nablab.contract import Records, Trials
from nablab.contract.configuration import parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.interpolation import (
    ENDS,
    METRICS,
    Interpolation,
    normalizes,
    numbers,
)
from nablab.instruments import interpolate
from tests.experiments.memory import Memory

SMALL: dict[str, Any] = {
    "data": "digits@200",
    "networks": ("784-12-10",),
    "epochs": 2,
    "alphas": 5,
}


def run(
    seeds: Sequence[int] = (0, 1), **overrides: Any
) -> tuple[Interpolation, Records, list[Memory]]:
    experiment = resolve(Interpolation, "quick", {**SMALL, **overrides})
    labs = [Memory(condition) for condition in experiment.conditions()]
    for lab in labs:
        experiment.run(Trials([lab.condition], seeds), lab)  # type: ignore[arg-type]
    return experiment, Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[Interpolation, Records, list[Memory]]:
    return run(ends=tuple(ENDS))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat(
        [parameter.detach().flatten() for parameter in module.parameters()]
    )


def untrained(result: Any, replica: int) -> torch.Tensor:
    return weights(training.build_replicas(result._build, [result.starts[replica]])[0])


def test_the_ends_differ_in_what_they_say(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    for lab in finished[2]:
        differs = ENDS[str(lab.condition["ends"])]
        first, second = lab.results
        assert set(first.seeds).isdisjoint(second.seeds)  # another order in all of them
        for k in range(2):
            assert torch.equal(untrained(first, k), untrained(second, k)) == (
                "start" not in differs
            )
            assert not torch.equal(weights(first.module(k)), weights(second.module(k)))
        assert [options["batch_size"] for options in lab.asked] == [
            64,
            1024 if "batch" in differs else 64,
        ]
        rates = [options["optimizer"].learning_rate for options in lab.asked]
        assert rates == [1e-3, 1e-2 if "rate" in differs else 1e-3]


def test_the_first_network_of_a_seed_is_the_same_in_all_conditions(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    modules = [lab.results[0].module(1) for lab in finished[2]]
    assert all(torch.equal(weights(modules[0]), weights(module)) for module in modules)
    assert not torch.equal(
        weights(modules[0]), weights(finished[2][0].results[0].module(0))
    )


def test_the_middle_of_the_line_is_the_mean_of_the_weights(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    task = data.task("digits@200")
    x, y = task.prepared(held_out=True)
    for lab in finished[2]:
        for k, record in enumerate(Records(lab.records())):
            middle, other = (result.module(k) for result in lab.results)
            with torch.no_grad():
                for own, theirs in zip(
                    middle.parameters(), other.parameters(), strict=True
                ):
                    own.copy_((own + theirs) / 2)
                outputs = middle(x)
            at = record.arrays["alpha"] == 0.5
            loss = nn.functional.cross_entropy(outputs, y).item()
            assert record.arrays["test_loss"][at] == pytest.approx(loss, rel=1e-4)
            accuracy = (outputs.argmax(1) == y).float().mean().item()
            # one image
            assert record.arrays["test_accuracy"][at] == pytest.approx(
                accuracy, abs=0.0021
            )


def test_scalars_follow_from_the_lines(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    for record in finished[1]:
        alpha, accuracy = record.arrays["alpha"], record.arrays["test_accuracy"]
        assert alpha[[0, -1]].tolist() == [-1, 2]
        value = {a: accuracy[alpha == a].item() for a in (0, 1, 1.5, 2)}
        assert record.scalars["test_accuracy_a"] == value[0]
        assert record.scalars["test_accuracy_b"] == value[1]
        assert record.scalars["accuracy_lost"] == pytest.approx(value[1.5] - value[2])
        inside = (alpha >= 0) & (alpha <= 1)
        straight = (1 - alpha) * (1 - value[0]) + alpha * (1 - value[1])
        rise = (1 - accuracy - straight)[inside].max()
        assert record.scalars["error_barrier"] == pytest.approx(max(0, rise), abs=1e-12)
        assert ("loss_barrier_matched" in record.scalars) == (
            "start" in str(record.condition["ends"])
        )


def test_matching_moves_only_the_order_of_units(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    for record in finished[1]:
        if "matched_loss" in record.arrays:
            for end in (0, 1):
                before = record.arrays["train_loss"][record.arrays["alpha"] == end]
                after = record.arrays["matched_loss"][
                    record.arrays["matched_alpha"] == end
                ]
                assert after == pytest.approx(before, rel=1e-5)
            middle = record.arrays["train_loss"][record.arrays["alpha"] == 0.5]
            assert record.arrays["matched_loss"][2] != pytest.approx(middle, rel=1e-3)
            removed = (
                1
                - record.scalars["loss_barrier_matched"]
                / record.scalars["loss_barrier"]
            )
            assert record.scalars["barrier_removed"] == pytest.approx(removed)


def test_the_numbers_of_a_parabola() -> None:
    a, b = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[0.0], [1.0]]))
        b.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
    sets = {"train": (x, y), "test": (x, y)}

    def squares(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        # 1 + (alpha - 1/2)^2: no end is a minimum
        return (outputs[:, 0] - 0.5).square().mean() + 1

    line = interpolate(a, b, squares, sets, metrics=("accuracy", "error"))
    found = numbers(line)
    assert tuple(found) == METRICS
    assert found["loss_barrier"] == 0
    assert found["rise_at_ends"] == pytest.approx((1 + 0.16) / 1.25 - 1)
    assert found["distance"] == pytest.approx(math.sqrt(5))
    assert found["accuracy_lost"] == 0
    assert found["error_near_ends"] == 0


def test_batch_norm_is_measured_with_statistics_of_its_own() -> None:
    experiment, records, labs = run([0], networks=("conv2k5s3-bn-9",), ends=("start",))
    assert "barrier_of_statistics" in records[0].scalars
    pair = [result.module(0).eval() for result in labs[0].results]
    task = data.task("digits@200")
    train = task.prepared(experiment.train_samples)
    at = records[0].arrays["alpha"]
    for anew in (True, False):
        line = interpolate(
            *pair, "cross_entropy", train, alphas=at, reestimate_batch_norm=anew
        )
        same = np.allclose(line.losses, records[0].arrays["train_loss"], rtol=1e-4)
        assert same == anew
    assert [normalizes(name) for name in ("fast", "conv2k5-bn-9", "lenet")] == [
        True,
        True,
        False,
    ]


def test_equal_steps_and_equal_epochs() -> None:
    for equal, steps in (("epochs", [8, 2]), ("steps", [8, 8])):
        _, _, labs = run([0], ends=("batch",), equal=equal)
        assert [options["steps"] for options in labs[0].asked] == steps


def test_a_diverged_network_is_recorded_as_such() -> None:
    _, records, _ = run([0], ends=("rate",), large_rate=1e30)
    assert all(math.isnan(records[0].scalars[name]) for name in METRICS)
    assert records[0].notes == {"stop_reason": "diverged"}


def test_figures_draw_both_ends_and_every_seed(
    finished: tuple[Any, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["line-784-12-10", "matching-784-12-10", "barrier"]
    axes = figures["line-784-12-10"].figure.axes
    assert [ax.get_title(loc="left") for ax in axes] == [
        *("loss, train", "loss, test", "accuracy, train", "accuracy, test")
    ]
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "linear", "linear"]
    assert {0.0, 1.0} <= {
        line.get_xdata()[0] for line in axes[0].lines if len(set(line.get_xdata())) == 1
    }
    assert len([line for line in axes[0].lines if len(line.get_xdata()) == 17]) == 6 * (
        2 + 1
    )
    table = figures["line-784-12-10"].table
    assert len(table["value"]) == 4 * 6 * 2 * 17
    assert len(figures["matching-784-12-10"].figure.axes) == 3
    unfinished = experiment.figures(Records(list(records)[:1]))
    assert "A single seed" in unfinished["line-784-12-10"].caption
    assert list(experiment.figures(Records([]))) == ["line-784-12-10", "barrier"]


def test_only_claims_that_can_be_tested_are_active() -> None:
    assert len(resolve(Interpolation, "standard", {}).active_claims()) == 6
    assert len(resolve(Interpolation, "batch-norm", {}).active_claims()) == 6
    assert (
        len(resolve(Interpolation, "standard", {"ends": ("order",)}).active_claims())
        == 3
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=sinc"], "data=sinc is a function"),
        (["data=mnits"], "Did you mean 'mnist'"),
        (["networks=lenett"], "Did you mean 'lenet'"),
        (["networks=lenet,lenet"], "networks names lenet twice: give each one once."),
        (["ends=oder"], "Did you mean 'order'"),
        (["ends=()"], "ends is too short: give 1 or more."),
        (["alphas=2"], "alphas=2 is impossible: it must be from 3 to 10,001"),
        (["large_rate=0"], "large_rate=0 is impossible"),
        (["epochs=0"], "epochs=0 is impossible"),
    ],
)
def test_impossible_settings_say_why(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        resolve(Interpolation, "standard", parse_overrides(Interpolation, words))


@pytest.mark.slow
def test_lenet_on_mnist_has_no_barrier_from_a_shared_start() -> None:
    """Frankle et al. 2020: below 2 % from initialization on."""
    experiment = resolve(
        Interpolation, "standard", {"ends": ("order", "start"), "epochs": 1}
    )
    labs = [Memory(condition) for condition in experiment.conditions()]
    for lab in labs:
        experiment.run(Trials([lab.condition], [0, 1]), lab)  # type: ignore[arg-type]
    shared, own = (
        [record.scalars["error_barrier"] for record in lab.records()] for lab in labs
    )
    assert max(shared) < 0.02 < min(own)
