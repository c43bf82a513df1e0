r"""Answers to analogy questions by arithmetic with word vectors.

The question "a is to b as c is to what?" is answered by the word d whose vector lies
nearest to :math:`b - a + c` (3CosAdd, Mikolov et al. 2013), or by the one that
multiplies the cosines instead of adding them (3CosMul, Levy and Goldberg 2014). All
vectors are taken at length 1.

Whether the answer may be one of the three words that were given decides a great part of
the score: :math:`b - a + c` usually lies nearest to c or b. Nearly all published
accuracies leave them out, often without saying so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nablab.errors import UsageError, unknown

Rule = Literal["add", "multiply", "third"]
RULES = ("add", "multiply", "third")
# Levy and Goldberg's, which keeps the division from failing.
EPSILON = 1e-3
# With 50,000 words their scores take 6 MB, which stays near the processor; 256 at once
# took four times as long.
QUESTIONS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class AnalogyScore:
    """How a set of questions was answered.

    Attributes:
        questions: How many there are.
        asked: How many have a vector for each of their words; the others are not asked.
        accuracy: Share of those asked that were answered rightly; NaN for none.
        accuracy_with_inputs: The same where the three words of the question were
            allowed as answers.
        answers_that_are_inputs: Share of those asked whose answer then was one of the
            three.
    """

    questions: int
    asked: int
    accuracy: float
    accuracy_with_inputs: float
    answers_that_are_inputs: float

    @property
    def out_of_vocabulary(self) -> float:
        """Share of the questions that were not asked, as a word has no vector."""
        return 1 - self.asked / self.questions if self.questions else 0.0


def score_analogies(
    vectors: Tensor, questions: Tensor, *, rule: Rule = "add"
) -> AnalogyScore:
    """Answer questions with and without their own words as answers, and count.

    Args:
        vectors: Floats (V, D), a row for each word.
        questions: int64 (Q, 4): rows of a, b, c and of the answer; a negative number
            for a word that has no vector.
        rule: See `analogy_answers`.

    Raises:
        UsageError: As `analogy_answers`.

    >>> words = ["man", "woman", "king", "queen", "apple"]
    >>> axes = [[1.0, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [-1, 0, 0]]
    >>> found = score_analogies(torch.tensor(axes), torch.tensor([[0, 1, 2, 3]]))
    >>> found.accuracy, found.out_of_vocabulary
    (1.0, 0.0)
    """
    known = questions[(questions >= 0).all(dim=1)]
    free = analogy_answers(vectors, known, rule=rule, exclude_inputs=False)
    bound = analogy_answers(vectors, known, rule=rule)
    own = (free[:, None] == known[:, :3]).any(dim=1)
    return AnalogyScore(
        questions=len(questions),
        asked=len(known),
        accuracy=_share(bound == known[:, 3]),
        accuracy_with_inputs=_share(free == known[:, 3]),
        answers_that_are_inputs=_share(own),
    )


def analogy_answers(
    vectors: Tensor,
    questions: Tensor,
    *,
    rule: Rule = "add",
    exclude_inputs: bool = True,
    candidates: Tensor | None = None,
) -> Tensor:
    r"""Answer analogy questions: a is to b as c is to what?

    The cosines of all words with each word of the questions are one matrix product;
    with vectors of length 1, the cosine with :math:`b - a + c` is, up to its length,
    :math:`\cos(d, b) - \cos(d, a) + \cos(d, c)`.

    Args:
        vectors: Floats (V, D), a row for each word.
        questions: int64 (Q, 3) or (Q, 4): rows of a, b and c.
        rule: ``"add"`` for :math:`\cos(d, b) - \cos(d, a) + \cos(d, c)`,
            ``"multiply"`` for :math:`\cos(d, b) \cos(d, c) / (\cos(d, a) + 0.001)`
            with cosines shifted to lie from 0 to 1, ``"third"`` for
            :math:`\cos(d, c)`: the word nearest to the third one, a baseline that knows
            nothing of the relation (Linzen 2016).
        exclude_inputs: Whether a, b and c are no answers.
        candidates: int64 (Q, k): the words among which to choose; None for all.

    Returns:
        int64 (Q,): the row of each answer.

    Raises:
        UsageError: An unknown rule; a question names a row that is not there.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    inputs = questions[:, :3]
    if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < len(
        vectors
    ):
        raise UsageError(
            f"Questions name rows from {int(inputs.min())} to {int(inputs.max())}, and "
            f"there are vectors from 0 to {len(vectors) - 1}. Leave out questions with "
            "words that have no vector."
        )
    found = [
        _best(scores, some, exclude_inputs, chosen)
        for scores, some, chosen in _scores(vectors, inputs, rule, candidates)
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def _scores(
    vectors: Tensor, inputs: Tensor, rule: Rule, candidates: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the scores of all words (q, V) for some questions (q, 3) at a time."""
    lengths = vectors.norm(dim=1)
    lengths = lengths.where(lengths > 0, 1.0)
    asked, places = torch.unique(inputs, return_inverse=True)
    # Few words are asked about: dividing their products is faster than all vectors.
    cosines = (vectors[asked] / lengths[asked, None]) @ vectors.T / lengths
    if rule == "multiply":
        cosines = (cosines + 1) / 2
    for start in range(0, len(inputs), QUESTIONS_AT_ONCE):
        part = slice(start, start + QUESTIONS_AT_ONCE)
        a, b, c = (cosines[column] for column in places[part].T)
        if rule == "add":
            scores = b - a + c
        elif rule == "multiply":
            scores = b * c / (a + EPSILON)
        else:
            scores = c.clone()
        yield scores, inputs[part], None if candidates is None else candidates[part]


def _best(
    scores: Tensor, inputs: Tensor, exclude: bool, candidates: Tensor | None
) -> Tensor:
    if exclude:
        scores = scores.scatter(1, inputs, -torch.inf)
    if candidates is None:
        return scores.argmax(dim=1)
    best = scores.gather(1, candidates).argmax(dim=1, keepdim=True)
    return candidates.gather(1, best)[:, 0]


def _share(right: Tensor) -> float:
    """Return the share of true values; NaN of none."""
    return float(right.double().mean())
