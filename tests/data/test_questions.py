"""Analogy questions: nablab's own sets, a user's file, and folds that share no pair."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from nablab import data
from nablab.data.text.vectors import WordVectors
from nablab.errors import UsageError


@pytest.mark.parametrize("name", data.analogy_set_names())
def test_own_sets(name: str) -> None:
    (found,) = data.load_analogies(name)
    pairs = len(found.pairs)
    assert len(found) == pairs * (pairs - 1) >= 60
    words = [word for pair in found.pairs for word in pair]
    # a word with two partners would make its questions ambiguous
    assert len(set(words)) == len(words)
    assert words == [word.lower() for word in words]


@pytest.mark.parametrize("folds", [1, 2, 10])
def test_folds_share_no_pair(folds: int) -> None:
    (whole,) = data.load_analogies("capital")
    divided = whole.folds(folds, seed=3)
    assert divided == whole.folds(folds, seed=3)
    assert all(not set(a.pairs) & set(b.pairs) for a, b in combinations(divided, 2))
    assert {pair for fold in divided for pair in fold.pairs} == set(whole.pairs)
    for fold in divided:
        assert len(fold) == len(fold.pairs) * (len(fold.pairs) - 1)
    assert folds > 1 or set(divided[0].questions) == set(whole.questions)


def test_too_many_hands_are_refused() -> None:
    (whole,) = data.load_analogies("family")
    with pytest.raises(UsageError, match="cannot be divided into 900 folds"):
        whole.folds(900, seed=0)


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(
        ": gender\nman woman king queen\n\n: city\nRome Italy Paris France\n"
    )
    gender, city = data.load_analogies(str(path))
    assert (gender.name, city.name) == ("gender", "city")
    assert city.questions == (("Rome", "Italy", "Paris", "France"),)
    path.write_text("man woman\nking queen\n")  # pairs, each with each
    (pairs,) = data.load_analogies(str(path))
    both = ("man", "woman", "king", "queen")
    assert pairs.questions == (both, (*both[2:], *both[:2]))
    path.write_text("man woman king queen\n\n")
    assert [one.name for one in data.load_analogies(str(path))] == ["mine"]


def test_words_are_looked_for_as_written_and_then_in_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Rome Italy Paris France\nrome italy oslo norway\n")
    (questions,) = data.load_analogies(str(path))
    words = ("rome", "italy", "Paris", "paris", "france")
    table = WordVectors(name="t", words=words, vectors=torch.ones(5, 2))
    assert questions.numbers(table).tolist() == [[0, 1, 2, 4], [0, 1, -1, -1]]
    assert len(questions.known_to(table)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"man woman king\n", "line 1: 3 words in place of 4"),
        (b"a b c d\na b c d e\n", "line 2: 5 words in place of 4"),
        (b"a b\nc d e f\n", "line 2: 4 words in place of 2"),
        (b"a b\n", "has no question"),
        (b"", "has no question"),
        (b": one\n: two\na b c d\n", "The set 'one' of .* has no question"),
        (
            b": one\na b c d\n: one\na b c d\n",
            "line 3: the set has a name already used",
        ),
        (b":\na b c d\n", "line 1: the set has no name"),
        (b"a b c \xe9\n", "not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        data.load_analogies(str(path))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'family'"):
        data.load_analogies("famly")
    with pytest.raises(UsageError, match="There is nothing at"):
        data.load_analogies(str(tmp_path / "none.txt"))
    with pytest.raises(UsageError, match="a file, not a folder"):
        data.load_analogies(str(tmp_path))
