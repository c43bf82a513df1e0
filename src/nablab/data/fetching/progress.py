"""What a fetch says while it works, and two ways to show it.

A bar in a terminal, lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Step:
    """Something that a fetch does.

    Attributes:
        text: What happens, human-readable.
        done: Bytes so far, of a download; None for a message.
        total: Bytes in all, if known.
    """

    text: str
    done: int | None = None
    total: int | None = None


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Show nothing."""


class Lines:
    """Every message as a line on standard error.

    A download says every few seconds how far it is.
    """

    def __init__(self) -> None:
        self._text = ""
        self._said = 0.0

    def __call__(self, step: Step) -> None:
        """Print the step if it is new or the last line is old."""
        now = time.monotonic()
        new = step.text != self._text
        if step.done is None or new or now - self._said > SECONDS_BETWEEN_LINES:
            amount = f": {amounts(step)}" if step.done else ""
            print(f"{step.text}{amount}", file=sys.stderr, flush=True)
            self._text, self._said = step.text, now


@contextmanager
def shown() -> Iterator[Progress]:
    """Show a bar if standard error is a terminal of our own, lines otherwise.

    While a live table is drawn, rich puts a proxy in the place of standard error, so
    that lines appear above the table; a bar would fight with it.
    """
    from rich.file_proxy import FileProxy

    if isinstance(sys.stderr, FileProxy) or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True, highlight=False)
    columns = (
        BarColumn(20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.description}"),
    )
    with RichProgress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(step: Step) -> None:
            if step.done is None:
                bar.print(step.text, markup=False, soft_wrap=True)
                return
            if step.text not in tasks:
                for old in tasks.values():
                    bar.update(old, visible=False)  # type: ignore[arg-type]
                tasks[step.text] = bar.add_task(step.text, total=step.total)
            bar.update(tasks[step.text], completed=step.done, total=step.total)  # type: ignore[arg-type]

        yield show


def amounts(step: Step) -> str:
    """Write how far a download is.

    >>> amounts(Step("digits", 250_000, 1_000_000)), amounts(Step("digits", 2_000_000))
    ('0.2 of 1.0 MB', '2.0 MB')
    """
    done = (step.done or 0) / 1e6
    return (
        f"{done:.1f} of {step.total / 1e6:.1f} MB" if step.total else f"{done:.1f} MB"
    )


def file_size(count: float) -> str:
    """Write a number of bytes for human readers.

    >>> file_size(54_950_048), file_size(60_008), file_size(184_380_000)
    ('55.0 MB', '60 kB', '184 MB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"
