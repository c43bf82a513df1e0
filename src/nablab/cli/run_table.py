"""The runs of the store, and two of them compared, in the terminal and as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nablab.cli.lines import in_lines
from nablab.contract import configuration
from nablab.display.sentences import print_damage
from nablab.errors import StoreError, UsageError

if TYPE_CHECKING:
    from nablab.lab.contents import Config
    from nablab.lab.store import RunFolder
    from nablab.report.view import RunView

T = TypeVar("T")


def run_facts(folder: RunFolder) -> dict[str, Any]:
    """Collect one line of `nablab runs`, as plain JSON types."""
    from nablab.lab.provenance import seconds_of
    from nablab.lab.status import state_of

    damage: list[str] = []

    def whole(look: Callable[[], T]) -> T | None:
        try:
            return look()
        except StoreError as error:
            damage.append(str(error))
            return None

    config, status, verdicts = (
        whole(folder.config),
        whole(folder.status),
        whole(folder.verdicts),
    )
    trials, damaged = (whole(folder.count_trials) if config else None) or (None, [])
    outcomes = [verdict.outcome for verdict in verdicts.verdicts] if verdicts else []
    report = folder.path / "report.html"
    return {
        "experiment": config.experiment if config else folder.path.parent.name,
        "run": folder.path.name,
        "preset": config.preset if config else "",
        "settings": changed_settings(config) if config else [],
        "seeds": status.seeds if status else None,
        "state": state_of(status) if status else "incomplete",
        "trials": trials,
        "trials_wanted": status.trials if status else None,
        "seconds": seconds_of(folder),
        "changed": folder.changed,
        "verdicts": {
            kind: outcomes.count(kind)
            for kind in ("supported", "refuted", "inconclusive")
        },
        "folder": str(folder.path),
        "report": str(report) if report.exists() else None,
        "damage": [
            *damage,
            *(f"{error} The run's command trains it again." for error in damaged),
        ],
    }


def print_runs(console: Console, facts: Sequence[Mapping[str, Any]]) -> None:
    """Print the runs of the store.

    A run takes two lines, or more where they are longer than the terminal is wide.
    """
    if not facts:
        console.print(
            "There are no runs here yet. 'nablab run deep-vs-shallow "
            "--preset quick' makes one."
        )
        return
    for fact in facts:
        done = "?" if fact["trials"] is None else fact["trials"]
        trials = f"{done} of {fact['trials_wanted'] or '?'} trials"
        counts = [
            f"{count} {kind}" for kind, count in fact["verdicts"].items() if count
        ]
        head = [
            f"{fact['experiment']}/{fact['run']}",
            f"{fact['state']},",
            f"{trials},",
            now_text(fact["changed"]),
        ]
        lines = in_lines(head, console.width)
        line = Text("\n".join(lines))
        line.stylize("bold", 0, len(head[0]))
        console.print(line)
        what = [word for word in (fact["preset"], *fact.get("settings", ())) if word]
        what[-1:] = [f"{word}:" for word in what[-1:] if counts] or what[-1:]
        below = "\n".join(in_lines([*what, ", ".join(counts)], console.width - 4))
        console.print(Padding(Text(below.rstrip(), style="dim"), (0, 0, 0, 4)))
    print_damage(console, [text for fact in facts for text in fact["damage"]])


def changed_settings(config: Config) -> list[str]:
    """List what a run changed in its preset, as ``key=value`` words.

    The list is empty where its experiment is gone.
    """
    from nablab import catalogue

    try:
        experiment_class = catalogue.find(config.experiment)
        experiment = configuration.resolve(
            experiment_class, config.preset, config.configuration, validate=False
        )
    except UsageError:
        return []
    return configuration.changes(experiment, config.preset)


def print_comparison(console: Console, first: RunView, second: RunView) -> None:
    """Print what differs between two runs, then verdicts, then numbers.

    The runs stand side by side.
    """
    from nablab.report.compare import compare_rows

    for title, header, rows in compare_rows(first, second):
        console.print(Text(f"\n{title}", style="bold"))
        if not rows:
            console.print("nothing differs")
            continue
        table = Table(
            box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0)
        )
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        console.print(table)


def now_text(seconds: float) -> str:
    """Write a date and time in a human-readable form, in local time."""
    try:
        return (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
            if seconds
            else "never"
        )
    except (OverflowError, ValueError, OSError):  # a disk may report any time
        return "?"
