"""What a run looks like in the terminal.

One live table, or plain lines where there is no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nablab.contract import Condition, levels_of, shared_levels, text_of
from nablab.text.durations import duration
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from pathlib import Path

    from nablab.contract import Level
    from nablab.lab.contents import Progress
    from nablab.lab.runner import Plan
    from nablab.lab.store import RunFolder
    from nablab.lab.work import Outcome
    from nablab.verdicts import Verdict

MARKS = {
    "supported": ("+", "bold green"),
    "refuted": ("-", "bold red"),
    "inconclusive": ("?", "bold yellow"),
}
BAR_WIDTH = 15
WIDE = 72  # columns from which the rate has room
# columns from which most claims, and most effects, take one line each
ROOM_FOR_EFFECTS = 96
ROWS = 12  # conditions shown at once; the rest is counted
REFRESH_PER_SECOND = 4
Conditions = tuple[Condition, ...]  # that train in one batch
STALE_SECONDS = 15.0  # progress this old was left by a process that was killed


class PlainLines:
    """An observer that prints a line when something ends: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = self._ended = 0

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Say what will be run."""
        self._total = len(plan.groups)
        print_damage(self.console, folder.damage())
        self.console.print(headline(plan, pending), highlight=False)

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Say how conditions ended."""
        self._ended += 1
        print_damage(self.console, outcome.damage)
        self.console.print(
            f"[{self._ended}] {ending(conditions, outcome)}",
            highlight=False,
            markup=False,
        )

    def stopping(self) -> None:
        """Say that the request to stop was heard."""
        self.console.print(
            "Stopping: finishing the step and saving. Ctrl-C again ends at once."
        )

    def helped(self, workers: int) -> None:
        """Say that further processes work."""
        self.console.print(helping(workers), highlight=False)

    def close(self) -> None:
        """Nothing is left open."""


@contextmanager
def measuring(
    console: Console, plan: Plan
) -> Iterator[Callable[[Sequence[Condition]], None]]:
    """In a terminal: say which condition a dry run is at, in one line that goes away at
    the end.
    """
    if not console.is_terminal:
        yield lambda _: None
        return
    numbers, status = count(1), console.status("")

    def say(conditions: Sequence[Condition]) -> None:
        place = f"{next(numbers)} of {len(plan.groups)}"
        status.update(
            escape(f"Measuring {plan.experiment.name}, {place}: {text_of(conditions)}")
        )
        status.start()

    try:
        yield say
    finally:
        status.stop()


class LiveTable:
    """An observer with one table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._states: dict[Conditions, str] = {}
        self._progress_paths: dict[Path, Conditions] = {}
        self._seeds = 0
        self._stopping = False

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Print the headline and open the table."""
        from nablab.lab.work import pending_seeds

        print_damage(self.console, folder.damage())
        self.console.print(headline(plan, pending), highlight=False)
        self._seeds = plan.seeds
        self._progress_paths = {
            folder.progress_path(shared_levels(group)): group for group in plan.groups
        }
        for group in plan.groups:
            waiting = pending_seeds(folder, group, plan.seeds)[0]
            self._states[group] = "waiting" if waiting else "done before"
        if pending:
            self._live = Live(
                self,
                console=self.console,
                refresh_per_second=REFRESH_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Note how conditions ended."""
        print_damage(self.console, outcome.damage)
        self._states[tuple(conditions)] = (
            f"{outcome.state} in {duration(outcome.seconds)}"
        )

    def stopping(self) -> None:
        """Say that the request to stop was heard."""
        self._stopping = True

    def helped(self, workers: int) -> None:
        """Say that further processes work."""
        self.console.print(helping(workers), highlight=False)

    def close(self) -> None:
        """Leave the table and free the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich__(self) -> RenderableType:
        progress = self._progress()
        table = Table(
            box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0)
        )
        table.add_column("condition", overflow="ellipsis", no_wrap=True)
        table.add_column("progress", no_wrap=True, min_width=BAR_WIDTH)
        table.add_column("loss", justify="right", no_wrap=True, min_width=8)
        table.add_column("left", justify="right", no_wrap=True, min_width=6)
        if self.console.width >= WIDE:
            table.add_column("steps/s", justify="right", no_wrap=True, min_width=7)
        for group in self._shown(progress):
            table.add_row(*self._cells(group, progress.get(group)))
        done = sum(state.startswith("done") for state in self._states.values())
        foot = (
            f"{done} of {len(self._states)} conditions done, {self._seeds} seeds each"
        )
        if self._stopping:
            foot = "Stopping: finishing the step and saving. Ctrl-C again ends at once."
        return Group(table, Text(foot, style="dim"))

    def _shown(self, progress: dict[Conditions, Progress]) -> Sequence[Conditions]:
        """The conditions in work first, then those that wait, then the rest.

        In the experiment's order.
        """
        if len(self._states) <= ROWS:
            return list(self._states)
        rank = {
            c: (c not in progress, self._states[c] != "waiting") for c in self._states
        }
        return sorted(self._states, key=lambda group: rank[group])[:ROWS]

    def _cells(
        self, group: Conditions, now: Progress | None
    ) -> tuple[RenderableType, ...]:
        name = Text(", ".join(levels_of(group).values()))
        if now is None:
            return name, Text(self._states[group], style="dim")
        bar = ProgressBar(total=now.steps, completed=now.step, width=BAR_WIDTH)
        left = max(0, now.steps - now.step) * now.replicas / max(now.rate, 1e-9)
        loss = "" if now.loss is None else f"{now.loss:.2e}"
        cells = name, bar, loss, duration(left), f"{now.rate:,.0f}"
        return cells if self.console.width >= WIDE else cells[:-1]

    def _progress(self) -> dict[Conditions, Progress]:
        from nablab.lab import contents, reading

        found = {}
        for path, group in self._progress_paths.items():
            try:
                now = reading.read(path, contents.Progress)
            except reading.Damaged:
                # no number of it decides anything: the row shows the state instead
                continue
            if now and abs(time.time() - now.time) < STALE_SECONDS:
                found[group] = now
        return found


class Quiet(PlainLines):
    """An observer that prints nothing unless something is damaged or the user asks to
    stop.
    """

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Print what is damaged, else nothing."""
        print_damage(self.console, folder.damage())

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Print what was damaged, else nothing."""
        print_damage(self.console, outcome.damage)

    def helped(self, workers: int) -> None:
        """Print nothing."""


def headline(plan: Plan, pending: int) -> str:
    """One line: what is run."""
    conditions = len(plan.conditions)
    trials = conditions * plan.seeds
    done = f", {trials - pending} of them done before" if pending < trials else ""
    name = f"[bold]{escape(plan.experiment.name)}[/bold]"
    size = f"{conditions} conditions x {plan.seeds} seeds = {trials} trials"
    return f"{name} ({escape(plan.preset)}): {size}{done}"


def helping(workers: int) -> str:
    """One line: that further processes work."""
    processes = (
        "a worker process helps" if workers == 1 else f"{workers} worker processes help"
    )
    return (
        f"{workers + 1} conditions at a time from now on: {processes} (--jobs 1 "
        "works without)."
    )


def ending(conditions: Sequence[Condition], outcome: Outcome) -> str:
    """One line: how conditions ended."""
    if outcome.state == "done":
        return (
            f"{text_of(conditions)}: {len(outcome.trained)} trials in "
            f"{duration(outcome.seconds)}"
        )
    return (
        f"{text_of(conditions)}: "
        f"{outcome.state}{'. ' + outcome.message if outcome.message else ''}"
    )


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """The answer, then one or two lines per claim; its effect only where there is room.

    Tests, p-values and reasons are left to the report.
    """
    from nablab.verdicts.answering import answer, bare_claim, shared_scope

    if not verdicts:
        return
    console.print(Text(answer(verdicts), style="bold"))
    shared = shared_scope(verdicts)
    console.print(Text(f"\n{_legend(verdicts, shared)}", style="dim"))
    wide = console.width >= ROOM_FOR_EFFECTS
    table = Table.grid(padding=(0, 1, 0, 0))
    for verdict in verdicts:
        mark, style = MARKS[verdict.outcome]
        said = Text(f"{bare_claim(verdict, shared)}.")
        said.append(
            _below(verdict, console.width) if wide else _after(verdict), style="dim"
        )
        table.add_row(Text(mark, style=style), said)
    console.print(table)


def _below(verdict: Verdict, width: int) -> str:
    """The second line: the effect, and what it would take to decide if that fits as
    well.
    """
    parts = [
        f"{sentence(part)}." for part in (verdict.effect_text, verdict.advice) if part
    ]
    line = " ".join(parts)
    return f"\n{line if len(line) <= width - 2 else parts[0]}" if parts else ""


def _after(verdict: Verdict) -> str:
    """What it would take to decide, behind the claim."""
    return f" {sentence(verdict.advice)}." if verdict.advice else ""


def _legend(verdicts: Sequence[Verdict], shared: Mapping[str, Level]) -> str:
    """What the signs mean, how often each occurs, and what all claims share."""
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = [
        f"{MARKS[kind][0]} {outcomes.count(kind)} {kind}"
        for kind in MARKS
        if kind in outcomes
    ]
    scope = [f"{words(factor)} {level}" for factor, level in shared.items()]
    return "; ".join(
        [", ".join(counts), *([f"all for {', '.join(scope)}"] if scope else [])]
    )


def print_damage(console: Console, texts: Iterable[str]) -> None:
    """What of the store is damaged, a paragraph each."""
    for text in texts:
        console.print(
            f"Damaged: {text}",
            markup=False,
            highlight=False,
            style="red",
            soft_wrap=True,
        )


def now_text(seconds: float) -> str:
    """A date and time for people, local time."""
    try:
        return (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
            if seconds
            else "never"
        )
    except (OverflowError, ValueError, OSError):  # a disk may say any time
        return "?"
