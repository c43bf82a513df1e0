"""The same model, every tool that is installed here, every answer, beside the truth.

The truth is a closed form, or central differences in float64: none of the tools has a part in it. Every tool
is asked as its documentation shows, with its defaults where nothing else is written. Run it by

    python -m benchmarks.answers
"""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch

from benchmarks.peers import Absent
from benchmarks.table import Findings, Table

SEEDS = 20  # starts of a random method
SENTENCE = 100  # characters of an error that are shown
PACKAGES = {
    "nablab": "nablab",
    "PyTorch": "torch",
    "PyHessian": "PyHessian",
    "hessian-eigenthings": "hessian-eigenthings",
    "curvlinops": "curvlinops-for-pytorch",
    "loss-landscapes": "loss-landscapes",
}


@dataclass(frozen=True)
class Reply:
    """What a tool answers.

    Attributes:
        text: The answer; of a random method the first.
        distances: From the truth, one for each start of a random method; empty where there is no answer.
        says: What the tool says of its answer: its error, whether it converged, or that it refuses.
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


def measure(*, quick: bool = False, say: Callable[[str], None] = lambda text: None) -> Findings:
    """Ask everything of everyone; ``quick`` takes two questions of each kind, and one start."""
    from benchmarks import answers_landscape, answers_spectrum, answers_traps

    seeds = range(1 if quick else SEEDS)
    tables = [versions()]
    for source in (answers_spectrum, answers_traps, answers_landscape):
        for question in source.questions(seeds)[: 2 if quick else None]:
            say(question.title)
            tables.append(answered(question))
    return Findings(tables)


def versions() -> Table:
    """Who is asked."""
    rows = []
    for tool, package in PACKAGES.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        rows.append((tool, package, version))
    return Table("Answers: who is asked", ("tool", "package", "version"), rows)


def answered(question: Question) -> Table:
    """Ask all, one after the other; who is absent is said below."""
    rows, absent = [], {}
    for ask in question.asks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old packages about their own future
                reply = ask.reply()
        except Absent as reason:
            absent[ask.tool] = f"No {ask.tool}: {reason}"
            continue
        rows.append((ask.tool, ask.call, reply.text, _shown(reply.distances), reply.says))
    columns = ("tool", "call", "answer", question.distance, question.says)
    notes = (question.setting, f"Truth: {question.truth}", *question.notes, *absent.values())
    return Table(question.title, columns, rows, notes)


def repeated(ask: Callable[[int], tuple[str, float, str]], seeds: Sequence[int]) -> Reply:
    """Ask a random method once for each seed, with every generator set to it.

    Args:
        ask: Gives the answer, its distance from the truth, and what the tool says of it.
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
    """The beginning of the error that a tool answers with; its answer, if it does not refuse."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some tools print before they raise
            given = ask()
    except Absent:
        raise
    except Exception as error:  # whatever a tool raises is its answer
        words = textwrap.shorten(str(error).split(". ")[0], SENTENCE, placeholder=" ...")
        return Reply("none", says=f"{type(error).__name__}: {words}")
    return Reply(str(given), says="nothing")


def _counted(words: Sequence[str]) -> str:
    """What was said, with how often where it differs between starts."""
    kinds = dict.fromkeys(words)
    if len(kinds) == 1:
        return words[0]
    return ", ".join(f"{kind} ({words.count(kind)} of {len(words)})" for kind in sorted(kinds))


def _shown(distances: Sequence[float]) -> str:
    """Two significant digits: the median and the largest."""
    if not distances:
        return ""
    middle, largest = f"{np.median(distances):.2g}", f"{max(distances):.2g}"
    return middle if middle == largest else f"{middle}, at most {largest}"


def main() -> None:
    """Print every table."""
    findings = measure(
        quick="--quick" in sys.argv, say=lambda text: print(f"... {text}", file=sys.stderr, flush=True)
    )
    markdown = "--markdown" in sys.argv
    print("\n\n".join(table.markdown() if markdown else table.text() for table in findings.tables))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
