"""Words, vocabularies and bags, against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from nablab import data
from nablab.errors import UsageError

TRAIN = [
    "the cat sat on the mat",
    "The dog sat, and the dog barked.",
    "a cat and a dog",
    "rain",
    "",
    "the the the cat",
]
TEST = ["the cat barked at the moon", "nothing known here", "", "dog"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't O'Brien’s well-made film!", "it isn't o'brien’s well-made film"),
        ("Ärger über Öl 2024 naïve", "ärger über öl 2024 naïve"),
        ("snake_case -- 'quoted' -dash-", "snake case quoted dash"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_words_are_lower_case_and_keep_what_stands_inside_them(
    text: str, words: str
) -> None:
    assert data.tokenize(text) == words.split()


def test_marks_are_words_on_request() -> None:
    assert data.tokenize("Why (not)?", punctuation=True) == [
        "why", "(", "not", ")", "?",
    ]  # fmt: skip


def test_the_vocabulary_is_ranked_and_ties_are_alphabetical() -> None:
    vocabulary = data.Vocabulary.build(["b a", "c a", "b d"])
    assert vocabulary.words[2:] == ("a", "b", "c", "d")
    assert data.Vocabulary.build(["b a", "c a", "b d"], min_count=2).words[2:] == (
        "a",
        "b",
    )
    assert len(data.Vocabulary.build(["b a", "c a"], size=3)) == 3


@pytest.mark.parametrize("texts", [[], ["", "?!"]])
def test_a_vocabulary_of_nothing_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="No word is left for the vocabulary"):
        data.Vocabulary.build(texts)


def test_a_vocabulary_without_room_for_words_is_refused() -> None:
    with pytest.raises(UsageError, match=r"2 different words.*size=2"):
        data.Vocabulary.build(["a cat"], size=2)


@given(st.lists(st.text("abc d,", max_size=12), min_size=1))
def test_encoded_texts_come_back_word_for_word(texts: list[str]) -> None:
    vocabulary = data.Vocabulary.build([*texts, "a"])
    encoded = vocabulary.encode(texts)
    assert len(encoded) == len(texts)
    for index, text in enumerate(texts):
        part = encoded.values[encoded.starts[index] : encoded.starts[index + 1]]
        expected = " ".join(data.tokenize(text)) or "<unknown>"
        assert vocabulary.decode(part) == expected


def test_words_of_other_texts_are_unknown_and_counted() -> None:
    vocabulary = data.Vocabulary.build(["a cat"])
    encoded = vocabulary.encode(["a dog sat", ""])
    assert encoded.values.tolist() == [2, 1, 1, 1]
    assert encoded.lengths.tolist() == [3, 1]
    assert vocabulary.unknown_share(encoded) == 0.75


def test_no_texts_are_no_sequences() -> None:
    assert len(data.Vocabulary.build(["a"]).encode([])) == 0


def test_a_text_of_a_hundred_thousand_words_is_encoded() -> None:
    vocabulary = data.Vocabulary.build(["a cat"])
    assert vocabulary.encode(["a cat " * 50_000]).lengths.tolist() == [100_000]


def test_multi_hot_agrees_with_scikit_learn() -> None:
    vocabulary = data.Vocabulary.build(TRAIN)
    ours = data.multi_hot(vocabulary.encode(TEST), len(vocabulary))
    theirs = CountVectorizer(
        tokenizer=data.tokenize,
        token_pattern=None,
        vocabulary={word: n for n, word in enumerate(vocabulary.words[2:])},
        binary=True,
    ).transform(TEST)
    assert np.array_equal(ours[:, 2:].numpy(), theirs.toarray())


def sorted_columns(first: object, second: object) -> tuple[np.ndarray, np.ndarray]:
    """Both matrices with the columns in an order of their own content."""
    stacked = np.vstack([first.toarray(), second.toarray()])  # type: ignore[attr-defined]
    order = np.lexsort(stacked)
    return stacked[:, order], order


@pytest.mark.parametrize("longest", [1, 2, 3])
@pytest.mark.parametrize("min_count", [1, 2])
def test_counts_are_those_of_scikit_learn(longest: int, min_count: int) -> None:
    ours, _ = sorted_columns(
        *data.count_terms(TRAIN, TEST, longest=longest, min_count=min_count)
    )
    vectorizer = CountVectorizer(
        tokenizer=data.tokenize,
        token_pattern=None,
        ngram_range=(1, longest),
        min_df=min_count,
    )
    first = vectorizer.fit_transform(TRAIN)
    theirs, _ = sorted_columns(first, vectorizer.transform(TEST))
    assert np.array_equal(ours, theirs)


@given(
    st.lists(st.text("ab c", max_size=10), min_size=1, max_size=6),
    st.lists(st.text("ab d", max_size=10), max_size=4),
)
def test_counts_agree_for_any_texts(train: list[str], test: list[str]) -> None:
    train = [*train, "a b a", "a b"]
    ours = data.count_terms(train, test, longest=3, min_count=2)
    vectorizer = CountVectorizer(
        tokenizer=data.tokenize, token_pattern=None, ngram_range=(1, 3), min_df=2
    )
    first = vectorizer.fit_transform(train)
    second = vectorizer.transform(test) if test else first[:0]
    assert np.array_equal(sorted_columns(*ours)[0], sorted_columns(first, second)[0])


def test_weights_are_those_of_scikit_learn() -> None:
    ours, _ = sorted_columns(*data.tf_idf(TRAIN, TEST))
    vectorizer = TfidfVectorizer(
        tokenizer=data.tokenize,
        token_pattern=None,
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
    )
    first = vectorizer.fit_transform(TRAIN)
    theirs, _ = sorted_columns(first, vectorizer.transform(TEST))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_training_texts_decide_which_terms_there_are() -> None:
    alone = data.count_terms(TRAIN, min_count=1)[0]
    beside = data.count_terms(TRAIN, TEST, min_count=1)[0]
    assert (alone != beside).nnz == 0


def test_texts_without_common_words_are_refused() -> None:
    with pytest.raises(UsageError, match="No word stands in 2 of the 2"):
        data.count_terms(["a", "b"], ["c"])


def test_a_text_set_is_cut_by_seed() -> None:
    texts = tuple(f"text {number}" for number in range(20))
    whole = data.TextSet("mine", "train", texts, torch.arange(20) % 2, ("a", "b"))
    rest, held_out = whole.hold_out(5, seed=1)
    assert sorted([*rest.texts, *held_out.texts]) == sorted(texts)
    assert (len(rest), len(held_out), held_out.split) == (15, 5, "validation")
    for part in (rest, held_out):
        numbers = [int(text.split()[1]) for text in part.texts]
        assert part.labels.tolist() == [number % 2 for number in numbers]
    assert whole.hold_out(5, seed=1)[1].texts == held_out.texts
    assert whole.hold_out(5, seed=2)[1].texts != held_out.texts
    with pytest.raises(UsageError, match="20 texts cannot be held out of the 20"):
        whole.hold_out(20, seed=0)
