"""Word analogies: what is asked of whom, what is recorded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nablab import data, runs
from nablab.contract import Records, Trials
from nablab.contract.configuration import resolve
from nablab.data.text.vocabulary import RESERVED
from nablab.errors import UsageError
from nablab.experiments.word_analogies import (
    RANDOM,
    WordAnalogies,
    _nearest,
    embeddings_of,
)
from nablab.lab.notebook import Notebook
from nablab.metrics import score_analogies

# A file of one's own whose set has the name of one of nablab's.
OWN = str(Path(data.__file__).parent / "text" / "analogies" / "family.txt")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors in which every family pair differs by the same step, in 12 dimensions."""
    (family,) = data.load_analogies("family")
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((len(family.pairs), 12)).astype("float32")
    step = np.full(12, 0.4, "float32")
    words = [word for pair in family.pairs for word in pair]
    vectors = np.stack([kinds, kinds + step], axis=1).reshape(-1, 12)
    path = tmp_path_factory.mktemp("vectors") / "steps.npz"
    np.savez(path, words=np.array(words), vectors=vectors)
    return path


def own(file: Path, **overrides: Any) -> WordAnalogies:
    values = {
        "vectors": (str(file),),
        "sets": ("family",),
        "dimensions": (3, 12),
        "folds": 4,
        "queries": ("king", "woman - man + king", "unheard"),
        **overrides,
    }
    return resolve(WordAnalogies, "standard", values)


def run(experiment: WordAnalogies, seeds: int = 4) -> Records:
    found = []
    for group in experiment.groups():
        trials = Trials(group, range(seeds))
        lab = Notebook(experiment, trials)
        experiment.run(trials, lab)
        found += lab.records()
    return Records(found)


@pytest.fixture(scope="module")
def finished(file: Path) -> tuple[WordAnalogies, Records]:
    experiment = own(file)
    return experiment, run(experiment)


def test_a_relation_with_one_direction_is_answered(
    finished: tuple[WordAnalogies, Records],
) -> None:
    _, records = finished
    steps = records.where(vectors="steps", dimensions=12)
    assert min(steps.values("accuracy")) == 1
    assert max(records.where(vectors="steps", dimensions=3).values("accuracy")) < 1
    assert max(records.where(vectors=RANDOM).values("accuracy")) < 0.3
    assert set(records.values("out_of_vocabulary")) == {0.0}
    for record in records:
        scalars = record.scalars
        lost = scalars["accuracy"] - scalars["accuracy_with_inputs"]
        assert scalars["lost_by_allowing"] == pytest.approx(lost)


def test_seeds_ask_about_pairs_of_their_own(
    finished: tuple[WordAnalogies, Records],
) -> None:
    experiment, records = finished
    (family,) = data.load_analogies("family")
    asked = records.where(vectors="steps", dimensions=12).values("questions")
    sizes = [len(family.pairs) // 4 + (s < len(family.pairs) % 4) for s in range(4)]
    assert asked == [size * (size - 1) for size in sizes]
    lab = Notebook(experiment, trials := Trials(experiment.groups()[0], [4]))
    experiment.run(trials, lab)
    assert any("more seeds than folds" in note for note in lab.notes)


def test_one_hand_asks_everything(file: Path) -> None:
    records = run(own(file, folds=1, dimensions=(12,)), seeds=1)
    table = data.load_vectors(str(file))
    (family,) = data.load_analogies("family")
    whole = score_analogies(table.vectors, family.numbers(table))
    scalars = records.where(vectors="steps")[0].scalars
    assert scalars["questions"] == whole.questions
    assert scalars["accuracy_with_inputs"] == whole.accuracy_with_inputs


def test_neighbors_of_a_sum(file: Path) -> None:
    table = data.load_vectors(str(file))
    (line, missing) = map(
        json.loads, _nearest(table, ("woman - man + king", "king + unheard"))
    )
    assert missing == ["king + unheard", []]
    query, found = line
    rows = {
        word: table.unit[table.number_of[word]] for word in ("king", "man", "woman")
    }
    total = rows["woman"] - rows["man"] + rows["king"]
    cosines = torch.cosine_similarity(table.vectors, total[None])
    best = [table.words[place] for place in cosines.topk(6).indices.tolist()]
    assert query == "woman - man + king"
    assert [word for word, _, _ in found] == best
    assert {word for word, _, given in found if given} <= {"king", "man", "woman"}


def test_figures_hold_what_was_recorded(
    finished: tuple[WordAnalogies, Records],
) -> None:
    experiment, records = finished
    figures = experiment.figures(records)
    assert list(figures) == ["accuracy", "dimensions", "neighbors", "map"]
    assert "random vectors" in figures["accuracy"].table["answer"]
    near = figures["neighbors"].table
    first = [
        w for w, q in zip(near["word"], near["question"], strict=True) if q == "king"
    ]
    assert first[0] == "king"
    assert set(figures["map"].table["panel"]) == {"family"}
    assert experiment.baselines(records) == {"accuracy_of_four": {"guessing": 0.25}}
    assert experiment.figures(Records([]))["map"].table["word"] == []


def test_counted_vectors_and_networks_have_conditions_of_their_own() -> None:
    quick = resolve(WordAnalogies, "quick", {})
    assert quick.tables == ["counts", RANDOM]
    assert quick.active_needs() == ()
    assert {claim.where["vectors"] for claim in quick.active_claims()} == {"counts"}
    course = resolve(WordAnalogies, "course-d", {})
    assert course.active_needs() == (embeddings_of("bilstm"),)
    assert embeddings_of("bilstm") in WordAnalogies.needs
    networks = [c for c in course.conditions() if c["vectors"] == "bilstm"]
    assert all("dimensions" not in condition for condition in networks)
    assert len(course.active_claims()) == 2
    standard = resolve(WordAnalogies, "standard", {})
    (first, *_) = standard.active_claims()
    assert first.where == {"vectors": "glove", "dimensions": 100}


def test_embeddings_of_a_network(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = data.load_vectors(str(file))
    words = (*RESERVED, *table.words)
    vectors = torch.cat([torch.ones(len(RESERVED), 12), table.vectors])
    kept = data.WordVectors(name="bilstm", words=words, vectors=vectors).tensors()
    asked = []

    def weights_of(self: Notebook, needed: Any, trial: Any) -> Any:
        asked.append(needed)
        # Such tables are kept in half precision.
        return {**kept, "embedding.weight": kept["embedding.weight"].half()}

    monkeypatch.setattr(Notebook, "weights_of", weights_of)
    values = {"sets": ("family",), "networks": ("bilstm",)}
    experiment = resolve(WordAnalogies, "course-d", values)
    (group,) = (one for one in experiment.groups() if one[0]["vectors"] == "bilstm")
    lab = Notebook(experiment, Trials(group, [0]))
    experiment.run(Trials(group, [0]), lab)
    (record,) = lab.records()
    assert asked == [embeddings_of("bilstm")]
    assert record.scalars["accuracy"] > 0.99
    assert record.scalars["accuracy_of_four"] > 0.9
    assert not {*RESERVED} & {
        *record.arrays["map_words"].tobytes().decode().split("\n")
    }
    assert "bilstm" in experiment.figures(Records([record]))["map"].title


def test_only_named_networks_need_a_run_of_sentiment(tmp_path: Path) -> None:
    store = runs.open_store(tmp_path)
    plain = runs.make_plan("word-analogies", preset="quick")
    assert runs.with_sources(plain, store).sources == {}
    with_network = runs.make_plan(
        "word-analogies", preset="quick", overrides={"networks": ("gru",)}
    )
    with pytest.raises(UsageError, match="takes weights of sentiment, and there is no"):
        runs.with_sources(with_network, store)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"vectors": ()}, "There are no vectors to ask"),
        ({"vectors": ("gluve",)}, "Did you mean 'glove'"),
        ({"vectors": ("glove", "glove@10")}, "Two of the vectors are called 'glove'"),
        ({"sets": ("famly",)}, "Did you mean 'family'"),
        ({"queries": ("woman-man +king",)}, "write spaces around the signs"),
        ({"dimensions": (50, 10)}, "each larger than the one before"),
        ({"networks": ("lstn",)}, "Did you mean 'lstm'"),
        ({"folds": 0}, "folds=0 is impossible"),
        ({"sets": ("family", OWN)}, "Two of the sets are called 'family'"),
    ],
)
def test_what_makes_no_sense_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(WordAnalogies, "standard", override)


def test_more_dimensions_than_there_are_is_said(file: Path) -> None:
    experiment = own(file, dimensions=(13,))
    with pytest.raises(UsageError, match="vectors of 12 dimensions, of which 13"):
        run(experiment, seeds=1)


@pytest.mark.slow
def test_glove_answers_as_published() -> None:
    import os

    if not (Path(os.environ.get("NABLAB_DATA", "none")) / "glove").is_dir():
        pytest.skip("NABLAB_DATA has no folder glove")
    table = data.load_vectors("glove@50000")
    for name, least, most in (
        # Pennington et al. 2014: semantic 67.5 (100 dimensions) to 77.4 % (300),
        # syntactic 54.3 to 67.0 %; frequent words and capitals are easier.
        ("family", 0.55, 0.85),
        ("capital", 0.8, 1.0),
        ("comparative", 0.5, 0.75),
        ("plural", 0.5, 0.8),
    ):
        (one,) = data.load_analogies(name)
        score = score_analogies(table.vectors, one.numbers(table))
        assert least < score.accuracy < most, name
        assert score.out_of_vocabulary < 0.25
