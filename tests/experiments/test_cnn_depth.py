"""CNN depth: what it records is recomputed here, and its configuration is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models, training
from nablab.contract import Condition, Curve, Record, Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.cnn_depth import ALL, COURSES, RECIPES, CnnDepth
from nablab.lab.notebook import Notebook
from nablab.lab.rehearsal import Rehearsal

SCALARS = {
    *(
        "test_accuracy",
        "test_error",
        "test_loss",
        "train_accuracy",
        "gap",
        "first_epoch_accuracy",
    ),
    *("epochs_to_threshold", "seconds_to_threshold", "seconds", "parameters"),
    *("train_accuracy_dropout_on", "constant_accuracy"),
}
DROPPING = "conv4k5s3-pool-20-drop0.5"


class Memory(Notebook):
    """A lab that keeps everything in memory, and what it was asked."""

    result: Any = None
    options: dict[str, Any]

    def train(
        self, learner: Any, pair: Any, recipe: Any, *, seeds: Sequence[int]
    ) -> Any:
        options = vars(recipe)
        self.options = {"seeds": seeds, "data": pair, **options}
        self.result = training.train(
            learner, pair, recipe, seeds=seeds, on_note=self.note
        )
        return self.result


def small(**overrides: Any) -> CnnDepth:
    values = {
        "networks": (DROPPING, "flatten-9"),
        "epochs": 3,
        "threshold": 0.5,
        **overrides,
    }
    return resolve(CnnDepth, "quick", values)


def run(
    experiment: CnnDepth, seeds: Sequence[int] = (0, 1)
) -> tuple[Records, list[Memory]]:
    labs = [
        Memory(experiment, Trials([condition], seeds))
        for condition in experiment.conditions()
    ]
    for lab in labs:
        experiment.run(lab._trials, lab)
    return Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[CnnDepth, Records, list[Memory]]:
    experiment = small(validation=97, shift=1, precision="float32")
    return experiment, *run(experiment)


def test_the_courses_networks_have_the_sizes_that_were_reported() -> None:
    sizes = [models.parameter_count_of(name) for name in ALL]
    assert sizes == [25_570, 25_550, 25_621, 61_706, 342_698, 96_238, 206_922, 856_074]
    assert max(sizes[:3]) / min(sizes[:3]) < 1.01


def test_presets_hold_the_published_settings() -> None:
    paper = resolve(CnnDepth, "paper", {})
    assert [(c["network"], c["course"]) for c in paper.conditions()] == [
        (name, course) for course in ("A", "B and E", "C") for name in COURSES[course]
    ]
    found = [paper.settings_of(name) for name in ("cnn-25k-deep", "lenet", "cnn-856k")]
    assert [
        (s.optimizer, s.learning_rate, s.momentum, s.weight_decay) for s in found
    ] == [
        ("Adam", 1e-3, 0.0, 1e-4),
        ("SGD", 0.01, 0.5, 0.0),
        ("Adam", 1e-3, 0.0, 0.0),
    ]
    assert [(s.batch_size, s.epochs, s.schedule) for s in found] == [
        (600, 15, "constant"),
        (64, 10, "constant"),
        (128, 10, "constant"),
    ]
    for preset, course in {
        "course-a": "A",
        "course-b": "B and E",
        "course-c": "C",
    }.items():
        assert resolve(CnnDepth, preset, {}).networks == COURSES[course]
        assert set(RECIPES) == {"A", "B and E", "C"}
    standard = resolve(CnnDepth, "standard", {})
    assert standard.settings_of("lenet") == standard
    assert (standard.validation, CnnDepth.presets["standard"]["seeds"]) == (5_000, 8)


def test_every_trial_records_what_was_promised(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    _, records, _ = finished
    assert len(records) == 4
    for record in records:
        scalars = record.scalars
        assert set(scalars) == SCALARS | {
            "validation_accuracy",
            "best_epoch",
            "test_accuracy_at_best",
        }
        assert record.notes == {"stop_reason": "budget"}
        assert set(record.curves) == {"train_accuracy", "test_accuracy"}
        assert scalars["test_error"] == pytest.approx(1 - scalars["test_accuracy"])
        assert scalars["gap"] == pytest.approx(
            scalars["train_accuracy"] - scalars["test_accuracy"]
        )
        assert scalars["parameters"] == models.parameter_count_of(
            str(record.condition["network"])
        )
        assert 0 < scalars["seconds"] < 60


def test_scores_are_those_of_the_final_weights(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    test = data.load("digits", split="test", size=28)
    for lab in labs:
        images, labels = lab.options["data"]
        for k, record in enumerate(records.where(**lab._trials.condition)):
            network = lab.result.module(k).eval()
            for metric, x, y in (
                ("test_accuracy", test.images, test.labels),
                ("train_accuracy", images, labels),
            ):
                with torch.no_grad():
                    answers = network(lab.options["prepare"](x)).argmax(1)
                assert record.scalars[metric] == pytest.approx(
                    float((answers == y).double().mean())
                )
        # The same trial with dropout active scores lower, and only where there is
        # dropout.
        gaps = [
            r.scalars["train_accuracy"] - r.scalars["train_accuracy_dropout_on"]
            for r in lab.records()
        ]
        dropping = "drop" in str(lab._trials.condition["network"])
        assert all(gap > 0.02 if dropping else abs(gap) < 1e-6 for gap in gaps)


def test_curves_thresholds_and_the_best_epoch(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    experiment, records, labs = finished
    for lab in labs:
        curves = lab.result.evaluations
        for k, record in enumerate(records.where(**lab._trials.condition)):
            test = curves["test_accuracy"][k]
            assert record.curves["test_accuracy"].steps.tolist() == [1, 2, 3]
            np.testing.assert_array_equal(
                record.curves["test_accuracy"].values, test[1:]
            )
            assert record.scalars["first_epoch_accuracy"] == test[1]
            reached = np.flatnonzero(test >= experiment.threshold)
            epochs = record.scalars["epochs_to_threshold"]
            assert epochs == (reached[0] if len(reached) else math.inf)
            if len(reached):
                at = lab.result.seconds[reached[0]] / 2
                assert record.scalars["seconds_to_threshold"] == pytest.approx(at)
            validation = curves["validation_accuracy"][k]
            assert (
                record.scalars["test_accuracy_at_best"]
                == test[int(validation.argmax())]
            )
            assert record.scalars["best_epoch"] == validation.argmax()
        assert lab.result.seconds[0] == 0
        assert (np.diff(lab.result.seconds) > 0).all()


def test_the_validation_images_are_held_out_of_training_and_the_same_for_all(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    _, _, labs = finished
    whole = data.load("digits", size=28)
    for lab in labs:
        assert len(lab.options["data"][0]) == len(whole) - 97
        assert len(lab.options["held_out"]["validation"][0]) == 97
        assert torch.equal(
            lab.options["held_out"]["validation"][1],
            labs[0].options["held_out"]["validation"][1],
        )
        assert lab.options["augment"] == data.Augment(shift=1)
        # 1,200 images are 19 batches of up to 64; a fifth of three epochs is the
        # warm-up.
        assert (lab.options["eval_every"], lab.options["epochs"]) == (19, 3)
        assert lab.options["schedule"] == training.Cosine(warmup_steps=11)
    assert not set(labs[0].options["seeds"]) & set(labs[1].options["seeds"])


def test_a_threshold_never_reached_is_infinite_and_no_best_epoch_without_validation() -> (
    None
):
    records, labs = run(
        small(networks=("flatten",), epochs=1, threshold=1.0), seeds=[0]
    )
    assert records[0].scalars["epochs_to_threshold"] == math.inf
    assert records[0].scalars["seconds_to_threshold"] == math.inf
    assert set(records[0].scalars) == SCALARS
    assert labs[0].options["augment"] is None


def test_diverged_training_has_no_score() -> None:
    experiment = small(
        networks=("flatten-9",), optimizer="SGD", learning_rate=1e30, validation=90
    )
    records, _ = run(experiment, seeds=[0])
    assert records[0].notes["stop_reason"] == "diverged"
    for metric in (
        "test_accuracy",
        "test_error",
        "first_epoch_accuracy",
        "gap",
        "validation_accuracy",
    ):
        assert math.isnan(records[0].scalars[metric])
    assert records[0].scalars["epochs_to_threshold"] == math.inf
    assert records[0].scalars["best_epoch"] == 0
    experiment.figures(records)


def test_mistakes_are_test_images_that_the_network_reads_wrongly(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    _, records, labs = finished
    test = data.load("digits", split="test", size=28)
    logits = labs[0].result.predict(test.images)[0]
    arrays = records[0].arrays
    assert 0 < len(arrays["mistakes"]) <= 10
    for image, truth, answer in zip(
        arrays["mistakes"], arrays["mistaken"], arrays["mistaken_for"], strict=True
    ):
        place = next(
            i
            for i in range(len(test))
            if torch.equal(test.images[i], torch.from_numpy(image))
        )
        assert truth == test.labels[place] != answer == logits[place].argmax()


def test_figures_show_every_network(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["accuracy", "epochs", "size", "mistakes"]
    for figure in figures.values():
        assert {DROPPING, "flatten-9"} <= {
            *figure.table.get("network", ()),
            *figure.table.get("row", ()),
        }
    panels = [ax.get_title(loc="left") for ax in figures["epochs"].figure.axes]
    assert panels == ["test images", "training images"]
    assert figures["epochs"].table["step"].count(3) >= 2 * 2 * 2
    assert experiment.figures(Records([]))
    assert set(
        experiment.figures(
            Records([Record(Condition(network="a", course="none"), 0, {})])
        )
    )


def test_the_axis_of_the_epochs_keeps_the_final_scores_in_sight() -> None:
    curve = Curve(np.arange(1, 4), np.array([0.3, 0.9, 0.98]))
    record = Record(
        Condition(network="a", course="none"),
        0,
        {"test_accuracy": 0.98, "parameters": 5.0},
        curves={"test_accuracy": curve, "train_accuracy": curve},
    )
    figure = CnnDepth().figures(Records([record]))["epochs"].figure
    assert [ax.get_ylim()[0] for ax in figure.axes] == pytest.approx([0.92, 0.92])


def test_the_baseline_is_the_most_frequent_class(
    finished: tuple[CnnDepth, Records, list[Memory]],
) -> None:
    experiment, records, _ = finished
    test = data.load("digits", split="test", size=28)
    found = experiment.baselines(records)["test_accuracy"][
        "always the most frequent class"
    ]
    assert found in {
        float((test.labels == digit).double().mean()) for digit in range(10)
    }
    assert experiment.baselines(Records([])) == {}


def test_claims_fit_what_is_run() -> None:
    names = {
        claim.sentence for claim in resolve(CnnDepth, "standard", {}).active_claims()
    }
    # all but those about the lab's own network
    assert len(names) == len(CnnDepth.claims) - 2
    assert not any("lab's own" in name for name in names)
    fast = [claim.metric for claim in resolve(CnnDepth, "fast", {}).active_claims()]
    assert fast == ["test_accuracy", "seconds_to_threshold"]
    pair = resolve(CnnDepth, "course-b", {}).active_claims()
    assert [claim.first for claim in pair] == ["lenet", "lenet"]
    # What courses measured on MNIST does not stand beside other data; nor does the 99 %
    # of the lab's own.
    assert any(
        claim.published for claim in resolve(CnnDepth, "standard", {}).active_claims()
    )
    assert not any(
        claim.published for claim in resolve(CnnDepth, "quick", {}).active_claims()
    )
    assert resolve(CnnDepth, "fast", {"data": "digits"}).active_claims() == ()


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def good(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
        "def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 11))\n"
    )
    return str(path)


def test_your_own_network_and_images(mine: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "own.npz"
    images = draw.integers(256, size=(60, 28, 28), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % 10)
    experiment = small(
        networks=("flatten-5",), model=f"{mine}:good", data=str(path), epochs=1
    )
    records, _ = run(experiment, seeds=[0])
    assert [r.condition["network"] for r in records] == ["flatten-5", "yours"]
    assert records[1].scalars["parameters"] == 7_850
    assert set(experiment.sources()) == {"model"}
    assert small().sources() == {}
    path.unlink()
    # a report names them when they are gone, too
    assert experiment.data_sets() == (str(path),)
    with pytest.raises(UsageError, match="Change its last layer"):
        small(model=f"{mine}:wide")


def test_fewer_images_are_drawn_and_nothing_published_is_compared_with_them() -> None:
    experiment = small(
        networks=("flatten-5",), data="digits@100", epochs=1, batch_size=50
    )
    assert len(experiment.task.images()) == 100
    assert len(experiment.task.images("test")) == 500
    records, _ = run(experiment, seeds=[0])
    assert records[0].scalars["test_accuracy"] > 0
    assert experiment.data_sets() == ("digits@100",)
    fewer = CnnDepth(data="mnist@10000").active_claims()
    assert not any(claim.published for claim in fewer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": "digits@0"}, "asks for no image"),
        ({"data": "digits@100", "validation": 100}, "validation=100 leaves no image"),
        ({"networks": ("lenett",)}, "Did you mean 'lenet'"),
        ({"networks": ("784-5-9",)}, "must end with 10"),
        (
            {"networks": ("lenet", "lenet")},
            "networks names lenet twice: give each one once.",
        ),
        ({"networks": ()}, "no network to train: give at least one"),
        ({"data": "minst"}, "Did you mean 'mnist'"),
        ({"data": "sinc"}, "data=sinc is a function"),
        ({"epochs": 0}, "epochs=0 is impossible: it must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is impossible"),
        ({"shift": -1}, "shift=-1 is impossible: it must be from 0 to 512"),
        ({"validation": -5}, "validation=-5 is impossible"),
        (
            {"networks": ("fast",), "settings": "published"},
            "No course published settings for 'fast'",
        ),
        ({"size": 6, "networks": ("lenet",)}, "leaves no pixel"),
    ],
)
def test_impossible_settings_stop_before_any_work(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        small(**overrides)


def test_a_dry_run_measures_a_schedule_with_a_long_warm_up() -> None:
    experiment = small(networks=("flatten-9",), epochs=20)
    condition = experiment.conditions()[0]
    rehearsal = Rehearsal(
        experiment, Trials([condition], [0]), device="cpu", replicas="auto"
    )
    estimate = rehearsal.rehearse()
    assert estimate.steps == 20 * 21
    assert estimate.seconds > 0
