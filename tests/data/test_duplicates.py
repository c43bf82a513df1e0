"""Duplicates against every pair compared in plain Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nablab import data
from nablab.data.text import duplicates
from nablab.errors import UsageError

Found = list[tuple[int, int, float, bool]]


def alike(first: str, second: str) -> float:
    one, other = set(data.tokenize(first)), set(data.tokenize(second))
    if first == second:
        return 1.0
    return len(one & other) / len(one | other) if one and other else 0.0


def brute(texts: list[str], others: list[str] | None, similarity: float) -> Found:
    """The most similar twin of each text, the first of equal ones."""
    found = []
    for place, text in enumerate(texts if others is None else others):
        candidates = texts[:place] if others is None else texts
        best = max(
            enumerate(candidates),
            key=lambda pair: (pair[1] == text, alike(text, pair[1]), -pair[0]),
            default=None,
        )
        if best and alike(text, best[1]) >= similarity:
            found.append((place, best[0], alike(text, best[1]), text == best[1]))
    return found


def rows(found: data.Duplicates) -> Found:
    pairs = found.pairs.tolist()
    values = zip(found.similarity.tolist(), found.exact.tolist(), strict=True)
    return [(*pair, *value) for pair, value in zip(pairs, values, strict=True)]


def sentences(draw: random.Random, count: int, words: int) -> list[str]:
    """Texts of few words, so that many are alike; some without any."""
    lengths = [draw.choice([0, 1, 2, 3, 9, 10, 11, 20]) for _ in range(count)]
    texts = [[f"w{draw.randrange(words)}" for _ in range(one)] for one in lengths]
    copies = [[*draw.choice(texts)] for _ in range(count)]
    for copy in copies:
        draw.shuffle(copy)
        if copy and draw.random() < 0.5:
            copy[0] = "other"
    ends = ["", "!", " ..."]
    return [" ".join(text) + draw.choice(ends) for text in texts + copies]


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("words", [3, 12, 200])
def test_every_pair_is_found(
    similarity: float, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # small pieces, so that there are several
    monkeypatch.setattr(duplicates, "PRODUCTS", 500)
    monkeypatch.setattr(duplicates, "COMPARED", 7)
    draw = random.Random(words)
    texts, others = sentences(draw, 25, words), sentences(draw, 20, words)
    within = data.find_duplicates(texts, similarity=similarity)
    assert rows(within) == brute(texts, None, similarity)
    across = data.find_duplicates(texts, others, similarity=similarity)
    assert rows(across) == brute(texts, others, similarity)
    assert (within.texts, across.texts) == (50, 40)


@given(
    st.lists(st.text("abcAB .", max_size=12), max_size=12),
    st.lists(st.text("abcAB .", max_size=12), max_size=12),
    st.sampled_from([0.01, 1 / 3, 0.5, 2 / 3, 0.9, 1.0]),
)
@settings(max_examples=50, deadline=None)
def test_any_texts(texts: list[str], others: list[str], similarity: float) -> None:
    found = data.find_duplicates(texts, others, similarity=similarity)
    assert rows(found) == brute(texts, others, similarity)
    within = data.find_duplicates(texts, similarity=similarity)
    assert rows(within) == brute(texts, None, similarity)


def test_a_share_is_reached_where_its_product_is_rounded_up() -> None:
    """0.28 * 25 is 7.000000000000001 in floating point, and 7 words are enough."""
    words = [f"w{n}" for n in range(25)]
    texts = [" ".join(words)]
    found = data.find_duplicates(texts, [" ".join(words[:7])], similarity=0.28)
    assert rows(found) == [(0, 0, 0.28, False)]
    assert not len(data.find_duplicates(texts, [" ".join(words[:6])], similarity=0.28))


def test_a_text_that_stands_there_often_costs_little() -> None:
    found = data.find_duplicates(["same"] * 5_000 + ["Same!"])
    assert len(found) == 5_000
    assert set(found.pairs[:, 1].tolist()) == {0}
    assert found.describe() == (
        "5,000 of 5,001 texts have a twin (4,999 the same to the letter)"
    )


@pytest.mark.parametrize("similarity", [0, -1, 1.1, float("nan")])
def test_an_impossible_similarity_is_refused(similarity: float) -> None:
    with pytest.raises(UsageError, match="is no share of words"):
        data.find_duplicates(["a"], similarity=similarity)


def test_verses_that_stand_twice() -> None:
    """The set's note states what is counted."""
    train, test = (data.load_texts("king-james", split=s) for s in ("train", "test"))
    across = data.find_duplicates(train.texts, test.texts)
    twins, same = len(across), int(across.exact.sum())
    assert train.notes == (
        f"{twins} of the {len(test):,} test texts of king-james are in its training "
        f"split as well, {same} of them to the letter",
    )
