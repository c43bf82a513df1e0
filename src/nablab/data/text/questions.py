"""Analogy questions: a is to b as c is to what?

family, plural, comparative, capital     nablab's own pairs, each with each
./questions.txt                          your own: four words a line, the last one the
                                         answer, or pairs, two words a line, each asked
                                         with each; lines such as ": family" begin a set
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.data.identity import State, state_of
from nablab.errors import UsageError, unknown
from nablab.files.places import in_text

if TYPE_CHECKING:
    from torch import Tensor

    from nablab.data.text.vectors import WordVectors

FOLDER = Path(__file__).with_name("analogies")
NAMES = ("family", "plural", "comparative", "capital")
LARGEST = 50_000_000  # bytes; the 19,544 questions of word2vec take 600 kB

Pair = tuple[str, str]
Question = tuple[str, str, str, str]


@dataclass(frozen=True)
class AnalogySet:
    """Questions about one relation.

    Attributes:
        name: What the relation is called.
        questions: Four words each: a is to b as c is to d, the answer.
        source: Where they stand.
    """

    name: str
    questions: tuple[Question, ...]
    source: str = "nablab"

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs that stand in the relation, each once, in order."""
        both = [pair for a, b, c, d in self.questions for pair in ((a, b), (c, d))]
        return tuple(dict.fromkeys(both))

    def folds(self, folds: int, seed: int) -> tuple[AnalogySet, ...]:
        """Divide the pairs into several folds, each of which asks of its own pairs only.

        Questions of one pair are right or wrong together, so folds that share no pair
        are independent evidence, and random halves of the questions are not. Questions
        between pairs of different folds are not asked by any.

        Args:
            folds: How many; one fold has all questions.
            seed: Decides who gets which pair.

        Raises:
            UsageError: A fold would have no question.
        """
        order = list(self.pairs)
        random.Random(seed).shuffle(order)
        fold_of = {pair: place % folds for place, pair in enumerate(order)}
        divided: list[list[Question]] = [[] for _ in range(folds)]
        for a, b, c, d in self.questions:
            if fold_of[a, b] == fold_of[c, d]:
                divided[fold_of[a, b]].append((a, b, c, d))
        if not all(divided):
            raise UsageError(
                f"The {len(self.pairs):,} pairs of '{self.name}' cannot be divided into "
                f"{folds} folds so that each has a question: take fewer folds."
            )
        return tuple(
            dataclasses.replace(self, questions=tuple(questions))
            for questions in divided
        )

    def known_to(self, vectors: WordVectors) -> AnalogySet:
        """Keep the questions all of whose words have a vector."""
        known = {word for pair in self.pairs for word in pair if word in vectors}
        kept = tuple(one for one in self.questions if known.issuperset(one))
        return dataclasses.replace(self, questions=kept)

    def numbers(self, vectors: WordVectors) -> Tensor:
        """Return the rows of the words in a table: int64 (Q, 4), -1 for unknown ones.

        A word that is not there as it is written is looked for in lower case.
        """
        import torch

        rows = [[vectors.find(word) for word in one] for one in self.questions]
        known = [[-1 if row is None else row for row in one] for one in rows]
        return torch.tensor(known, dtype=torch.int64).reshape(-1, 4)


def analogy_set_names() -> list[str]:
    """List the names that `load_analogies` knows."""
    return list(NAMES)


def load_analogies(spec: str) -> tuple[AnalogySet, ...]:
    """Load analogy questions.

    Args:
        spec: A name that `analogy_set_names` lists, or the path of your own file: four
            words a line, or two where all pairs are to be asked with each other, and a
            line ``: name`` before each set, as in word2vec's ``questions-words.txt``.
            Without such lines all questions are one set.

    Raises:
        UsageError: There is no such name or file, or a line has another number of
            words; the text names it.

    >>> (family,) = load_analogies("family")
    >>> family.questions[0], len(family) >= 60
    (('man', 'woman', 'boy', 'girl'), True)
    """
    if spec in NAMES:
        return (_own_set(spec),)
    path = Path(spec).expanduser()
    if not path.exists():
        if "/" in spec or spec.endswith(".txt"):
            raise UsageError(
                f"There is nothing at {spec}. Give a text file with four words a line, "
                f"or a name: {', '.join(NAMES)}."
            )
        raise unknown("set of analogy questions", spec, NAMES)
    try:
        return _read(path, state_of(path))
    except OSError as error:
        raise UsageError(
            f"{in_text(path)} cannot be read: {error.strerror}. Make it readable, and "
            "give a file, not a folder."
        ) from error


@lru_cache
def _own_set(name: str) -> AnalogySet:
    """Make all questions of nablab's own pairs."""
    lines = (FOLDER / f"{name}.txt").read_text("utf-8").splitlines()
    rows = list(enumerate(map(str.split, lines), start=1))
    return AnalogySet(name, _questions(rows, f"{name}.txt"))


@lru_cache(maxsize=4)
def _read(path: Path, state: State) -> tuple[AnalogySet, ...]:
    """Read a user's file, once per process and state of it."""
    where = in_text(path)
    if path.stat().st_size > LARGEST:
        raise UsageError(f"{where} is no file of questions: it has over 50 MB.")
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at place "
            f"{error.start:,}. Convert it, such as with 'iconv -f latin1 -t utf-8', if "
            "that is its encoding."
        ) from error
    sets: dict[str, list[tuple[int, list[str]]]] = {}
    name = path.stem
    for number, words in enumerate(map(str.split, lines), start=1):
        if words and words[0].startswith(":"):
            name = " ".join(words).lstrip(": ")
            if not name or name in sets:
                problem = "has a name already used" if name else "has no name"
                raise UsageError(f"{where}, line {number:,}: the set {problem}.")
            sets[name] = []
        elif words:
            sets.setdefault(name, []).append((number, words))
    found = {name: _questions(rows, where) for name, rows in sets.items()}
    empty = [name for name, questions in found.items() if not questions]
    if not found or empty:
        what = f"The set '{empty[0]}' of {where}" if empty else where
        raise UsageError(
            f"{what} has no question: give four words a line, or two pairs or more of "
            "two words a line."
        )
    return tuple(
        AnalogySet(name, questions, where) for name, questions in found.items()
    )


def _questions(
    rows: Sequence[tuple[int, list[str]]], where: str
) -> tuple[Question, ...]:
    """Make questions of lines of four words, or of pairs, each with each."""
    size = 2 if rows and len(rows[0][1]) == 2 else 4
    for number, words in rows:
        if len(words) != size:
            raise UsageError(
                f"{where}, line {number:,}: {len(words)} words in place of {size}. A "
                "line is a question, 'man woman king queen', or in a set of pairs one "
                "of them, 'man woman'."
            )
    if size == 4:
        return tuple((a, b, c, d) for _, (a, b, c, d) in rows)
    pairs = [(first, second) for _, (first, second) in rows]
    return tuple((*one, *other) for one, other in permutations(pairs, 2))
