"""Word vectors from counts: the matrix by hand, and dense arithmetic as the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nablab.baselines import count_vectors
from nablab.baselines.word_counts import _meetings, _mutual_information
from nablab.data import Vocabulary
from nablab.errors import UsageError

TEXTS = ["a b c", "b a", "c c d a"]


def test_meetings_by_hand() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    met = _meetings(vocabulary.encode(TEXTS), len(vocabulary), 2).toarray()
    number = vocabulary.number_of
    # a and b stand side by side twice; a and c two apart twice, which counts half each.
    assert met[number["a"], number["b"]] == 2
    assert met[number["a"], number["c"]] == 0.5 + 0.5
    assert met[number["c"], number["c"]] == 2  # seen from both sides
    assert met[number["b"], number["d"]] == 0
    np.testing.assert_array_equal(met, met.T)


def test_information_and_factors_are_those_of_dense_arithmetic() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    met = _meetings(vocabulary.encode(TEXTS), len(vocabulary), 2)[2:, 2:]
    dense = met.toarray()
    words, contexts = dense.sum(1), dense.sum(1) ** 0.75
    expected = np.zeros_like(dense)
    for row in range(4):
        for column in range(4):
            if dense[row, column]:
                joint = dense[row, column] / dense.sum()
                alone = words[row] / dense.sum() * contexts[column] / contexts.sum()
                expected[row, column] = max(0.0, math.log(joint / alone))
    found = _mutual_information(met).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    table = count_vectors(TEXTS, dimensions=2, window=2, min_count=1)
    left, sizes, _ = np.linalg.svd(expected)
    products = (left[:, :2] * sizes[:2]) @ left[:, :2].T
    measured = (table.vectors @ table.vectors.T).numpy()
    np.testing.assert_allclose(measured, products, atol=1e-6)


def test_the_same_texts_give_the_same_bytes_and_words_alike_lie_near() -> None:
    texts = ["the king sat", "the queen sat", "a dog ran", "a cat ran"] * 9
    one, other = (count_vectors(texts, dimensions=3) for _ in range(2))
    assert torch.equal(one.vectors, other.vectors)
    assert one.neighbors("dog", 1)[0][0] == "cat"


def test_too_few_words_are_refused() -> None:
    with pytest.raises(UsageError, match="have 4 words that occur 1 times or more"):
        count_vectors(TEXTS, dimensions=4, min_count=1)
