"""What a run looks like in a terminal: one table that is redrawn in place."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nablab.contract import Condition, levels_of, shared_levels
from nablab.display.base import Display
from nablab.display.choosing import in_terminal
from nablab.display.forecast import (
    Conditions,
    begun_before,
    pending_trials,
    seconds_left,
)
from nablab.display.sentences import STOPPING, headline, print_damage
from nablab.text.durations import duration

if TYPE_CHECKING:
    from pathlib import Path

    from nablab.lab.contents import Progress
    from nablab.lab.runner import Plan
    from nablab.lab.store import RunFolder
    from nablab.lab.work import Outcome

BAR_WIDTH = 15
WIDE = 72  # columns from which the rate has room
ROWS = 12  # conditions shown at once; the rest is counted
REFRESH_PER_SECOND = 4
STALE_SECONDS = 15.0  # progress this old was left by a process that was killed


class LiveTable(Display):
    """An observer with one table that is redrawn in place.

    Args:
        console: See `Display`.
        jobs: See `Display`.
        alone: See `Display`.
    """

    def __init__(
        self, console: Console, *, jobs: int = 1, alone: str = "--jobs 1"
    ) -> None:
        super().__init__(console, jobs=jobs, alone=alone)
        self._live: Live | None = None
        self._states: dict[Conditions, str] = {}
        self._progress_paths: dict[Path, Conditions] = {}
        self._seeds = 0
        self._stopping = False

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Print the headline and open the table."""
        print_damage(self.console, folder.damage())
        self.console.print(headline(plan, pending), highlight=False)
        self._seeds = plan.seeds
        self._progress_paths = {
            folder.progress_path(shared_levels(group)): group for group in plan.groups
        }
        trials = pending_trials(folder, plan, pending)
        for group, waiting in trials.items():
            self._states[group] = "waiting" if waiting else "done before"
        self.forecast.start(trials, resumed=begun_before(folder, plan))
        if pending:
            self._open()

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Note how conditions ended."""
        print_damage(self.console, outcome.damage)
        self.forecast.end(tuple(conditions), outcome)
        self._states[tuple(conditions)] = (
            f"{outcome.state} in {duration(outcome.seconds)}"
        )

    def stopping(self) -> None:
        """Say that the request to stop was heard."""
        self._stopping = True

    def close(self) -> None:
        """Leave the table and free the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> None:
        """Draw the table from here on."""
        self._live = Live(
            self,
            console=self.console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            # what goes to a file or a pipe must arrive there
            redirect_stdout=in_terminal(sys.stdout),
            redirect_stderr=in_terminal(sys.stderr),
        )
        self._live.start()

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
        # Always the same number of lines: rich would leave some behind where two
        # threads draw at the same time and the table has grown between them.
        foot = Text(self._foot(progress), "dim", no_wrap=True, overflow="ellipsis")
        return Group(table, foot)

    def _foot(self, progress: dict[Conditions, Progress]) -> str:
        """Say how far the whole run is, in one line where that fits."""
        if self._stopping:
            return STOPPING
        done = sum(state.startswith("done") for state in self._states.values())
        left = self.forecast.left(progress)
        parts = [f"{done} of {len(self._states)} conditions done"]
        seeds, rest = [f"{self._seeds} seeds each"], [str(left)] if left else []
        foot = ", ".join([*parts, *seeds, *rest])
        # the headline gives the seeds, too
        return foot if len(foot) <= self.console.width else ", ".join([*parts, *rest])

    def _shown(self, progress: dict[Conditions, Progress]) -> Sequence[Conditions]:
        """Return the conditions in work, then those that wait, then the rest.

        Each of these is in the experiment's order.
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
        loss = "" if now.loss is None else f"{now.loss:.2e}"
        cells = name, bar, loss, duration(seconds_left(now)), f"{now.rate:,.0f}"
        return cells if self.console.width >= WIDE else cells[:-1]

    def _progress(self) -> dict[Conditions, Progress]:
        from nablab.lab import contents, reading

        found = {}
        for path, group in self._progress_paths.items():
            try:
                now = reading.read(path, contents.Progress)
            except reading.Damaged:
                # its numbers decide nothing: the row shows the state instead
                continue
            if now and abs(time.time() - now.time) < STALE_SECONDS:
                found[group] = now
        return found
