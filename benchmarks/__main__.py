"""Measure, print the tables, and write them as Markdown where ``--output`` says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.table import Findings, Goal, Table, goals_table

REPEATS = 5
STARTUP_REPEATS = 15
TURN_SECONDS = 1.0
SUBJECTS = (
    "startup",
    "presets",
    "replicas",
    "learners",
    "penalties",
    "reviews",
    "svd",
    "transfer",
    "instruments",
    "images",
    "cifar",
    "busy",
    "answers",
)


def main(words: Sequence[str] | None = None) -> None:
    """Measure what the options ask for."""
    options = _parser().parse_args(words)
    from benchmarks import machine

    tables: list[Table] = [machine.describe()]
    goals: list[Goal] = []
    for subject in [options.only] if options.only else SUBJECTS:
        say(f"measuring {subject}")
        findings = _MEASURES[subject](options)
        tables += findings.tables
        goals += findings.goals
    if goals:
        tables.insert(1, goals_table(goals))
    print("\n\n".join(table.text() for table in tables))
    if options.output:
        page = "\n\n".join(table.markdown() for table in tables) + "\n"
        options.output.write_text(page, encoding="utf-8")


def say(text: str) -> None:
    """Print progress to standard error, beside the output."""
    print(f"... {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=SUBJECTS, help="measure this subject only")
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        help=f"repeats of each measurement ({REPEATS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one small case, to see that it works"
    )
    parser.add_argument(
        "--long", action="store_true", help="CIFAR-10 to 94 %% too: half an hour"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the tables as Markdown too"
    )
    return parser


def _startup(options: argparse.Namespace) -> Findings:
    from benchmarks import startup

    return startup.measure(repeats=3 if options.quick else STARTUP_REPEATS)


def _presets(options: argparse.Namespace) -> Findings:
    from benchmarks import presets

    names = ("quick",) if options.quick else ("quick", "standard")
    return presets.measure(
        names, repeats=1 if options.quick else min(options.repeats, 3), say=say
    )


def _replicas(options: argparse.Namespace) -> Findings:
    from benchmarks import cases, replicas

    if options.quick:
        return replicas.measure(
            cases.QUICK, repeats=min(options.repeats, 2), turn_seconds=0.05, say=say
        )
    return replicas.measure(
        cases.ALL, repeats=options.repeats, turn_seconds=TURN_SECONDS, say=say
    )


def _learners(options: argparse.Namespace) -> Findings:
    from benchmarks import learners

    if options.quick:
        return learners.measure(repeats=1, steps=50)
    return learners.measure(repeats=options.repeats, steps=10_000)


def _penalties(options: argparse.Namespace) -> Findings:
    from benchmarks import penalties

    if options.quick:
        return penalties.measure(repeats=1, steps=10, seeds=1)
    return penalties.measure(repeats=options.repeats, steps=300)


def _reviews(options: argparse.Namespace) -> Findings:
    from benchmarks import reviews

    if options.quick:
        return reviews.measure("king-james@200", repeats=1, steps=2, say=say)
    return reviews.measure(repeats=min(options.repeats, 3), steps=60, say=say)


def _svd(options: argparse.Namespace) -> Findings:
    from benchmarks import svd

    if options.quick:
        return svd.measure(
            "digits", count=16, code=8, repeats=1, epochs=2, size=8, channels=1, say=say
        )
    return svd.measure(repeats=min(options.repeats, 3), say=say)


def _transfer(options: argparse.Namespace) -> Findings:
    from benchmarks import transfer

    if options.quick:
        return transfer.measure("digits@100", pixels=32, pretrained=False, repeats=1)
    return transfer.measure(repeats=min(options.repeats, 3))


def _instruments(options: argparse.Namespace) -> Findings:
    from benchmarks import instruments

    repeats = min(options.repeats, 2) if options.quick else options.repeats
    return instruments.measure(repeats=repeats, quick=options.quick, say=say)


def _images(options: argparse.Namespace) -> Findings:
    from benchmarks import images

    repeats = 1 if options.quick else min(options.repeats, 3)
    return images.measure(repeats=repeats, quick=options.quick, say=say)


def _cifar(options: argparse.Namespace) -> Findings:
    from benchmarks import cifar

    if options.quick:
        return cifar.measure(
            "digits@256", repeats=1, steps=1, batch=64, budgets=(), say=say
        )
    budgets = (80, 90, 94) if options.long else (80, 90)
    repeats = min(options.repeats, 3)
    return cifar.measure(repeats=repeats, steps=4, budgets=budgets, say=say)


def _busy(options: argparse.Namespace) -> Findings:
    from benchmarks import busy

    if options.quick:
        return busy.measure(repeats=1, turn_seconds=0.02, say=say)
    return busy.measure(repeats=options.repeats, turn_seconds=TURN_SECONDS, say=say)


def _answers(options: argparse.Namespace) -> Findings:
    from benchmarks import answers

    return answers.measure(quick=options.quick, say=say)


_MEASURES: dict[str, Callable[[argparse.Namespace], Findings]] = {
    "startup": _startup,
    "presets": _presets,
    "replicas": _replicas,
    "learners": _learners,
    "penalties": _penalties,
    "reviews": _reviews,
    "svd": _svd,
    "transfer": _transfer,
    "instruments": _instruments,
    "images": _images,
    "cifar": _cifar,
    "busy": _busy,
    "answers": _answers,
}


if __name__ == "__main__":
    main()
