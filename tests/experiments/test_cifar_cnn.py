"""cifar-cnn: the published sizes, the choice, what is recorded, and bad settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import baselines, data, models
from nablab.contract import Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.cifar_cnn import (
    CHOSEN,
    DEEP,
    NARROW,
    SIMPLE,
    WIDE,
    YOURS,
    CifarCnn,
    _choice,
    _with_filters,
)
from nablab.lab.notebook import Notebook

SEEDS = (0, 1)
LISTS = ("layers", "filters", "kernels", "activations", "pools", "epochs")
LISTS += ("batch_sizes", "learning_rates")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> CifarCnn:
    values: dict[str, Any] = {
        "data": "digits@260",
        "layers": "1",
        "filters": "4,8",
        "activations": "relu",
        "pools": "max",
        "kernels": "3",
        "epochs": "2,3",
        "batch_sizes": "20",
        "learning_rates": "0.01",
        "deep": "conv4k3p1-pool-conv3k2p1-pool",
        "validation": 60,
        "precision": "float32",
    }
    return resolve(CifarCnn, "quick", {**values, **overrides})


def trained(experiment: CifarCnn, seeds: Sequence[int] = SEEDS) -> Records:
    trials = Trials(experiment.conditions(), seeds)
    lab = Notebook(experiment, trials)
    experiment.run(trials, lab)
    return Records(lab.records())


@pytest.fixture(scope="module")
def records() -> Records:
    return trained(small())


def conv(inputs: int, kernel: int, outputs: int) -> int:
    return (inputs * kernel * kernel + 1) * outputs


def test_course_ds_networks_have_the_sizes_that_were_reported() -> None:
    experiment = resolve(CifarCnn, "course-d", {})
    variants = experiment.variants
    sizes = {
        name: models.count_parameters(
            variants[name].network, shape=(3, 32, 32), outputs=10
        )
        for name in (SIMPLE, DEEP, WIDE, NARROW)
    }
    assert sizes[SIMPLE] == conv(3, 3, 32) + (32 * 16 * 16 + 1) * 10 == 82_826
    assert sizes[DEEP] == conv(3, 3, 32) + conv(32, 2, 16) + (16 * 64 + 1) * 10
    assert sizes[DEEP] == 13_210
    # the two others have the size of the one and the depth of the other
    assert sizes[WIDE] == pytest.approx(sizes[SIMPLE], rel=0.01)
    assert sizes[NARROW] == pytest.approx(sizes[DEEP], rel=0.03)
    assert variants[WIDE].network.count("conv") == 2
    assert variants[NARROW].network.count("conv") == 1
    for name, size in sizes.items():
        net = experiment.network_of({"variant": name})  # type: ignore[arg-type]
        assert sum(part.numel() for part in net.parameters()) == size


def test_each_change_is_one_change() -> None:
    experiment = resolve(CifarCnn, "course-d", {})
    changes = experiment.changes
    assert len(changes) == 9  # the simple network and course D's eight
    simple = vars(changes.pop(SIMPLE))
    for name, variant in changes.items():
        differing = [
            key for key, value in vars(variant).items() if value != simple[key]
        ]
        assert len(differing) == 1, name
    assert changes["layers 2"].network == "conv32k3p1-pool-conv32k3p1-pool"
    assert changes["kernel 5"].network == "conv32k5p2-pool"
    assert changes["pool mean"].network == "conv32k3p1-mean2"
    for name in LISTS:
        assert len(getattr(experiment, name)) == 2


def test_the_choice_is_made_by_validation_images_seed_by_seed(
    records: Records,
) -> None:
    for seed in SEEDS:
        own = {r.condition["variant"]: r for r in records if r.seed == seed}
        chosen = own[CHOSEN]
        tried = {name: own[name] for name in (SIMPLE, "filters 8", "epochs 3")}
        best = own[chosen.notes["chosen"]]
        most = max(r.scalars["validation_accuracy"] for r in tried.values())
        assert best.scalars["validation_accuracy"] == most
        assert chosen.scalars["validation_accuracy"] == most
        assert chosen.scalars["test_accuracy"] == best.scalars["peeked_accuracy"]
        peeked = max(r.scalars["peeked_accuracy"] for r in tried.values())
        assert chosen.scalars["peeked_accuracy"] == peeked
        gain = peeked - best.scalars["peeked_accuracy"]
        assert chosen.scalars["peeking_gain"] == pytest.approx(gain)
        # the others are not scored on the test images but for the choice
        for name in ("filters 8", "epochs 3"):
            assert "test_accuracy" not in own[name].scalars


def test_the_test_images_decide_nothing_but_what_peeking_would_add() -> None:
    scores = {"a": (0.5, 0.45), "b": (0.6, 0.5), "c": (0.55, 0.52)}
    found = _choice(scores)
    assert (found["chosen"], found["chosen_by_peeking"]) == ("b", "c")
    assert (found["validation_accuracy"], found["test_accuracy"]) == (0.6, 0.5)
    assert found["optimism"] == pytest.approx(0.1)
    assert found["peeked_accuracy"] == 0.52
    assert found["peeking_gain"] == pytest.approx(0.02)


def test_networks_that_diverged_are_not_chosen() -> None:
    scores = {"a": (0.5, 0.4), "b": (0.9, math.nan)}
    assert _choice(scores)["chosen"] == "a"
    assert math.isnan(_choice({"b": (0.9, math.nan)})["test_accuracy"])
    experiment = small(learning_rates="1e30", networks="", epochs="2", filters="4,5")
    for record in trained(experiment):
        assert math.isnan(record.scalars["validation_accuracy"])
        assert record.notes.get("stop_reason", "diverged") == "diverged"


def test_records_hold_what_the_networks_say(records: Records) -> None:
    test = data.load("digits", split="test", size=8)
    for record in records:
        name = record.condition["variant"]
        if name == CHOSEN:
            continue
        scalars = record.scalars
        assert scalars["parameters"] == scalars["parameters_by_formula"]
        assert scalars["seconds"] > 0
        assert scalars["gap"] == pytest.approx(
            scalars["train_accuracy"] - scalars["validation_accuracy"]
        )
        if name not in (SIMPLE, DEEP, WIDE, NARROW):
            continue
        matrix = record.arrays["confusion"]
        assert matrix.sum() == len(test)
        right = np.trace(matrix) / len(test)
        assert scalars["test_accuracy"] == pytest.approx(right)
        assert record.arrays["mistakes"].shape == (10, 1, 8, 8)
        assert record.arrays["filters"].shape[1:] == (1, 3, 3)
        filters = len(record.arrays["filters"])
        assert record.arrays["maps"].shape == (filters, 1, 8, 8)
        np.testing.assert_array_equal(record.arrays["mapped"], test.images[:1])


def test_drawing_leaves_the_weights_as_they_are(records: Records) -> None:
    experiment = small()
    before = [record.arrays["filters"].copy() for record in records.where(variant=DEEP)]
    figures = experiment.figures(records)
    for kept, record in zip(before, records.where(variant=DEEP), strict=True):
        np.testing.assert_array_equal(kept, record.arrays["filters"])
    names = ["networks", "size", "changes", "epochs"]
    assert list(figures) == [*names, "confusion", "hardest", "filters", "maps"]
    assert figures["filters"].table["panel"].count(DEEP) == 4
    assert {*figures["changes"].table["variant"]} == {
        SIMPLE,
        "filters 8",
        "epochs 3",
        CHOSEN,
    }
    assert experiment.figures(Records([])).keys() == {*names, "hardest"}


def test_the_baseline_is_the_most_frequent_class(records: Records) -> None:
    found = small().baselines(records)["test_accuracy"]
    assert 0.05 < found["always the most frequent class"] < 0.2
    assert small().baselines(Records([])) == {}


def test_claims_tell_the_parameters_and_fit_what_is_run() -> None:
    course = resolve(CifarCnn, "course-d", {}).active_claims()
    assert len(course) == len(CifarCnn.claims) - 6  # those on the fast recipe
    assert "13,210 against 82,826 parameters" in course[0].sentence
    assert any(claim.published for claim in course)
    assert not any(claim.published for claim in small().active_claims())
    assert len(small(networks="").active_claims()) == 2
    nothing = {name: getattr(CifarCnn, name)[:1] for name in LISTS}
    (only,) = resolve(
        CifarCnn, "standard", {**nothing, "networks": "deep"}
    ).active_claims()
    assert (only.first, only.second) == (DEEP, SIMPLE)


def test_your_own_network_and_images(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def good(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))\n"
        "def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))\n",
        encoding="utf-8",
    )
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(80, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(80) % 4)
    own = {
        "data": str(tmp_path / "own.npz"),
        "channels": 3,
        "validation": 10,
        "filters": "4",
        "epochs": "1",
        "networks": "",
    }
    found = trained(small(**own, model=f"{file}:good"))
    assert found.levels("variant") == [SIMPLE, YOURS]
    (one, *_) = found.where(variant=YOURS)
    assert one.scalars["parameters"] == 3 * 64 * 4 + 4
    assert "filters" not in one.arrays  # it has no convolution
    figures = small(**own).figures(found)
    assert figures["confusion"].table["class"][0] == "0"
    with pytest.raises(UsageError, match="Change its last layer"):
        small(**own, model=f"{file}:wide")


def test_the_fast_recipe_is_scored_with_one_view_and_with_six(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = baselines.FastImages(
        widths=(4, 8),
        convolutions=(1, 1),
        patch=3,
        stride=2,
        epochs=1,
        batch_size=60,
    )
    monkeypatch.setattr(baselines, "BUDGETS", {80: own})
    experiment = small(
        budgets="80", size=16, filters="4", epochs="1", networks="", validation=0
    )
    found = trained(experiment, seeds=(0,))
    assert found.levels("variant") == [SIMPLE, "fast 80"]
    for record in found.where(variant="fast 80"):
        scalars = record.scalars
        gain = scalars["averaged_accuracy"] - scalars["test_accuracy"]
        assert scalars["averaging_gain"] == pytest.approx(gain)
        assert scalars["seconds"] > 0
        assert "validation_accuracy" not in scalars
        assert record.arrays["filters"].shape == (18, 1, 3, 3)
        net = experiment.network_of(record.condition)
        size = sum(part.numel() for part in net.parameters())
        assert scalars["parameters"] == size
    figures = experiment.figures(found)
    assert "The network fast 80" in figures["confusion"].caption
    assert "fast 80" in figures["filters"].table["panel"]
    assert experiment.active_claims() == ()  # the budgets are made for CIFAR-10


def test_the_budgets_are_claimed_on_cifar10() -> None:
    claims = resolve(CifarCnn, "fast", {}).active_claims()
    bounds = [(claim.metric, claim.bound, claim.where["variant"]) for claim in claims]
    assert bounds == [
        ("test_accuracy", 0.8, "fast 80"),
        ("seconds", 90, "fast 80"),
        ("test_accuracy", 0.9, "fast 90"),
        ("seconds", 480, "fast 90"),
    ]


def test_filters_of_the_last_convolution() -> None:
    assert _with_filters("conv8k3-bn-pool-conv16k2s2-30", 7) == (
        "conv8k3-bn-pool-conv7k2s2-30"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 3}, "images of digits.* are gray"),
        ({"validation": 260}, "validation=260 leaves no image of digits@260"),
        ({"validation": 0}, "leaves no images by which to choose the best change"),
        ({"budgets": "90"}, "for 90 % needs larger images than 8 x 8"),
        ({"budgets": "91"}, "budgets"),
        ({"layers": "1,1"}, "layers names 1 twice"),
        ({"layers": "4"}, "leaves no pixel"),
        ({"filters": "0"}, "must be from 1 to 4,096"),
        ({"pools": "median"}, "pools"),
        ({"deep": "flatten-9"}, "has no convolution whose filters could be changed"),
        ({"data": "sinc"}, "is a function"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**wrong)


def test_the_best_of_a_seed_has_no_network_of_its_own() -> None:
    with pytest.raises(UsageError, match="another network in each seed"):
        small().network_of({"variant": CHOSEN})  # type: ignore[arg-type]
