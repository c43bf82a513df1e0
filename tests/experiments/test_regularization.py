"""Regularization: scores are recomputed from the networks, choices and stops from the
curves; settings are checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab import data, models, training
from nablab.contract import Condition, Records, Trial, Trials
from nablab.contract.configuration import resolve
from nablab.errors import DataError, UsageError
from nablab.experiments.regularization import (
    BOTH,
    CHOSEN,
    DROPOUT,
    KINDS,
    L2,
    NONE,
    PATH,
    PROXIMAL,
    STOPPING,
    SUBGRADIENT,
    Regularization,
)
from nablab.lab.notebook import Notebook


class Memory(Notebook):
    """A lab that keeps what it trained."""

    def train(
        self, learner: Any, pair: Any, recipe: Any, *, seeds: Sequence[int]
    ) -> Any:
        self.asked = [*getattr(self, "asked", []), (pair, recipe, seeds)]
        result = training.train(learner, pair, recipe, seeds=seeds)
        self.results = [*getattr(self, "results", []), result]
        return result


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**overrides: Any) -> Regularization:
    values = {
        "data": "king-james@700",
        "validation": 200,
        "words": 300,
        "hidden": "16-8",
        "penalties": (1e-4, 1e-2),
        "rates": (0.3, 0.6),
        "patiences": (1, 3),
        "learning_rate": 1e-2,
        "epochs": 8,
    }
    return resolve(Regularization, "quick", {**values, **overrides})


def run(
    experiment: Regularization, seeds: Sequence[int] = (0, 1)
) -> tuple[Records, dict[str, Memory]]:
    labs = {}
    for group in experiment.groups():
        trials = Trials(group, seeds)
        labs[str(trials.condition["kind"])] = lab = Memory(experiment, trials)
        experiment.run(trials, lab)
    return Records(r for lab in labs.values() for r in lab.records()), labs


@pytest.fixture(scope="module")
def finished() -> tuple[Regularization, Records, dict[str, Memory]]:
    experiment = small()
    return experiment, *run(experiment)


def test_each_kind_is_one_group_with_its_path_and_its_choice() -> None:
    groups = small().groups()
    assert [len(group) for group in groups] == [1, 3, 3, 3, 3, 3, 3]
    for kind, group in zip((NONE, *KINDS), groups, strict=True):
        assert {condition["kind"] for condition in group} == {kind}
        assert group[-1] == Condition(part=CHOSEN, kind=kind)


def test_all_kinds_have_the_same_texts_first_weights_and_steps(finished: Any) -> None:
    _, _, labs = finished
    x, y = labs[NONE].asked[0][0]
    assert x.dtype == torch.uint8
    assert tuple(x.shape) == (500, 300)
    for lab in labs.values():
        for (own, labels), recipe, seeds in lab.asked:
            assert torch.equal(own, x)
            assert torch.equal(labels, y)
            assert len(set(seeds)) == 2
            assert set(seeds) == set(labs[NONE].asked[0][2])
            assert (recipe.epochs, recipe.batch_size) == (8, 100)
    first = [lab.results[0].evaluations["train_loss"][:2, 0] for lab in labs.values()]
    for losses in first:
        np.testing.assert_allclose(sorted(losses), sorted(first[0]), rtol=1e-5)


def test_penalties_are_the_optimizers_numbers(finished: Any) -> None:
    _, _, labs = finished
    both = (1e-4, 1e-4, 1e-2, 1e-2)
    half = tuple(value / 2 for value in both)
    for kind, wanted in (
        (NONE, (0.0, 0.0, 0.0)),
        (SUBGRADIENT, (both, 0.0, 0.0)),
        (PROXIMAL, (0.0, both, 0.0)),
        (L2, (0.0, 0.0, both)),
        (BOTH, (0.0, half, half)),
        (DROPOUT, (0.0, 0.0, 0.0)),
        (STOPPING, (0.0, 0.0, 0.0)),
    ):
        adam = labs[kind].asked[0][1].optimizer
        assert (adam.l1, adam.proximal_l1, adam.weight_decay) == wanted, kind


def test_scores_are_those_of_the_networks(finished: Any) -> None:
    experiment, records, labs = finished
    texts = data.text_task(experiment.data).texts("test")
    train, validation = experiment._split(labs[NONE])
    for kind in (NONE, PROXIMAL, STOPPING):
        part = CHOSEN if kind == NONE else PATH
        own = records.where(kind=kind, part=part)
        for record, outcome in zip(own, labs[kind].results[0], strict=True):
            net = outcome.module()
            for name, held in (("test", texts), ("validation", validation)):
                with torch.no_grad():
                    found = net(experiment._bags(train, [held])[0].float())
                right = (found.argmax(1) == held.labels).double().mean().item()
                loss = nn.functional.cross_entropy(found, held.labels).item()
                assert record.scalars[f"{name}_accuracy"] == pytest.approx(right)
                assert record.scalars[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)
            weights = torch.cat([p.flatten() for p in net.parameters() if p.ndim > 1])
            zeros = (weights == 0).double().mean().item()
            assert record.scalars["zeros"] == pytest.approx(zeros)


def test_only_the_proximal_step_makes_zeros(finished: Any) -> None:
    _, records, _ = finished
    zeros = {
        kind: np.mean(
            records.where(part=PATH, kind=kind, strength=1e-2).values("zeros")
        )
        for kind in (SUBGRADIENT, PROXIMAL, L2, BOTH)
    }
    assert zeros[SUBGRADIENT] == zeros[L2] == 0
    assert zeros[PROXIMAL] > zeros[BOTH] > 0.5


def test_the_strength_is_chosen_by_validation_accuracy_for_each_seed(
    finished: Any,
) -> None:
    _, records, _ = finished
    for kind in KINDS:
        for record in records.where(part=CHOSEN, kind=kind):
            path = [
                r for r in records.where(part=PATH, kind=kind) if r.seed == record.seed
            ]
            best = max(r.scalars["validation_accuracy"] for r in path)
            chosen = next(r for r in path if r.scalars["validation_accuracy"] == best)
            assert record.scalars["chosen_strength"] == chosen.condition["strength"]
            for name, value in chosen.scalars.items():
                assert record.scalars[name] == value


def test_early_stopping_waits_for_its_patience_and_takes_the_best_weights(
    finished: Any,
) -> None:
    experiment, records, _ = finished
    for record in records.where(part=PATH, kind=STOPPING):
        values = record.curves["validation_loss"].values
        waited, best, stop = 0, np.inf, len(values) - 1
        for epoch, value in enumerate(values):
            improved = value < best - experiment.minimum_delta
            waited, best = (0, value) if improved else (waited + 1, best)
            if waited == record.condition["strength"]:
                stop = epoch
                break
        assert record.scalars["epochs"] == stop == len(values) - 1
        assert record.scalars["validation_loss"] == values.min()
        whole = records.where(kind=NONE)[record.seed].curves["validation_loss"].values
        np.testing.assert_allclose(values, whole[: len(values)], rtol=1e-5)


def test_every_claim_finds_its_metric_and_the_figures_their_data(finished: Any) -> None:
    from nablab.verdicts import judge

    experiment, records, _ = finished
    verdicts = judge(experiment.active_claims(), records, resamples=99)
    assert len(verdicts) == 10
    assert all(verdict.effect is not None for verdict in verdicts)
    baselines = experiment.baselines(records)["test_accuracy"]
    assert 0.2 < baselines["largest class"] < baselines["logistic regression"] < 1
    figures = experiment.figures(records)
    assert list(figures) == [
        "outcome", "penalties", "zeros", "dropout", "early-stopping", "time"
    ]  # fmt: skip
    assert {row["kind"] for row in _rows(figures["outcome"])} >= {NONE, *KINDS}
    panels = {row["panel"] for row in _rows(figures["penalties"])}
    assert panels >= {SUBGRADIENT, PROXIMAL, L2, BOTH}
    assert figures["time"].figure.axes[0].get_yscale() == "log"


def _rows(figure: Any) -> list[dict[str, Any]]:
    columns = figure.table
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def test_networks_have_the_parameters_of_course_d() -> None:
    sizes = {"course-d": 68_484, "course-d-overfitting": 239_044}
    for preset, size in sizes.items():
        experiment = resolve(Regularization, preset, {})
        net = experiment.network_of(Condition(part=CHOSEN, kind=NONE))
        assert sum(part.numel() for part in net.parameters()) == size
        assert models.parameter_count(experiment._spec(4)) == size
        dropping = experiment.network_of(
            Condition(part=PATH, kind=DROPOUT, strength=0.5)
        )
        assert list(dropping.state_dict()) == list(net.state_dict())


def test_claims_of_course_d_are_tested_where_lambda_0_is_run() -> None:
    course = resolve(Regularization, "course-d", {}).active_claims()
    others = resolve(Regularization, "standard", {}).active_claims()
    assert len(course) == len(others) + 2
    assert [claim.first for claim in course[-2:]] == [1e-3, 1e-2]


def test_large_networks_train_in_several_batches() -> None:
    experiment = resolve(Regularization, "standard", {"words": 50_000})
    group = next(g for g in experiment.groups() if g[0]["kind"] == L2)
    path = [t for t in Trials(group, range(8)) if t.condition["part"] == PATH]
    batches = experiment._batches(L2, path, 4)
    assert [trial for batch in batches for trial in batch] == path
    assert {len(batch) for batch in batches} == {3, 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation": 700}, "validation=700 leaves nothing to train on"),
        ({"penalties": (-1.0,)}, "must be 0 or more"),
        ({"rates": (1.0,)}, "below 1"),
        ({"kinds": ("L3",)}, "L1-subgradient"),
        ({"hidden": "sixty"}, "not a list of layer widths"),
        ({"patiences": (2, 2)}, "patiences names 2 twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        small(**changed)


def test_your_own_network_is_trained_instead(tmp_path: Any) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\n\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(300, 5), nn.Tanh(), nn.Linear(5, 4))\n"
    )
    experiment = small(model=f"{source}:build", kinds=(DROPOUT,), epochs=1)
    records, labs = run(experiment)
    assert labs[DROPOUT].results[0].parameters()["0.weight"].shape == (2, 5, 300)
    assert len(records) == 2 * 4


def test_the_objective_is_what_was_trained_on(finished: Any) -> None:
    experiment, _, labs = finished
    trial = Trial(Condition(part=CHOSEN, kind=NONE), 0)
    loss, (x, y) = experiment.objective(trial, labs[NONE])
    assert loss == "cross_entropy"
    assert torch.equal(x, labs[NONE].asked[0][0][0].float())
    assert torch.equal(y, labs[NONE].asked[0][0][1])


def test_records_of_a_run_that_has_just_begun_can_be_drawn(finished: Any) -> None:
    experiment, records, _ = finished
    assert list(experiment.figures(Records(records.where(kind=NONE)))) == [
        "outcome",
        "time",
    ]
    assert dataclasses.replace(experiment, kinds=()).conditions() == [
        Condition(part=CHOSEN, kind=NONE)
    ]


@pytest.mark.slow
def test_on_all_news_dropout_comes_within_a_point_and_a_half_of_a_linear_model() -> (
    None
):
    """The target of the standard preset, with one seed."""
    try:
        data.load_texts("ag-news")
    except DataError as missing:
        pytest.skip(f"AG News is not here: {missing}")
    experiment = resolve(
        Regularization, "standard", {"kinds": (DROPOUT,), "rates": (0.7,)}
    )
    group = experiment.groups()[1]
    lab = Memory(experiment, Trials(group, [0]))
    experiment.run(Trials(group, [0]), lab)
    assert all(r.scalars["above_linear"] > -0.015 for r in lab.records())
    assert all(r.scalars["test_accuracy"] > 0.88 for r in lab.records())
