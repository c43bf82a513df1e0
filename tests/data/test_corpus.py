"""Texts as numbers of words, as sequence models take them."""

from __future__ import annotations

from nablab import data


def test_scored_texts_are_the_test_texts_sorted_by_length() -> None:
    found = data.corpus("king-james@60", 200)
    task = data.text_task("king-james@60")
    train, test = task.texts(), task.texts("test")
    assert found.vocabulary == data.Vocabulary.build(train.texts, size=200)
    plain = found.vocabulary.encode(test.texts)
    order = plain.lengths.argsort(stable=True)
    assert found.scored.lengths.tolist() == plain.lengths[order].tolist()
    assert found.scored_labels.tolist() == test.labels[order].tolist()
    for place in (0, 100, len(order) - 1):
        text = test.texts[int(order[place])]
        begin, end = found.scored.starts[place : place + 2].tolist()
        words = found.vocabulary.encode([text]).values
        assert found.scored.values[begin:end].tolist() == words.tolist()
    assert found.train_labels.tolist() == train.labels.tolist()
    assert data.corpus("king-james@60", 200) is found


def test_held_out_texts_are_no_training_texts() -> None:
    found = data.corpus("king-james@60", 200, held_out=20, seed=3)
    rest, held_out = data.text_task("king-james@60").texts().hold_out(20, seed=3)
    assert len(found.train), len(found.scored) == (40, 20)
    assert found.vocabulary == data.Vocabulary.build(rest.texts, size=200)
    assert sorted(found.scored_labels.tolist()) == sorted(held_out.labels.tolist())
