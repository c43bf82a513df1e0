"""How long a command that only prints takes from the shell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.child import cost
from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns

COMMANDS = (("--help",), ("list",), ("show", "deep-vs-shallow"))
AT_LEAST, AIM = "0.3 s", "0.15 s"


class Failed(Exception):
    """A command did not end well; the text says how."""


def nablab_command() -> list[str]:
    """Find the command beside this Python, or the module where none is installed."""
    script = Path(sys.executable).with_name("nablab")
    return [str(script)] if script.exists() else [sys.executable, "-m", "nablab"]


def measure(*, repeats: int) -> Findings:
    """Time each command in fresh processes, with files in the system's cache."""
    turns: dict[str, Callable[[], float]] = {}
    notes = [
        f"Medians of {repeats} processes each, in turns, after one that is not "
        "counted; smallest and largest."
    ]
    for words in COMMANDS:
        try:
            _seconds(words)
        except Failed as failure:
            notes.append(f"Not measured: {failure}")
        else:
            turns[_name(words)] = lambda words=words: _seconds(words)  # type: ignore[misc]
    turns["python -c pass"] = lambda: cost([sys.executable, "-c", "pass"]).seconds
    spreads = {
        name: Spread.of(values) for name, values in take_turns(turns, repeats).items()
    }
    rows = [(name, spread_text(spread, " s")) for name, spread in spreads.items()]
    goals = [
        Goal(name, f"{significant(spread.median)} s", AT_LEAST, AIM)
        for name, spread in spreads.items()
        if name.startswith("nablab")
    ]
    return Findings([Table("Start-up", ("command", "wall time"), rows, notes)], goals)


def _name(words: tuple[str, ...]) -> str:
    return " ".join(("nablab", *words))


def _seconds(words: tuple[str, ...]) -> float:
    done = cost([*nablab_command(), *words])
    if done.exit_code:
        raise Failed(f"{_name(words)} ended with {done.exit_code}: {done.complaint}")
    return done.seconds
