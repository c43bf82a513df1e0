"""Questions with one right answer, and ways to ask them."""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.peers import Absent

SENTENCE = 100  # characters of an error that are shown


@dataclass(frozen=True)
class Reply:
    """What a tool answers.

    Attributes:
        text: The answer; of a random method the first.
        distances: From the truth, one for each start of a random method; empty where
            there is no answer.
        says: What the tool says of its answer: its error, whether it converged, or that
            it refuses.
    """

    text: str
    distances: tuple[float, ...] = ()
    says: str = ""


@dataclass(frozen=True)
class Ask:
    """A tool and the way it is asked.

    Attributes:
        tool: Its name.
        call: The call, shortened.
        reply: Asks it.

    Raises (from ``reply``):
        Absent: It is not installed.
    """

    tool: str
    call: str
    reply: Callable[[], Reply]


@dataclass(frozen=True)
class Question:
    """Something that has one right answer.

    Attributes:
        title: The question.
        setting: The model and the data.
        truth: The right answer.
        distance: What is counted as the distance from it.
        asks: Who is asked.
        notes: What to know about the answers.
        says: What the last column holds.
    """

    title: str
    setting: str
    truth: str
    distance: str
    asks: Sequence[Ask]
    notes: Sequence[str] = ()
    says: str = "what it says of it"


def repeated(
    ask: Callable[[int], tuple[str, float, str]], seeds: Sequence[int]
) -> Reply:
    """Ask a random method once for each seed, with every generator set to it.

    Args:
        ask: Gives the answer, its distance from the truth, and what the tool says of
            it.
        seeds: The starts.
    """
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what the tools draw from
        found.append(ask(seed))
    distances = tuple(distance for _, distance, _ in found)
    return Reply(found[0][0], distances, _counted([says for _, _, says in found]))


def refusal(ask: Callable[[], object]) -> Reply:
    """Return the beginning of the error that a tool answers with.

    It is the tool's answer if it does not refuse.
    """
    try:
        # some tools print before they raise
        with contextlib.redirect_stdout(io.StringIO()):
            given = ask()
    except Absent:
        raise
    except Exception as error:  # whatever a tool raises is its answer
        words = textwrap.shorten(
            str(error).split(". ")[0], SENTENCE, placeholder=" ..."
        )
        return Reply("none", says=f"{type(error).__name__}: {words}")
    return Reply(str(given), says="nothing")


def _counted(words: Sequence[str]) -> str:
    """Join what was said, with how often where it differs between starts."""
    kinds = dict.fromkeys(words)
    if len(kinds) == 1:
        return words[0]
    return ", ".join(
        f"{kind} ({words.count(kind)} of {len(words)})" for kind in sorted(kinds)
    )
