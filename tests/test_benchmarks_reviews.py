"""The benchmark of reviews: both sides train the same network on the same texts."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import reviews
from nablab import data

SPEC = "king-james@150"


def test_both_sides_have_the_same_network_and_texts() -> None:
    theirs, ours = reviews.Notebook(4).eval(), reviews.build(4).eval()
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    with torch.no_grad():
        for one, other in pairs:
            other.copy_(one)
    corpus, notebook = data.corpus(SPEC, reviews.VOCABULARY), reviews.Reviews.of(SPEC)
    assert len(notebook) == len(corpus.train) == 150
    for place in (0, 149):
        begin, end = corpus.train.starts[place : place + 2].tolist()
        tokens, label = notebook[place]
        assert torch.equal(tokens, corpus.train.values[begin:end].long())
        assert label == corpus.train_labels[place]
        with torch.no_grad():
            found = ours(tokens[None], torch.tensor([len(tokens)]))
            torch.testing.assert_close(theirs(tokens[None]), found)
    assert len(notebook.cut(3)[0][0]) == 3


def test_the_table_names_all_sides() -> None:
    findings = reviews.measure(SPEC, repeats=1, steps=1, say=lambda _: None)
    (table,), (goal,) = findings.tables, findings.goals
    assert [row[0] for row in table.rows] == [
        reviews.OURS,
        reviews.EXACT,
        reviews.NOTEBOOK,
        reviews.ALONE,
        reviews.CUT,
    ]
    assert goal.measured.endswith("x")


def test_a_linear_model_is_timed_with_its_accuracy(tmp_path: Path) -> None:
    verdicts = {"good": "fine lovely film", "bad": "dull boring film"}
    lines = [
        f"{label},{words} seen on day {day}"
        for day in range(40)
        for label, words in verdicts.items()
    ]
    file = tmp_path / "reviews.csv"
    file.write_text("\n".join(["label,text", *lines]) + "\n", encoding="utf-8")
    findings = reviews.linear_model(f"{file}:text,label", repeats=2)
    (table,), (goal,) = findings.tables, findings.goals
    assert table.rows[0][1] == "100.00 %"
    assert goal.measured.startswith("100.00 % in ")
    four_classes = reviews.linear_model(SPEC, repeats=1)
    assert not four_classes.tables
