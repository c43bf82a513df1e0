"""The sentiment experiment: its losses, conditions, records and figures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nablab import data
from nablab.contract import Records, Trials
from nablab.contract.configuration import resolve
from nablab.errors import UsageError
from nablab.experiments.sentiment import (
    LAST,
    NONE,
    REPAIRED,
    WRONG,
    Reading,
    Sentiment,
    _ranked_right,
    _state_gradients,
)
from nablab.training.moments import Moment
from tests.experiments.memory import Memory


class Keeping(Memory):
    """Keeps weights as well."""

    def weights(self, trial: Any, name: str, tensors: Any) -> None:
        self.kept = {**getattr(self, "kept", {}), (trial.seed, name): dict(tensors)}


def small(**overrides: Any) -> Sentiment:
    values: dict[str, Any] = {
        "data": "king-james@120",
        "networks": ("rnn", "transformer"),
        "changes": (f"rnn:{LAST}",),
        "words": 200,
        "limit": 12,
        "embedding": 8,
        "hidden": 8,
        "filters": 4,
        "feed_forward": 8,
        "batch_size": 40,
        "epochs": 2,
        "precision": "float32",
    }
    return resolve(Sentiment, "quick", {**values, **overrides})


def run(experiment: Sentiment, **where: str) -> list[Keeping]:
    labs = []
    for condition in experiment.conditions():
        if condition.matches(where):
            labs.append(Keeping(condition))
            labs[-1].arrays = {seed: {} for seed in (0, 1)}
            experiment.run(Trials([condition], (0, 1)), labs[-1])
    return labs


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished() -> tuple[Sentiment, list[Keeping], Records]:
    experiment = small()
    labs = run(experiment)
    return experiment, labs, Records(r for lab in labs for r in _with_texts(lab))


def _with_texts(lab: Keeping) -> list[Any]:
    import dataclasses

    return [
        dataclasses.replace(record, notes=lab.texts[record.seed])
        for record in lab.records()
    ]


class Fixed(nn.Module):
    """Gives the same scores whatever it reads."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, tokens: Any, lengths: Any) -> Any:
        return self.scores


def batch(labels: list[int]) -> dict[str, torch.Tensor]:
    count = len(labels)
    return {
        "tokens": torch.ones(count, 2, dtype=torch.int64),
        "lengths": torch.full((count,), 2),
        "y": torch.tensor(labels),
    }


def test_one_score_for_two_classes_is_a_sigmoid() -> None:
    net = Fixed([[2.0], [-1.0], [0.5]])
    found = Reading("float32")(net, batch([1, 0, 0]), Moment(0, 1))["loss"]
    wanted = nn.functional.binary_cross_entropy_with_logits(
        net.scores[:, 0], torch.tensor([1.0, 0.0, 0.0])
    )
    torch.testing.assert_close(found, wanted)


def test_the_mistake_is_a_cross_entropy_over_the_batch() -> None:
    net = Fixed([[2.0], [-1.0], [0.5], [0.1]])
    texts = batch([1, 0, 1, 0])
    reading = Reading("float32", over_the_batch=True)
    found = reading(net, texts, Moment(0, 1))["loss"]
    # As PyTorch reads it: one sample whose classes are the texts of the batch.
    course = nn.CrossEntropyLoss()(net.scores[:, 0], texts["y"].float())
    slopes = [torch.autograd.grad(loss, net.scores)[0] for loss in (found, course)]
    torch.testing.assert_close(slopes[0], slopes[1] / 4)
    # The number added to all scores is never learned.
    assert slopes[0].sum().abs() < 1e-6
    with torch.no_grad():
        net.scores += 7
    torch.testing.assert_close(reading(net, texts, Moment(0, 1))["loss"], found)


def test_area_under_the_curve_by_counting_pairs() -> None:
    torch.manual_seed(0)
    scores = torch.stack([torch.zeros(40), torch.randn(40)], dim=1)
    labels = torch.randint(0, 2, (40,))
    above = scores[labels == 1, 1][:, None] > scores[labels == 0, 1]
    assert _ranked_right(scores, labels) == pytest.approx(float(above.float().mean()))
    assert math.isnan(_ranked_right(scores * math.nan, labels))


def test_what_is_recorded(finished: Any) -> None:
    experiment, labs, records = finished
    assert [str(lab.condition) for lab in labs] == [
        f"network=rnn, change={NONE}",
        f"network=transformer, change={NONE}",
        f"network=rnn, change={LAST}",
    ]
    for lab in labs:
        for seed in (0, 1):
            scalars = lab.scalars[seed]
            assert 0 <= scalars["accuracy"] <= 1
            chance, _, logistic = lab.arrays[seed]["linear"]
            assert scalars["lead_over_linear"] == scalars["accuracy"] - logistic
            assert chance < logistic
            assert lab.texts[seed]["stop_reason"] == "budget"
            assert lab.curves[seed]["accuracy"].steps[-1] == 6
    assert "attention_tau" in labs[1].scalars[0]
    assert "gradient_left_at_end" not in labs[1].scalars[0]
    left = {lab.condition["change"]: lab.scalars[0] for lab in (labs[0], labs[2])}
    assert left[LAST]["gradient_left_at_start"] < 0.1
    assert "gradient_left_at_start" not in left[NONE]  # all its states are read
    assert experiment.baselines(records)["accuracy"].keys() == {
        "largest class",
        "naive Bayes",
        "logistic regression",
    }


def test_accuracy_is_that_of_the_trained_network(finished: Any) -> None:
    experiment, labs, _ = finished
    corpus = data.corpus(experiment.data, experiment.words)
    _, scored = experiment.sequences(corpus)
    for lab in labs:
        net = lab.result[1].module()
        batch = scored.batch(torch.arange(len(scored)))
        with torch.no_grad():
            found = net(batch["tokens"], batch["lengths"]).argmax(1)
        accuracy = float((found == corpus.scored_labels).double().mean())
        assert lab.scalars[1]["accuracy"] == pytest.approx(accuracy)
        assert lab.scalars[1]["parameters"] == sum(
            part.numel() for part in experiment.network_of(lab.condition).parameters()
        )


def test_word_vectors_stay_with_their_words(finished: Any) -> None:
    _, labs, _ = finished
    kept = labs[0].kept[1, "embedding"]
    words = bytes(kept["words"].tolist()).decode().split("\n")
    assert len(words) == len(kept["embedding.weight"]) == 200
    net = labs[0].result[1].module()
    torch.testing.assert_close(
        kept["embedding.weight"], net.embedding.weight.detach().half()
    )
    assert not hasattr(labs[2], "kept")  # of networks as they are set alone


def test_changes_share_weights_and_batches_with_their_network(finished: Any) -> None:
    _, labs, _ = finished
    assert labs[0].options["seeds"] == labs[2].options["seeds"]
    assert labs[0].options["seeds"] != labs[1].options["seeds"]


def test_gradients_are_of_real_words_alone(finished: Any) -> None:
    experiment, labs, _ = finished
    corpus = data.corpus(experiment.data, experiment.words)
    _, scored = experiment.sequences(corpus)
    norms = _state_gradients(labs[2].result[0].module(), scored)
    assert norms.shape == (12,)
    assert (norms > 0).all()


def test_the_figures(finished: Any) -> None:
    experiment, _, records = finished
    figures = experiment.figures(records)
    assert list(figures) == [
        "accuracy",
        "changes",
        "cost",
        "learning",
        "through_time",
        "attention",
    ]
    assert set(figures["changes"].table["condition"]) == {
        "rnn, all states",
        "rnn, last state",
    }
    assert set(figures["through_time"].table["when"]) == {
        "before training",
        "after training",
    }
    rows = figures["attention"].table["row"]
    assert 10 <= len(rows) // 2 <= 60
    assert len(set(rows)) == 2
    assert experiment.figures(Records([]))  # before the first trial


def test_a_change_is_a_setting_of_one_condition() -> None:
    experiment = small(changes=(f"rnn:{REPAIRED}", f"bilstm:{WRONG}"))
    repaired, wrong = experiment.conditions()[-2:]
    own = experiment.changed(repaired)
    assert (own.read, own.start, own.clip_norm) == ("last", "orthogonal", 1)
    assert experiment.changed(wrong).mistake == "loss-over-the-batch"
    assert experiment.changed(experiment.conditions()[0]) is experiment


def test_validation_texts_are_held_out_of_training() -> None:
    experiment = small(
        networks=("cnn",), changes=(), scored_on="validation", validation=30
    )
    (lab,) = run(experiment)
    assert len(lab.options["data"]) == 90
    assert "validation" in lab.options["held_out"]
    assert lab.scalars[0]["accuracy"] * 30 == pytest.approx(
        round(lab.scalars[0]["accuracy"] * 30)
    )


def test_a_network_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def __init__(self, outputs=4):\n"
        "        super().__init__()\n"
        "        self.table = nn.Embedding(200, outputs, padding_idx=0)\n"
        "    def forward(self, tokens, lengths):\n"
        "        return self.table(tokens).sum(1) / lengths[:, None]\n"
        "def two(): return Mean(2)\n"
    )
    experiment = small(networks=(), changes=(), model=f"{path}:Mean")
    (lab,) = run(experiment)
    assert lab.condition["network"] == "yours"
    assert not hasattr(lab, "kept")
    with pytest.raises(UsageError, match=r"it must return \(N, 4\) scores"):
        small(model=f"{path}:two")


@pytest.mark.parametrize("preset", Sentiment.presets)
def test_presets_build_their_networks(preset: str) -> None:
    experiment = resolve(Sentiment, preset, {})
    for condition in experiment.conditions():
        assert isinstance(experiment.network_of(condition), nn.Module)


def test_course_d_has_the_course_sizes() -> None:
    experiment = resolve(Sentiment, "course-d", {})
    sizes = {
        str(c): sum(part.numel() for part in experiment.network_of(c).parameters())
        for c in experiment.conditions()
    }
    assert sizes["network=rnn, change=none"] == 101_441
    assert sizes["network=lstm, change=none"] == 105_665
    assert sizes["network=gru, change=none"] == 104_257
    # Without the decoder, which was fed the labels: 17,120 parameters less.
    assert sizes["network=transformer, change=embedding=32+read=mean"] == 332_801


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"networks": (), "changes": ()}, "no network to train"),
        ({"changes": ("rnn",)}, "Write network:setting=value"),
        ({"changes": ("lstn:read=last",)}, "one of the networks rnn, lstm"),
        ({"changes": ("rnn:red=last",)}, "read"),
        ({"changes": ("rnn:read=middle",)}, "last, max, mean|last.*max"),
        ({"changes": ("rnn:data=imdb",)}, "the same for all conditions"),
        ({"changes": ("transformer:heads=3",)}, "cannot share 8 coordinates"),
        ({"heads": 3}, "choose one of 1, 2, 4, 8"),
        ({"dropout": 1.0}, "dropout=1.0 is impossible"),
        ({"data": "digits"}, "digits"),
    ],
)
def test_settings_that_cannot_work(overrides: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**overrides)


@pytest.mark.slow
def test_imdb_is_read_in_bfloat16_too() -> None:
    if not (Path(os.environ.get("NABLAB_DATA", "")) / "imdb").is_dir():
        pytest.skip("NABLAB_DATA has no imdb")
    experiment = small(
        data="imdb@4000",
        networks=("lstm",),
        changes=(),
        words=5_000,
        limit=100,
        embedding=32,
        hidden=32,
        precision="bfloat16",
        epochs=4,
    )
    (lab,) = run(experiment)
    assert lab.scalars[0]["accuracy"] > 0.7


def test_a_network_has_settings_of_its_own_and_a_change_wins() -> None:
    experiment = small(
        tuned="transformer:learning_rate=1e-3+dropout=0.4",
        changes="transformer:dropout=0.2,rnn:read=last",
    )
    found = {
        (c["network"], c["change"]): experiment.changed(c)
        for c in experiment.conditions()
    }
    plain, changed = found["transformer", NONE], found["transformer", "dropout=0.2"]
    assert (plain.learning_rate, plain.dropout) == (1e-3, 0.4)
    assert (changed.learning_rate, changed.dropout) == (1e-3, 0.2)
    assert found["rnn", NONE] == experiment
    assert found["rnn", LAST].learning_rate == experiment.learning_rate


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ("transformer:words=99", "tuned: words is the same for all conditions"),
        ("transfomer:dropout=0.2", "tuned: 'transfomer:dropout=0.2' is none"),
        ("rnn:dropuot=0.2", "dropuot"),
    ],
)
def test_bad_settings_of_ones_own_are_refused(tuned: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(tuned=tuned)


def test_what_is_left_of_the_gradient_is_told_of_the_last_state(
    finished: tuple[Sentiment, list[Keeping], Records],
) -> None:
    records = finished[2].where(network="rnn")
    for change, told in ((NONE, False), (LAST, True)):
        for record in records.where(change=change):
            assert "gradient at the end" in record.curves
            assert ("gradient_left_at_end" in record.scalars) is told
