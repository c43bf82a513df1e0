"""Grid search: two searches agree, luck grows with the grid, and nothing that is scored
was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data
from nablab.contract import Condition, Records, Trial, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.grid_search import (
    BEST,
    LEAKY,
    NESTED,
    NOTHING,
    OTHER,
    OUTER,
    RANDOM,
    SAME,
    SKLEARN,
    SOUND,
    STOPPING,
    TRAINED,
    TRUE,
    GridSearch,
    Point,
    _best_epoch,
    _Texts,
)
from nablab.lab.notebook import Notebook

TINY: dict[str, Any] = {
    "samples": 60,
    "fresh": 100,
    "words": 100,
    "widths": (4, 6),
    "learning_rates": (1e-2, 3e-2),
    "weight_decays": (0.0, 1e-2),
    "epochs": (2, 4),
    "folds": 3,
    "batch_size": 16,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**overrides: Any) -> GridSearch:
    return resolve(GridSearch, "quick", {**TINY, **overrides})


def searched(experiment: GridSearch, search: str, seeds: int = 2) -> Records:
    (group,) = [g for g in experiment.groups() if g[0]["search"] == search]
    trials = Trials(group, range(seeds))
    lab = Notebook(experiment, trials)
    experiment.run(trials, lab)
    return Records(lab.records())


@pytest.fixture(scope="module")
def found() -> dict[str, Records]:
    return {
        # scikit-learn and skorch take a second for a seed
        search: searched(tiny(), search, seeds=1 if search == SKLEARN else 2)
        for search in (TRUE, RANDOM, STOPPING, NESTED, SKLEARN)
    }


def test_conditions_are_what_is_reported_for_grids_of_several_sizes() -> None:
    experiment = tiny()
    assert experiment.sizes == [1, 2, 4, 8, 16]
    assert len(experiment.points) == 16
    assert experiment.points[0] == Point(4, 1e-2, 0.0, 2)
    by_size = [c for c in experiment.conditions() if c["points"] == 1]
    assert [c["protocol"] for c in by_size] == [BEST, NOTHING, SOUND, LEAKY]
    whole = {c["protocol"] for c in experiment.conditions() if c["points"] == 16}
    assert whole == {BEST, NOTHING, SOUND, LEAKY, TRAINED, OUTER, OTHER}
    assert len(experiment.groups()) == 5
    assert len(resolve(GridSearch, "standard", {}).points) == 24


def test_both_searches_give_every_fold_the_same_score(
    found: dict[str, Records],
) -> None:
    for record in found[SKLEARN]:
        here, there = record.arrays["here"], record.arrays["there"]
        assert here.shape == (16, 3)
        # accuracies of 20 texts: equal or apart by a whole text
        np.testing.assert_allclose(here, there, atol=1e-9)
        assert record.scalars["agree"] == 1
        assert len(np.unique(here)) > 3
    plain = found[TRUE].where(protocol=BEST, points=16)
    for record, other in zip(plain, found[SKLEARN], strict=False):
        np.testing.assert_allclose(
            record.arrays["validation"], other.arrays["here"].mean(1)
        )


def test_optimism_is_reported_minus_fresh(found: dict[str, Records]) -> None:
    for record in (r for records in found.values() for r in records):
        scalars = record.scalars
        assert scalars["optimism"] == pytest.approx(
            scalars["reported_accuracy"] - scalars["fresh_accuracy"]
        )
    for record in found[TRUE].where(protocol=BEST, points=16):
        scores, fresh = record.arrays["validation"], record.arrays["fresh"]
        assert record.scalars["reported_accuracy"] == pytest.approx(scores.max())
        assert record.scalars["fresh_accuracy"] == fresh[scores.argmax()]
    for record in found[TRUE].where(protocol=BEST, points=1):
        assert record.scalars["added_by_choosing"] == 0
        assert record.scalars["reported_accuracy"] == pytest.approx(
            record.arrays["validation"].mean()
        )


def test_one_more_point_never_lowers_the_expected_best(
    found: dict[str, Records],
) -> None:
    for search, protocol in ((TRUE, BEST), (RANDOM, NOTHING), (STOPPING, LEAKY)):
        for seed in range(2):
            of_seed = [
                r.scalars["reported_accuracy"]
                for r in found[search].where(protocol=protocol)
                if r.seed == seed
            ]
            assert of_seed == sorted(of_seed)
            assert len(of_seed) == 5


def test_the_scoring_fold_stops_at_its_own_best(found: dict[str, Records]) -> None:
    """Mean over the points: choosing epochs by the score itself can only raise it."""
    for leaky, sound in zip(
        found[STOPPING].where(protocol=LEAKY, points=1),
        found[STOPPING].where(protocol=SOUND, points=1),
        strict=True,
    ):
        assert leaky.scalars["reported_accuracy"] > sound.scalars["reported_accuracy"]


def test_nothing_that_is_scored_was_trained_on() -> None:
    experiment = tiny()
    lab = _Asked(experiment)
    for search in (TRUE, STOPPING, NESTED):
        (group,) = [g for g in experiment.groups() if g[0]["search"] == search]
        experiment.run(Trials(group, range(1)), lab)
    assert len(lab.asked) == 2 * (1 + 1 + 2)
    for recipe, seeds in lab.asked:
        scored = {
            name: held[1].values != -100
            for name, held in recipe.held_out.items()
            if name not in ("fresh", "training")
        }
        assert scored
        for place, seed in enumerate(seeds):
            trained = torch.zeros(60, dtype=torch.bool)
            for batch in range(recipe.sampler.batches_per_epoch):
                trained[recipe.sampler.indices(seed, batch)] = True
            for masks in scored.values():
                assert masks[place].any()
                assert not (masks[place] & trained).any()


class _Asked(Notebook):
    """A notebook that remembers how it was asked to train."""

    def __init__(self, experiment: GridSearch) -> None:
        groups = [c for g in experiment.groups() for c in g]
        super().__init__(experiment, Trials(groups, range(1)))
        self.asked: list[tuple[Any, Any]] = []

    def train(self, learner: Any, data: Any, recipe: Any, **options: Any) -> Any:
        self.asked.append((recipe, options["seeds"]))
        return super().train(learner, data, recipe, **options)


def test_random_labels_are_the_labels_shuffled() -> None:
    from nablab import data

    experiment = tiny()
    lab = Notebook(experiment, Trials(experiment.conditions(), range(1)))
    texts = _Texts.of(data.text_task(experiment.data), experiment)
    true, random = (
        texts.bags(Trial(Condition(search=search), 0), lab) for search in (TRUE, RANDOM)
    )
    assert torch.equal(true.x, random.x)
    assert torch.equal(true.y.bincount(), random.y.bincount())
    assert not torch.equal(true.y, random.y)
    assert true.x.shape == (60, 100)
    assert set(true.x.unique().tolist()) == {0.0, 1.0}


def test_patience_ends_before_a_later_best() -> None:
    watched = np.array([[0.5, 0.4, 0.3, 0.9], [0.1, 0.2, 0.1, 0.3]])
    assert _best_epoch(watched, patience=2).tolist() == [0, 3]
    assert _best_epoch(watched, patience=3).tolist() == [3, 3]


def test_figures_show_what_was_recorded(found: dict[str, Records]) -> None:
    import matplotlib.pyplot as plt

    experiment = tiny()
    records = Records(r for records in found.values() for r in records)
    figures = experiment.figures(records)
    assert list(figures) == ["optimism", "grid", "habits", "training", "searches"]
    assert len(figures["grid"].figure.axes) == 2
    assert figures["searches"].figure.axes[0].get_ylabel().endswith("GridSearchCV")
    assert experiment.figures(Records([]))
    trivial = experiment.baselines(records)["fresh_accuracy"]
    assert 0.2 < trivial["largest class"] < trivial["naive bayes"] < 1
    plt.close("all")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 40}, "samples=60 are too few for 40 folds"),
        ({"batch_size": 30}, "batches of 30"),
        ({"epochs": (4, 2)}, "each larger than the one before"),
        ({"widths": (4, 4)}, "names 4 twice"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(**wrong)


@pytest.fixture
def own_network(tmp_path: Path) -> str:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    layers = nn.Linear(100, 5), nn.Tanh(), nn.Linear(5, 4)\n"
        "    return nn.Sequential(*layers)\n"
        "def narrow():\n"
        "    return nn.Linear(100, 3)\n",
        encoding="utf-8",
    )
    return str(file)


def test_the_users_network_is_searched_by_both(own_network: str) -> None:
    experiment = tiny(model=f"{own_network}:build")
    assert len(experiment.points) == 8
    assert {point.network for point in experiment.points} == {"yours"}
    (record,) = searched(experiment, SKLEARN, seeds=1)
    here, there = record.arrays["here"], record.arrays["there"]
    assert here.shape == (8, 3)
    np.testing.assert_allclose(here, there, atol=1e-9)
    assert len(np.unique(here)) > 2
    plain = searched(experiment, TRUE, seeds=1)
    assert "grid" in experiment.figures(plain)
    assert experiment.sizes == [1, 2, 4, 8]


def test_a_network_of_too_few_scores_is_refused(own_network: str) -> None:
    with pytest.raises(UsageError, match=r"into \(2, 3\); it must return \(2, 4\)"):
        tiny(model=f"{own_network}:narrow")


def test_a_vocabulary_may_have_fewer_words_than_asked_for() -> None:
    experiment = tiny(words=50_000, fresh=40)
    texts = _Texts.of(data.text_task("king-james@60"), experiment)
    assert len(texts.vocabulary) < 50_000
    assert texts._held(texts.test.texts).shape == (40, 50_000)


def test_more_texts_than_there_are_is_said() -> None:
    with pytest.raises(UsageError, match="there are 8,000 training texts"):
        searched(tiny(samples=9_000), TRUE, seeds=1)


@pytest.mark.parametrize("scorings", [1, 2])
def test_a_training_that_a_dry_run_cut_short_is_scored_where_it_ended(
    scorings: int,
) -> None:
    curve = np.random.default_rng(0).random((8, 3, scorings))
    ended = np.repeat(curve[:, :, -1], 2, axis=0)
    np.testing.assert_array_equal(tiny()._at_the_end(curve), ended)
    np.testing.assert_array_equal(tiny()._when_stopped(curve, curve), ended)


def test_scores_that_differ_by_one_text_of_a_thousand_are_equal() -> None:
    scores = np.array([0.768, 0.773, 0.772])
    other = scores + np.array([0.0, 0.001, 0.0])
    assert abs(other - scores).max() > 1e-3  # by rounding
    assert abs(other - scores).max() <= SAME
    assert SAME < 0.0015
