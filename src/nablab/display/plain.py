"""What a run prints where nothing can be redrawn: a line when something ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from nablab.contract import Condition
from nablab.display.base import Display
from nablab.display.forecast import begun_before, pending_trials
from nablab.display.sentences import STOPPING, ending, headline, print_damage

if TYPE_CHECKING:
    from nablab.lab.runner import Plan
    from nablab.lab.store import RunFolder
    from nablab.lab.work import Outcome


class PlainLines(Display):
    """An observer that prints a line when something ends: for logs and pipes.

    Args:
        console: See `Display`.
        jobs: See `Display`.
        alone: See `Display`.
    """

    def __init__(
        self, console: Console, *, jobs: int = 1, alone: str = "--jobs 1"
    ) -> None:
        super().__init__(console, jobs=jobs, alone=alone)
        self._ended = 0

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Say what will be run."""
        print_damage(self.console, folder.damage())
        self.forecast.start(
            pending_trials(folder, plan, pending), resumed=begun_before(folder, plan)
        )
        self.console.print(headline(plan, pending), highlight=False)

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Say how conditions ended."""
        self._ended += 1
        print_damage(self.console, outcome.damage)
        self.forecast.end(tuple(conditions), outcome)
        # what a training in work says of itself is old by the time the next line comes
        left = self.forecast.left({}) if outcome.state == "done" else None
        more = f"; {left}" if left else ""
        self.console.print(
            f"[{self._ended}] {ending(conditions, outcome)}{more}",
            highlight=False,
            markup=False,
        )

    def stopping(self) -> None:
        """Say that the request to stop was heard."""
        self.console.print(STOPPING)

    def close(self) -> None:
        """Do nothing: nothing is left open."""


class Quiet(PlainLines):
    """An observer that prints nothing but damage and what answers a request to stop."""

    def started(self, folder: RunFolder, plan: Plan, pending: int) -> None:
        """Print what is damaged, else nothing."""
        print_damage(self.console, folder.damage())

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        """Print what was damaged, else nothing."""
        print_damage(self.console, outcome.damage)

    def helped(self, workers: int) -> None:
        """Print nothing."""
