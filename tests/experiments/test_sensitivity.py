"""Sensitivity: what it records is computed again here, its designs end where they say,
its settings are checked, and random labels raise it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, training
from nablab.contract import Level, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.sensitivity import (
    AUGMENTED,
    DESIGNS,
    EPOCHS,
    LEARNED,
    LOSS,
    MEASURED,
    PLAIN,
    RANDOM,
    STEPS,
    Sensitivity,
    _area,
    _measure,
)
from tests.experiments.memory import Memory


class Float32(Memory):
    """Rounding to bfloat16 differs between processors."""

    precision = "float32"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL: dict[str, Any] = {
    "data": "digits@120",
    "network": "flatten-64",
    "batch_sizes": (20, 60, 120),
    "epochs": 4,
    "steps": 9,
    "batch_size": 40,
    "most_steps": 1_500,
    "inputs": 60,
    "loss": 0.3,
    "learning_rate": 1e-2,
    "decay": 0.998,
}


def small(**overrides: Any) -> Sensitivity:
    return resolve(Sensitivity, "quick", {**SMALL, **overrides})


def run_one(
    experiment: Sensitivity, seeds: Sequence[int] = (0, 1, 2), **levels: Level
) -> Memory:
    (condition,) = [c for c in experiment.conditions() if c.matches(levels)]
    lab = Float32(condition)
    experiment.run(Trials([condition], seeds), lab)  # type: ignore[arg-type]
    return lab


@pytest.fixture(scope="module")
def finished() -> tuple[Sensitivity, list[Memory]]:
    experiment = small()
    return experiment, [
        run_one(experiment, **condition) for condition in experiment.conditions()
    ]


def lab_of(labs: list[Memory], **levels: Level) -> Memory:
    (found,) = [lab for lab in labs if lab.condition.matches(levels)]
    return found


def test_sizes_meet_three_designs_and_trainings_one_size() -> None:
    conditions = small().conditions()
    assert len(conditions) == 3 * 3 + 3
    assert {c["design"] for c in conditions if c["training"] == PLAIN} == {
        *DESIGNS,
        LEARNED,
    }
    assert [c["batch_size"] for c in conditions if c["design"] == LEARNED] == [
        40,
        40,
        40,
    ]


def test_every_number_is_recorded(finished: tuple[Sensitivity, list[Memory]]) -> None:
    for lab in finished[1]:
        for scalars in lab.scalars.values():
            assert {*MEASURED, "train_loss", "train_accuracy", "steps"} == set(scalars)
            assert scalars["sensitivity"] > 0
            assert scalars["logit_sensitivity"] > 0


def test_the_designs_end_where_they_say(
    finished: tuple[Sensitivity, list[Memory]],
) -> None:
    _, labs = finished
    for size, steps in ((20, 24), (60, 8), (120, 4)):
        assert lab_of(labs, design=EPOCHS, batch_size=size).scalars[0]["steps"] == steps
        assert lab_of(labs, design=STEPS, batch_size=size).scalars[0]["steps"] == 9
        at_loss = lab_of(labs, design=LOSS, batch_size=size)
        assert all(scalars["train_loss"] <= 0.3 for scalars in at_loss.scalars.values())
        assert all(scalars["train_loss"] > 0.03 for scalars in at_loss.scalars.values())
    for kind in (PLAIN, AUGMENTED, RANDOM):
        learned = lab_of(labs, design=LEARNED, training=kind)
        assert all(
            scalars["train_accuracy"] >= 0.999 for scalars in learned.scalars.values()
        )


def test_one_optimizer_and_shared_initial_weights(
    finished: tuple[Sensitivity, list[Memory]],
) -> None:
    _, labs = finished
    assert {lab.options["optimizer"] for lab in labs} == {
        training.Adam(learning_rate=1e-2)
    }
    assert len({lab.result.seeds for lab in labs}) == 1
    assert [lab.condition["training"] for lab in labs if lab.options["augment"]] == [
        AUGMENTED
    ]
    # the test split decides nothing
    assert not any(lab.options["held_out"] for lab in labs)


def test_random_labels_are_each_seeds_own(
    finished: tuple[Sensitivity, list[Memory]],
) -> None:
    lab = lab_of(finished[1], training=RANDOM)
    true = data.task("digits@120").train()[1]
    assert lab.options["data"][1].shape == (3, 120)
    assert lab.options["per_replica_targets"]
    shares = [float((own == true).float().mean()) for own in lab.options["data"][1]]
    assert max(shares) < 0.3
    assert not torch.equal(lab.options["data"][1][0], lab.options["data"][1][1])


def test_sensitivity_is_the_jacobian_of_the_probabilities(
    finished: tuple[Sensitivity, list[Memory]],
) -> None:
    """Against dense Jacobians in float64, at the same evenly spaced test inputs."""
    lab = lab_of(finished[1], design=EPOCHS, batch_size=60)
    module = lab.result.module(1).eval().double()
    x, y = data.task("digits@120").prepared(held_out=True)
    places = torch.arange(60) * len(x) // 60
    norms: dict[str, list[float]] = {"probabilities": [], "logits": []}
    for image in x[places].double():
        jacobian = torch.func.jacrev(lambda one: module(one[None])[0])(image)
        norms["logits"].append(float(jacobian.detach().norm()))
        soft = torch.func.jacrev(lambda one: module(one[None])[0].softmax(0))(image)
        norms["probabilities"].append(float(soft.detach().norm()))
    scalars = lab.scalars[1]
    assert scalars["sensitivity"] == pytest.approx(
        np.mean(norms["probabilities"]), rel=1e-4
    )
    assert scalars["logit_sensitivity"] == pytest.approx(
        np.mean(norms["logits"]), rel=1e-4
    )
    wrong = (module(x[places].double()).argmax(1) != y[places]).numpy()
    found = np.array(norms["probabilities"])
    assert scalars["misclassified"] == pytest.approx(found[wrong].mean(), rel=1e-4)
    assert scalars["correct"] == pytest.approx(found[~wrong].mean(), rel=1e-4)
    error = found.std(ddof=1) / math.sqrt(60)
    assert scalars["sensitivity_standard_error"] == pytest.approx(error, rel=1e-4)


def test_a_constant_network_has_no_sensitivity() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    module[1].weight.data.zero_()
    module[1].bias.data = torch.tensor([1.0, 0.0, 0.0])
    found = _measure(module, torch.randn(30, 1, 2, 2), torch.arange(30) % 3, 12)
    assert found["sensitivity"] == found["logit_sensitivity"] == 0
    assert found["test_accuracy"] == pytest.approx(1 / 3)
    assert found["error_detection"] == 0.5  # all inputs alike: a coin


def test_the_area_counts_pairs() -> None:
    assert (
        _area(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False]))
        == 0.875
    )
    assert math.isnan(_area(np.array([1.0, 2.0]), np.array([True, True])))
    assert math.isnan(_area(np.array([1.0, 2.0]), np.array([False, False])))


def test_logits_grow_with_the_weights_and_accuracy_does_not() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.randn(30, 1, 2, 2), torch.arange(30) % 3
    before = _measure(module, x, y, 30)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.mul_(10)
    after = _measure(module, x, y, 30)
    assert after["logit_sensitivity"] == pytest.approx(
        10 * before["logit_sensitivity"], rel=1e-5
    )
    assert after["test_accuracy"] == before["test_accuracy"]


def test_random_labels_raise_the_sensitivity_by_a_sign_test(
    finished: tuple[Sensitivity, list[Memory]],
) -> None:
    _, labs = finished
    random, plain = (
        lab_of(labs, design=LEARNED, training=kind).scalars for kind in (RANDOM, PLAIN)
    )
    assert all(
        random[seed]["sensitivity"] > 2 * plain[seed]["sensitivity"] for seed in plain
    )


def test_a_network_that_does_not_get_there_is_said() -> None:
    lab = run_one(small(most_steps=3), (0, 1), design=LEARNED, training=RANDOM)
    assert any(
        "2 of 2 networks did not get there within most_steps=3" in note
        for note in lab.notes
    )
    assert "within" not in "".join(
        run_one(small(), (0,), design=STEPS, batch_size=60).notes
    )


def test_a_diverged_network_has_no_numbers() -> None:
    experiment = small(optimizer="SGD", learning_rate=1e30)
    lab = run_one(experiment, (0,), design=STEPS, batch_size=120)
    assert math.isnan(lab.scalars[0]["sensitivity"])
    assert math.isnan(lab.scalars[0]["train_loss"])


def test_figures_and_baselines(finished: tuple[Sensitivity, list[Memory]]) -> None:
    experiment, labs = finished
    records = Records(record for lab in labs for record in lab.records())
    figures = experiment.figures(records)
    assert list(figures) == ["sizes", "scores", "kinds", "errors"]
    drawn = figures["sizes"].table
    seeds = [
        v
        for v, m, d in zip(
            drawn["value"], drawn["metric"], drawn["design"], strict=True
        )
        if m == "sensitivity" and d == EPOCHS
    ]
    assert set(records.where(design=EPOCHS).values("sensitivity")) <= set(seeds)
    labels = [ax.get_ylabel() for ax in figures["sizes"].figure.axes]
    assert labels == ["sensitivity of probabilities", "sensitivity of logits"]
    assert set(figures["errors"].table["inputs"]) == {"misclassified", "correct"}
    assert experiment.baselines(records)["test_accuracy"] == {"chance": 0.1}
    assert experiment.figures(Records([]))  # nothing has run yet
    assert experiment.data_sets() == ("digits@120",)


def test_the_extreme_sizes_make_a_claim() -> None:
    claim = small().active_claims()[-1]
    assert (claim.first, claim.second, claim.where) == (120, 20, {"design": LOSS})
    assert "batches of 120" in claim.sentence


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"batch_sizes": (64,)},
            "batch_sizes=64 is impossible: it must be 2 or more numbers",
        ),
        ({"batch_sizes": (60, 20)}, "each larger than the one before"),
        (
            {"batch_sizes": (20, 121)},
            "A batch of 121 exceeds the 120 training images of digits@120",
        ),
        ({"batch_size": 500}, "A batch of 500 exceeds"),
        ({"loss": 0.0}, "loss=0.0 is impossible"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is impossible"),
        ({"corrupted": 1.5}, "corrupted=1.5 is too large: it must be at most 1"),
        ({"corrupted": 0.0}, "corrupted=0.0 is impossible: it must be above 0"),
        ({"decay": 0.0}, "decay=0.0 is impossible: it must be above 0 and at most 1"),
        ({"shift": 0}, "shift=0 is impossible: it must be from 1 to 14"),
        ({"data": "sinc"}, "data=sinc is a function"),
        ({"data": "minst"}, "Did you mean 'mnist'"),
        ({"network": "flaten-24"}, "flaten"),
        ({"model": "no_such_module:net"}, "no_such_module"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        small(**settings)


def test_a_batch_beyond_a_whole_set_is_refused_when_it_is_read() -> None:
    experiment = small(data="digits", batch_sizes=(20, 2_000))
    with pytest.raises(
        UsageError, match="A batch of 2,000 exceeds the 1,297 training images of digits"
    ):
        run_one(experiment, (0,), design=EPOCHS, batch_size=20)


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    experiment = small(model=f"{path}:net")
    lab = run_one(experiment, (0,), design=STEPS, batch_size=60)
    assert [tuple(p.shape) for p in lab.result.module(0).parameters()] == [
        (10, 784),
        (10,),
    ]
    assert experiment.sources()["model"]


def test_a_network_of_ones_own_with_other_outputs_stops_before_any_work(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n"
    )
    with pytest.raises(UsageError, match=r"\(2, 10\)"):
        small(model=f"{path}:net")
