"""What the displays of a run have in common."""

from __future__ import annotations

from rich.console import Console

from nablab.display.forecast import Forecast
from nablab.display.sentences import helping


class Display:
    """An observer that prints and estimates how long a run will go on.

    Args:
        console: Where to print.
        jobs: Number of processes that work.
        alone: What the user gives to do without helpers.
    """

    def __init__(
        self, console: Console, *, jobs: int = 1, alone: str = "--jobs 1"
    ) -> None:
        self.console = console
        self.alone = alone
        self.forecast = Forecast(jobs)

    def helped(self, workers: int) -> None:
        """Say that further processes work."""
        self.forecast.help(workers)
        self.console.print(helping(workers, self.alone), highlight=False)
