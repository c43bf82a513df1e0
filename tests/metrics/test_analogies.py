"""Analogies: against a loop over words in float64, and by constructed vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nablab.errors import UsageError
from nablab.metrics import analogy_answers, flat_map, score_analogies


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(40, 6, generator=rng)
    questions = torch.stack([torch.randperm(40, generator=rng)[:4] for _ in range(70)])
    return vectors, questions


def slow_answer(vectors: Tensor, question: list[int], rule: str, exclude: bool) -> int:
    """Answer one question as the papers write it, a word at a time."""
    rows = vectors.double()

    def cosine(first: int, second: int) -> float:
        product = float(rows[first] @ rows[second])
        return product / float(rows[first].norm() * rows[second].norm())

    def score(word: int) -> float:
        a, b, c = (cosine(word, other) for other in question[:3])
        if rule == "third":
            return c
        if rule == "multiply":
            return (b + 1) / 2 * ((c + 1) / 2) / ((a + 1) / 2 + 0.001)
        offset = sum(
            sign * rows[place] / rows[place].norm()
            for sign, place in zip((-1, 1, 1), question[:3], strict=True)
        )
        assert isinstance(offset, Tensor)
        return float(rows[word] @ offset / rows[word].norm() / offset.norm())

    words = [w for w in range(len(rows)) if not (exclude and w in question[:3])]
    return max(words, key=score)


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("rule", ["add", "multiply", "third"])
def test_answers_are_those_of_a_loop(rule: Any, exclude: bool) -> None:
    vectors, questions = drawn()
    found = analogy_answers(vectors, questions, rule=rule, exclude_inputs=exclude)
    few = questions[::5]
    expected = [slow_answer(vectors, one, rule, exclude) for one in few.tolist()]
    assert found[::5].tolist() == expected


def test_a_perfect_relation_is_answered_and_its_inputs_are_nearer() -> None:
    # Kinds of person along axes 0 to 3, a small step along axis 4 for the relation.
    kinds = torch.cat([torch.eye(4), torch.zeros(4, 1)], dim=1)
    step = torch.tensor([0.0, 0, 0, 0, 0.2])
    vectors = torch.stack([kinds, kinds + step], dim=1).reshape(8, 5)
    questions = torch.tensor(
        [
            [2 * a, 2 * a + 1, 2 * c, 2 * c + 1]
            for a in range(4)
            for c in range(4)
            if a != c
        ]
    )
    score = score_analogies(vectors, questions)
    assert (score.accuracy, score.asked, score.out_of_vocabulary) == (1.0, 12, 0.0)
    # A step as long as the words themselves is found among all words.
    far = score_analogies(vectors + 4 * (vectors[:, 4:] > 0) * step, questions)
    assert (far.accuracy_with_inputs, far.answers_that_are_inputs) == (1.0, 0.0)


def test_without_a_step_the_third_word_is_the_answer() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 2, 3]] + torch.tensor([[0, 0, 0, 1e-3]] * 5)
    score = score_analogies(vectors, torch.tensor([[0, 1, 2, 3]]))
    assert (score.accuracy_with_inputs, score.answers_that_are_inputs) == (0.0, 1.0)


def test_length_and_turns_change_nothing() -> None:
    vectors, questions = drawn(1)
    turn, _ = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    )
    scaled = (vectors * torch.arange(1, 41)[:, None]) @ turn
    assert score_analogies(scaled, questions) == score_analogies(vectors, questions)


def test_unknown_words_are_not_asked() -> None:
    vectors, questions = drawn()
    more = torch.cat([questions, torch.tensor([[0, 1, 2, -1], [-1, 1, 2, 3]])])
    found, plain = (score_analogies(vectors, one) for one in (more, questions))
    assert found.out_of_vocabulary == pytest.approx(2 / 72)
    assert (found.accuracy, found.asked) == (plain.accuracy, 70)
    none = score_analogies(vectors, more[-2:])
    assert math.isnan(none.accuracy)
    assert none.out_of_vocabulary == 1.0


def test_candidates() -> None:
    vectors, questions = drawn()
    only = questions[:, 3:]
    assert torch.equal(analogy_answers(vectors, questions, candidates=only), only[:, 0])
    every = torch.arange(40).expand(70, 40)
    free = analogy_answers(vectors, questions)
    assert torch.equal(analogy_answers(vectors, questions, candidates=every), free)


def test_a_vector_of_zeros_is_no_trouble() -> None:
    vectors, questions = drawn()
    vectors[questions[0, 0]] = 0
    assert not score_analogies(vectors, questions).accuracy < 0


def test_mistakes_are_refused() -> None:
    vectors, questions = drawn()
    with pytest.raises(UsageError, match="Did you mean 'multiply'"):
        analogy_answers(vectors, questions, rule="multipy")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there are vectors from 0 to 9"):
        analogy_answers(vectors[:10], questions)


def test_a_map_of_a_plane_shows_all_and_one_of_a_sphere_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    plane = torch.randn(30, 2, generator=rng) @ torch.randn(2, 20, generator=rng) + 5
    flat = flat_map(plane)
    assert flat.variance_share == pytest.approx(1)
    assert flat.kept_neighbors == 1
    distances = torch.cdist(plane.double(), plane.double())
    torch.testing.assert_close(torch.cdist(flat.points, flat.points), distances)
    # Equal variance in all of D dimensions: a plane shows about 2 / D of it.
    cloud = flat_map(torch.randn(5_000, 20, generator=rng))
    assert 0.1 < cloud.variance_share < 0.13
    with pytest.raises(UsageError, match="needs three vectors or more"):
        flat_map(torch.ones(2, 5))
