"""Random labels: scores are recomputed from the trained networks and their labels;
settings are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, models, training
from nablab.contract import Condition, Records, Trials
from nablab.contract.configuration import parse_overrides, resolve
from nablab.errors import UsageError
from nablab.experiments.random_labels import RandomLabels
from nablab.lab.notebook import Notebook

NETWORK = "flatten-64-bn-64-bn"


class Memory(Notebook):
    """A lab that keeps everything in memory and trains one network after the other."""

    options: dict[str, Any]
    result: training.Training
    labels: torch.Tensor

    def train(
        self, learner: Any, pair: Any, recipe: Any, *, seeds: Sequence[int]
    ) -> Any:
        options = vars(recipe)
        self.labels, self.options = pair[1], options
        self.result = training.train(
            learner, pair, recipe, seeds=seeds, replicas="sequential"
        )
        return self.result


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> RandomLabels:
    values = {
        "data": "digits@300",
        "networks": (NETWORK,),
        "shares": (0.0, 0.5, 1.0),
        "batch_size": 50,
    }
    return resolve(
        RandomLabels,
        "quick",
        {**values, "learning_rate": 1e-2, "decay": 0.95, **overrides},
    )


def run(
    experiment: RandomLabels, seeds: Sequence[int] = (0, 1)
) -> tuple[Records, list[Memory]]:
    labs = []
    for condition in experiment.conditions():
        labs.append(Memory(experiment, Trials([condition], seeds)))
        experiment.run(Trials([condition], seeds), labs[-1])
    return Records(record for lab in labs for record in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[RandomLabels, Records, list[Memory]]:
    experiment = small()
    return experiment, *run(experiment)


def test_every_share_is_memorized_and_only_true_labels_generalize(
    finished: Any,
) -> None:
    _, records, _ = finished
    for record in records:
        assert record.scalars["train_accuracy"] >= 0.999
        assert record.notes["stop_reason"] == "threshold"
    mean = {
        s: np.mean(records.where(share=s).values("test_accuracy"))
        for s in (0.0, 0.5, 1.0)
    }
    assert mean[0.0] > 0.9 > mean[0.5] > 0.3
    assert mean[1.0] == pytest.approx(0.1, abs=0.06)
    assert mean[1.0] == pytest.approx(
        np.mean(records.where(share=1.0).values("above_chance")) + 0.1
    )
    epochs = {
        s: np.mean(records.where(share=s).values("epochs_to_memorize"))
        for s in (0.0, 1.0)
    }
    assert epochs[1.0] > 1.5 * epochs[0.0]


def test_scores_are_those_of_the_networks_on_their_own_labels(finished: Any) -> None:
    experiment, records, labs = finished
    train, test = (
        data.load("digits", size=28),
        data.load("digits", split="test", size=28),
    )
    x, truth = experiment.task.train()
    for lab, share in zip(labs, (0.0, 0.5, 1.0), strict=True):
        wrong = (lab.labels != truth).double().mean().item()
        assert wrong == pytest.approx(0.9 * share, abs=0.05)
        for k, record in enumerate(records.where(share=share)):
            module = lab.result.module(k).eval()
            with torch.no_grad():
                outputs = module(train.normalize(test.images))
                fitted = module(train.normalize(x)).argmax(1)
            right = (outputs.argmax(1) == test.labels).double().mean().item()
            # The loop multiplies in bfloat16 where the hardware does that fast.
            assert record.scalars["test_accuracy"] == pytest.approx(right, abs=0.02)
            loss = torch.nn.functional.cross_entropy(outputs, test.labels).item()
            assert record.scalars["test_loss"] == pytest.approx(loss, rel=0.05)
            assert (fitted == lab.labels[k]).double().mean().item() > 0.99


def test_no_two_seeds_or_shares_have_the_same_labels_or_weights(finished: Any) -> None:
    _, _, labs = finished
    assert not torch.equal(labs[1].labels[0], labs[1].labels[1])
    # Independent labels agree in one of ten; nested ones would also agree wherever
    # share 0.5 redraws.
    assert (labs[1].labels == labs[2].labels).double().mean().item() < 0.2
    assert len({seed for lab in labs for seed in lab.result.seeds}) == 6


def test_curves_end_with_the_training_and_hold_what_was_evaluated(
    finished: Any,
) -> None:
    _, records, labs = finished
    for lab in labs:
        for k, record in enumerate(records.where(share=lab._trials.condition["share"])):
            epochs, accuracy = record.curves["train_accuracy"]
            assert epochs.tolist() == list(
                range(int(record.scalars["epochs_to_memorize"]) + 1)
            )
            assert accuracy[-1] >= 0.999 > accuracy[:-1].max()
            for name in ("train_loss", "test_accuracy", "changed_accuracy"):
                evaluated = lab.result.evaluations[name][k][: len(epochs)]
                np.testing.assert_array_equal(record.curves[name].values, evaluated)


def test_early_scores_compare_labels_by_whether_they_changed(finished: Any) -> None:
    _, records, labs = finished
    for record in records.where(share=0.5):
        at = {name: curve.values[3] for name, curve in record.curves.items()}
        lead = at["unchanged_accuracy"] - at["changed_accuracy"]
        assert record.scalars["clean_lead"] == pytest.approx(lead)
        assert lead > 0.3
        cost = at["test_accuracy"] - record.scalars["test_accuracy"]
        assert record.scalars["cost_of_memorizing"] == pytest.approx(cost)
        # All training labels are either unchanged or changed.
        changed = (
            (labs[1].labels[record.seed] != data.task("digits@300").train()[1])
            .double()
            .mean()
            .item()
        )
        whole = (
            changed * at["changed_accuracy"] + (1 - changed) * at["unchanged_accuracy"]
        )
        assert at["train_accuracy"] == pytest.approx(whole, abs=1e-6)
    assert all(
        math.isnan(value) for value in records.where(share=0.0).values("clean_lead")
    )


def test_the_tau_of_losses_is_scipys(finished: Any) -> None:
    from scipy.stats import kendalltau

    _, records, _ = finished
    for record in records:
        tau = kendalltau(
            record.curves["train_loss"].values, record.curves["test_loss"].values
        )
        assert record.scalars["tau_of_losses"] == pytest.approx(tau.statistic)
    assert (
        max(records.where(share=1.0).values("tau_of_losses"))
        < 0
        < min(records.where(share=0.0).values("tau_of_losses"))
    )


def test_every_claim_finds_its_metric(finished: Any) -> None:
    from nablab.verdicts import judge

    experiment, records, _ = finished
    verdicts = judge(experiment.active_claims(), records, resamples=99)
    assert len(verdicts) == 9
    assert all(verdict.effect is not None for verdict in verdicts)


def test_claims_follow_the_shares_and_the_margin() -> None:
    claims = small(shares=(0.0, 0.25), chance_margin=0.2).active_claims()
    assert {claim.metric for claim in claims} == {
        "train_accuracy",
        "test_accuracy",
        "epochs_to_memorize",
    }
    bounds = [
        c.bound
        for c in small(chance_margin=0.2).active_claims()
        if c.metric == "above_chance"
    ]
    assert bounds == [0.2, -0.2]


def test_what_is_not_memorized_is_said() -> None:
    experiment = small(shares=(1.0,), epochs=2, early_epochs=1)
    records, labs = run(experiment, (0,))
    assert records[0].scalars["epochs_to_memorize"] == math.inf
    assert records[0].notes["stop_reason"] == "budget"
    note = (
        f"network={NETWORK}, share=1.0, seed 0: not memorized. Training ended at "
        "an accuracy of "
    )
    assert any(
        text.startswith(note) and text.endswith("% (budget).") for text in labs[0].notes
    )
    assert len(records[0].curves["train_loss"].steps) == 3


def test_a_diverged_run_is_not_memorized() -> None:
    experiment = small(
        shares=(1.0,),
        networks=("flatten-16",),
        optimizer="SGD",
        learning_rate=1e30,
        epochs=5,
    )
    records, labs = run(experiment, (0,))
    assert records[0].notes["stop_reason"] == "diverged"
    assert records[0].scalars["epochs_to_memorize"] == math.inf
    assert math.isnan(records[0].scalars["tau_of_losses"])
    assert "(diverged)" in labs[0].notes[-1]
    assert experiment.figures(records)


def test_options_of_the_training(finished: Any) -> None:
    _, _, labs = finished
    assert labs[0].options["optimizer"] == training.Adam(learning_rate=1e-2)
    assert labs[0].options["schedule"] == training.StepDecay(every=6, factor=0.95)
    assert labs[0].options["epochs"] == 80
    sgd = small(optimizer="SGD", shares=(0.0,), epochs=3, learning_rate=0.1)
    assert run(sgd, (0,))[1][0].options["optimizer"] == training.SGD(
        learning_rate=0.1, momentum=0.9
    )


def test_zhangs_form_cuts_and_whitens() -> None:
    experiment = small(form="zhang", shares=(0.0,), epochs=3)
    lab = run(experiment, (0,))[1][0]
    x = lab.options["held_out"]["test"][0]
    assert x.shape == (500, 3, 28, 28)
    whole = data.load("digits", split="test", size=32, channels=3).images
    assert torch.equal(x, whole[..., 2:30, 2:30])
    assert lab.options["prepare"] == data.Whiten()


def test_zhangs_networks_have_their_numbers_of_parameters() -> None:
    paper = resolve(RandomLabels, "paper", {})
    counts = [
        models.count_parameters(spec, shape=paper.seen.shape, outputs=10)
        for spec in paper.networks
    ]
    assert counts == [1_735_178, 1_209_866]
    course = resolve(RandomLabels, "course", {})
    assert (
        models.count_parameters(course.networks[0], shape=course.seen.shape, outputs=10)
        == 397_510
    )


def test_baselines_are_chance_the_largest_class_and_a_copied_label(
    finished: Any,
) -> None:
    experiment, records, _ = finished
    labels = data.load("digits", split="test").labels
    assert experiment.baselines(records)["test_accuracy"] == {
        "chance": 0.1,
        "largest class": labels.bincount().max().item() / 500,
        "one neighbor's label, share 0": 1.0,
        "one neighbor's label, share 0.5": pytest.approx(0.55),
        "one neighbor's label, share 1": pytest.approx(0.1),
    }


def test_figures_show_what_was_recorded(finished: Any) -> None:
    experiment, records, _ = finished
    figures = experiment.figures(records)
    assert list(figures) == ["outcome", "accuracy", "loss", "parts"]
    table = figures["outcome"].table
    dots = [
        v
        for s, m, v in zip(
            table["series"], table["metric"], table["value"], strict=True
        )
        if s == "seed" and m == "epochs_to_memorize"
    ]
    assert sorted(dots) == sorted(records.values("epochs_to_memorize"))
    dashed = [
        line
        for line in figures["outcome"].figure.axes[0].get_lines()
        if line.get_ls() == "--"
    ]
    assert [line.get_xydata().tolist() for line in dashed] == [[[0, 1], [1, 0.1]]]
    assert [ax.get_title(loc="left") for ax in figures["accuracy"].figure.axes] == [
        "training",
        "test",
    ]
    parts = figures["parts"]
    assert [ax.get_title(loc="left") for ax in parts.figure.axes] == [
        "50% redrawn",
        "100% redrawn",
    ]
    assert set(parts.table["panel"]) == {
        "unchanged label",
        "changed label",
        "true class",
    }
    first = records.where(share=0.5)[0].curves["truth_of_changed_accuracy"].values
    assert set(first.tolist()) <= set(parts.table["value"])


def test_figures_of_nothing_yet() -> None:
    assert small().figures(Records([]))
    assert math.isnan(small().baselines(Records([]))["test_accuracy"]["chance"])


def test_own_images_and_an_own_network(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(60) % 3)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), "
        "nn.Linear(32, 3))\n"
    )
    own = {
        "data": str(tmp_path / "mine.npz"),
        "model": f"{tmp_path}/net.py:build",
        "networks": (),
    }
    experiment = small(**own, shares=(1.0,), epochs=2, early_epochs=1, batch_size=20)
    assert experiment.data_sets() == (str(tmp_path / "mine.npz"),)
    assert set(experiment.sources()) == {"model"}
    records, labs = run(experiment, (0,))
    assert records[0].condition == Condition(network="yours", share=1.0)
    assert int(labs[0].labels.max()) == 2
    chance = records[0].scalars["test_accuracy"] - records[0].scalars["above_chance"]
    assert chance == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["shares=0,1.5"],
            "shares=1.5 is too large: it must be at most 1.",
        ),
        (["shares=0.5,0.5"], "shares names 0.5 twice: give each one once."),
        (["networks="], "no network to train: give at least one"),
        (["networks=lenett"], r"no image network 'lenett'. Did you mean 'lenet'\?"),
        (["data=minst"], "'minst'. Did you mean 'mnist'"),
        (
            ["data=sinc"],
            r"data=sinc is a function and has no labels. Choices: cifar10, fashion",
        ),
        (
            ["learning_rate=0"],
            "learning_rate=0 is impossible: it must be above 0 and finite",
        ),
        (["memorized=1.5"], r"memorized=1.5 is too large: it must be at most 1"),
        (["early_epochs=100"], "early_epochs=100 must be at most epochs=80"),
        (["form=grey"], "Did you mean 'gray'"),
    ],
)
def test_settings_that_cannot_work(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(RandomLabels, "quick", parse_overrides(RandomLabels, words))


@pytest.mark.slow
def test_sixty_thousand_random_labels_are_memorized() -> None:
    experiment = resolve(RandomLabels, "full", {"shares": (1.0,)})
    (record,), _ = run(experiment, (0,))
    assert record.scalars["train_accuracy"] >= 0.999
    assert record.scalars["test_accuracy"] == pytest.approx(0.1, abs=0.01)
