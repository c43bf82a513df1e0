"""Digits in NumPy: scores are recomputed from the kept weights, and libraries share what
they must.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models
from nablab.contract import Record, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.numpy_digits import Clock, NumpyDigits
from nablab.from_scratch.learner import Batches
from nablab.lab import states
from nablab.lab.notebook import Notebook
from nablab.verdicts import judge

SEEDS = range(2)
WAYS = [
    ("dense", "numpy", "float32"),
    ("dense", "torch", "float32"),
    ("dense", "numpy", "float64"),
    ("cnn", "numpy", "float32"),
    ("cnn", "torch", "float32"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> NumpyDigits:
    values = {
        "data": "digits@200",
        "size": 12,
        "kernel": 3,
        "hidden_units": 16,
        "filters": (3, 4),
        "cnn_units": 8,
        "epochs": 3,
        "evaluations": 4,
        "batch_size": 32,
        "learning_rate": 0.05,
    }
    return resolve(NumpyDigits, "quick", {**values, **overrides})


def run(experiment: NumpyDigits, seeds: Any = SEEDS) -> tuple[Records, list[str]]:
    records, notes = [], []
    for condition in experiment.conditions():
        trials = Trials([condition], list(seeds))
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        records += lab.records()
        notes += lab.notes
    return Records(records), notes


def weights_of(record: Record) -> dict[str, torch.Tensor]:
    return dict(record.weights["final"])


@pytest.fixture(scope="module")
def finished() -> tuple[NumpyDigits, Records]:
    experiment = small()
    return experiment, run(experiment)[0]


def test_conditions_are_networks_in_libraries_and_precisions() -> None:
    found = [tuple(condition.values()) for condition in small().conditions()]
    assert found == WAYS
    narrowed = small(libraries=("torch",), precisions=("float32",)).conditions()
    assert [condition["library"] for condition in narrowed] == ["torch", "torch"]


def test_scores_are_those_of_the_kept_network_in_pytorch(finished: Any) -> None:
    experiment, records = finished
    train, test = experiment.task.images(), experiment.task.images("test")
    assert len(records) == len(WAYS) * len(SEEDS)
    for record in records:
        module = experiment.network_of(record.condition)
        module.load_state_dict(weights_of(record))
        for split, images in (("train", train), ("test", test)):
            with torch.no_grad():
                outputs = module(images.normalize(images.images))
            right = (outputs.argmax(1) == images.labels).double().mean().item()
            loss = torch.nn.functional.cross_entropy(outputs, images.labels).item()
            scalars = record.scalars
            assert scalars[f"{split}_accuracy"] == pytest.approx(right, abs=0.003)
            assert scalars[f"{split}_loss"] == pytest.approx(loss, rel=1e-4)
        assert scalars["parameters"] == sum(p.numel() for p in module.parameters())
        gap = scalars["train_accuracy"] - scalars["test_accuracy"]
        assert scalars["overstated"] == gap


def test_all_ways_learn_the_same_from_the_same_start(finished: Any) -> None:
    _, records = finished
    for seed in SEEDS:
        for network in ("dense", "cnn"):
            losses = [
                record.scalars["test_loss"]
                for record in records.where(network=network)
                if record.seed == seed
            ]
            assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)
    starts = {round(value, 6) for value in records.values("test_loss")}
    assert len(starts) >= 4  # two seeds of two networks


def test_weights_keep_their_precision(finished: Any) -> None:
    _, records = finished
    for record in records:
        types = {value.dtype for value in weights_of(record).values()}
        assert types == {getattr(torch, str(record.condition["precision"]))}


def test_weights_after_ten_steps_agree(finished: Any) -> None:
    _, records = finished
    plain = records.where(library="numpy", precision="float32")
    assert 0 < max(plain.values("largest_weight_difference")) < 1e-5
    assert 0 < max(plain.values("weight_distance")) < 1e-6
    assert not records.where(library="torch").values("weight_distance")


def test_timed_steps_are_recorded_with_their_ratios(finished: Any) -> None:
    _, records = finished
    for record in records.where(library="numpy", precision="float32"):
        milliseconds = {
            way: record.scalars[f"milliseconds_{way}"]
            for way in ("numpy", "torch", "float64")
        }
        assert min(milliseconds.values()) > 0
        cost = milliseconds["float64"] / milliseconds["numpy"]
        assert record.scalars["float64_cost"] == pytest.approx(cost)
        cost = milliseconds["numpy"] / milliseconds["torch"]
        assert record.scalars["numpy_cost"] == pytest.approx(cost)


def test_curves_hold_the_evaluations_and_the_time_of_training(finished: Any) -> None:
    _, records = finished
    total = 3 * 7  # epochs of 200 images in batches of 32
    for record in records:
        steps, seconds = record.curves["seconds"]
        assert steps.tolist() == [6, 11, 16, total]
        assert (np.diff(seconds) > 0).all()
        assert seconds[0] > 0
        assert seconds[-1] == record.scalars["seconds"]
        accuracies = record.curves["test_accuracy"].values
        assert accuracies[-1] == record.scalars["test_accuracy"]
        assert not any(name.startswith("seconds_to") for name in record.scalars)


def test_batches_are_every_image_once_in_each_epoch() -> None:
    batches = Batches(10, 4, seed=1)
    first = np.concatenate([batches.at(step) for step in range(3)])
    second = np.concatenate([batches.at(step) for step in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(batches.at(1), first[4:8])


def test_the_clock_takes_the_first_time_of_each_score() -> None:
    clock = Clock()
    for seconds, accuracy in ((1.0, 0.96), (2.0, 0.975), (3.0, 0.969), (4.0, 0.981)):
        clock.seconds = seconds
        clock.look(accuracy)
    assert clock.facts((0.97, 0.98, 0.99)) == {
        "seconds": 4.0,
        "seconds_to_97": 2.0,
        "seconds_to_98": 4.0,
        "seconds_to_99": math.inf,
    }
    assert clock.facts(()) == {"seconds": 4.0}


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_resumed_training_gives_the_same_weights(library: str) -> None:
    experiment = small(networks=("cnn",))
    trials = Trials([experiment.conditions()[0]], [0])
    lab, trial, train = (
        Notebook(experiment, trials),
        trials[0],
        experiment.task.images(),
    )
    images, labels = train.images.numpy()[:40], train.labels.numpy()[:40]
    one, other = (
        experiment._reader(library, "float32", trial, lab, train) for _ in range(2)
    )
    for _ in range(3):
        one.step(images, labels, 0.1)
    packed = states.take({"reader": one})
    json.dumps(packed.structure)
    states.give({"reader": other}, packed)
    for reader in (one, other):
        reader.step(images[:10], labels[:10], 0.1)
    for name, value in one.weights().items():
        np.testing.assert_array_equal(value, other.weights()[name])


def test_the_learning_rate_falls_in_a_line_or_stays() -> None:
    assert [small()._rate(step, 10) for step in (0, 5)] == [0.05, 0.025]
    assert small(decay="none")._rate(9, 10) == 0.05


def test_every_claim_finds_its_metric(finished: Any) -> None:
    experiment, records = finished
    verdicts = judge(experiment.active_claims(), records, resamples=99)
    assert len(verdicts) == 12
    assert all(verdict.groups for verdict in verdicts)
    margins = {c.margin for c in experiment.active_claims() if c.kind == "equality"}
    assert margins == {experiment.equal_margin}


def test_scores_and_times_are_claimed_of_mnist_alone() -> None:
    def claimed(preset: str) -> set[str]:
        claims = resolve(NumpyDigits, preset, {}).active_claims()
        return {claim.metric for claim in claims if claim.where.get("network")}

    assert {"seconds_to_97", "seconds_to_98", "seconds_to_99"} < claimed("standard")
    assert claimed("quick") == {"test_accuracy"}  # equality of precisions
    assert claimed("paper") == set()


def test_parameters_are_those_that_were_published() -> None:
    def parameters(preset: str) -> dict[str, int]:
        experiment = resolve(NumpyDigits, preset, {})
        return {
            name: models.parameter_count_of(
                experiment._layers(name), size=experiment.size
            )
            for name in experiment.networks
        }

    assert parameters("course-d") == {"dense": 650}
    assert parameters("paper")["dense"] == 784 * 100 + 100 + 100 * 10 + 10
    convolutions = (25 + 1) * 20 + (20 * 25 + 1) * 40
    dense = (40 * 16 + 1) * 100 + 101 * 10
    assert parameters("paper")["cnn"] == convolutions + dense


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"networks": ("cnn",), "precisions": ("float64",)},
            "nothing to train: float64 is for the dense network in NumPy alone",
        ),
        ({"size": 8, "kernel": 5}, "size|pixel"),
        ({"batch_size": 201}, "A batch of 201 exceeds the 200 training images"),
        ({"filters": (0, 4)}, "filters"),
        ({"networks": ("lenet",)}, "Choices: dense, cnn"),
        ({"momentum": 1.0}, "momentum=1.0 is impossible"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        small(**overrides)


def test_a_diverged_training_ends_and_is_said() -> None:
    experiment = small(
        networks=("dense",), libraries=("numpy",), precisions=("float32",),
        learning_rate=1e30,
    )  # fmt: skip
    records, notes = run(experiment, [0])
    assert math.isnan(records[0].scalars["train_loss"])
    assert len(records[0].curves["seconds"].steps) == 1
    assert any("seed 0: diverged. Take a smaller learning rate." in n for n in notes)
    assert experiment.figures(records)


def test_own_color_images_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    images = rng.integers(0, 60, (90, 12, 12, 3), dtype=np.uint8)
    images[np.arange(90), :, :, labels] += 150  # each class is a color
    file = tmp_path / "colors.npz"
    np.savez(file, images=images, labels=labels)
    experiment = small(
        data=str(file), channels=3, batch_size=4, epochs=6, libraries=("numpy",)
    )
    records, _ = run(experiment, [0])
    assert records.values("test_accuracy") == [1.0] * 3
    assert all(record.arrays["patterns"].shape[1] == 3 for record in records)
    assert experiment.figures(records)


def test_softmax_regression_has_a_pattern_for_each_digit() -> None:
    experiment = small(
        networks=("dense",), libraries=("numpy",), hidden_units=0, size=8
    )
    records, _ = run(experiment, [0])
    assert records[0].arrays["patterns"].shape == (10, 1, 8, 8)
    assert records[0].arrays["patterns"].dtype == np.uint8
    assert records[0].scalars["parameters"] == 650


def test_mistakes_are_test_images_that_are_read_wrongly(finished: Any) -> None:
    experiment, records = finished
    test = experiment.task.images("test")
    record = records[0]
    module = experiment.network_of(record.condition)
    module.load_state_dict(weights_of(record))
    wrong, answers = (record.arrays[name] for name in ("mistakes", "mistaken_for"))
    with torch.no_grad():
        said = module(test.normalize(torch.from_numpy(wrong))).argmax(1)
    np.testing.assert_array_equal(said.numpy(), answers)
    assert (record.arrays["mistaken"] != answers).all()


def test_figures_show_what_was_recorded(finished: Any) -> None:
    experiment, records = finished
    figures = experiment.figures(records)
    assert list(figures) == ["accuracy", "time", "splits", "weights", "mistakes"]
    first = figures["accuracy"].figure.axes[0]
    assert first.get_xlabel() == "seconds of training"
    assert first.get_ylabel() == "test accuracy"
    drawn = figures["accuracy"].table
    dense = [
        v for p, v in zip(drawn["panel"], drawn["value"], strict=True) if p == "dense"
    ]
    assert len(dense) == 3 * len(SEEDS) * 4
    last = records.where(network="dense")[0].scalars["test_accuracy"]
    assert last in dense
    time = figures["time"].table
    assert set(time["computed"]) >= {"NumPy", "PyTorch", "NumPy, float64"}
    assert figures["time"].figure.axes[0].get_ylim()[0] == 0
    plain = records.where(library="numpy", precision="float32")
    shown = [
        value
        for series, value in zip(
            figures["splits"].table["series"],
            figures["splits"].table["value"],
            strict=True,
        )
        if series == "seed"
    ]
    values = plain.values("train_accuracy") + plain.values("test_accuracy")
    assert sorted(shown) == sorted(values)


def test_figures_of_nothing_and_of_a_part_are_drawn(finished: Any) -> None:
    experiment, records = finished
    assert list(experiment.figures(Records([]))) == list(experiment.figures(records))
    assert experiment.figures(records.where(library="torch"))
    assert experiment.baselines(Records([])) == {}
    labels = data.load("digits", split="test").labels
    common = data.task("digits@200").train()[1].bincount().argmax()
    share = float((labels == common).double().mean())
    found = experiment.baselines(records)["test_accuracy"]
    assert found == {"always the most frequent class": share}


@pytest.mark.slow
def test_mnist_is_read_as_well_as_claimed() -> None:
    experiment = resolve(
        NumpyDigits, "standard", {"libraries": ("numpy",), "precisions": ("float32",)}
    )
    records, _ = run(experiment, [0])
    by = {record.condition["network"]: record.scalars for record in records}
    assert by["dense"]["test_accuracy"] > 0.979
    assert by["cnn"]["test_accuracy"] > 0.989
    assert by["dense"]["seconds_to_97"] < math.inf


@pytest.mark.slow
def test_the_score_of_course_d_is_of_its_training_images() -> None:
    experiment = resolve(NumpyDigits, "course-d", {"libraries": ("numpy",)})
    records, _ = run(experiment, [0])
    assert records[0].scalars["train_accuracy"] > 0.995
    assert records[0].scalars["test_accuracy"] < 0.975
