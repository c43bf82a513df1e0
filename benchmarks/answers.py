"""The same model, every tool that is installed here, every answer, beside the truth.

The truth is a closed form, or central differences in float64: none of the tools has a
part in it. Every tool is asked as its documentation shows, with its defaults where
nothing else is written. Run it by

    python -m benchmarks.answers
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata

import numpy as np
import torch

from benchmarks import answers_landscape, answers_spectrum, answers_traps
from benchmarks.peers import Absent
from benchmarks.questions import Question
from benchmarks.table import Findings, Table

SEEDS = 20  # starts of a random method
PACKAGES = {
    "nablab": "nablab",
    "PyTorch": "torch",
    "PyHessian": "PyHessian",
    "hessian-eigenthings": "hessian-eigenthings",
    "curvlinops": "curvlinops-for-pytorch",
    "loss-landscapes": "loss-landscapes",
}


def measure(
    *, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> Findings:
    """Ask every question of every tool.

    ``quick`` takes two questions of each kind, and one start.
    """
    seeds = range(1 if quick else SEEDS)
    tables = [versions()]
    for source in (answers_spectrum, answers_traps, answers_landscape):
        for question in source.questions(seeds)[: 2 if quick else None]:
            say(question.title)
            tables.append(answered(question))
    return Findings(tables)


def versions() -> Table:
    """List the tools that are asked, and their versions."""
    rows = []
    for tool, package in PACKAGES.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        rows.append((tool, package, version))
    return Table("Answers: who is asked", ("tool", "package", "version"), rows)


def answered(question: Question) -> Table:
    """Ask all tools, one after the other.

    The notes say which tools are absent.
    """
    rows, absent = [], {}
    for ask in question.asks:
        try:
            with warnings.catch_warnings():
                # old packages warn of their own future
                warnings.simplefilter("ignore")
                reply = ask.reply()
        except Absent as reason:
            absent[ask.tool] = f"No {ask.tool}: {reason}"
            continue
        rows.append(
            (ask.tool, ask.call, reply.text, _shown(reply.distances), reply.says)
        )
    columns = ("tool", "call", "answer", question.distance, question.says)
    notes = (
        question.setting,
        f"Truth: {question.truth}",
        *question.notes,
        *absent.values(),
    )
    return Table(question.title, columns, rows, notes)


def _shown(distances: Sequence[float]) -> str:
    """Write the median and the largest with two significant digits."""
    if not distances:
        return ""
    middle, largest = f"{np.median(distances):.2g}", f"{max(distances):.2g}"
    return middle if middle == largest else f"{middle}, at most {largest}"


def main() -> None:
    """Print every table."""
    findings = measure(
        quick="--quick" in sys.argv,
        say=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
    )
    markdown = "--markdown" in sys.argv
    print(
        "\n\n".join(
            table.markdown() if markdown else table.text() for table in findings.tables
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
