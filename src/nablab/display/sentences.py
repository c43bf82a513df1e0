"""What a run says in lines: what begins, how conditions ended, what is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from nablab.contract import Condition, text_of
from nablab.text.durations import duration

if TYPE_CHECKING:
    from nablab.lab.runner import Plan
    from nablab.lab.work import Outcome

# one line at 60 columns
STOPPING = "Stopping: finishing the step. Ctrl-C again ends at once."


def headline(plan: Plan, pending: int) -> str:
    """Say in one line what is run."""
    conditions = len(plan.conditions)
    trials = conditions * plan.seeds
    done = f", {trials - pending} of them done before" if pending < trials else ""
    name = f"[bold]{escape(plan.experiment.name)}[/bold]"
    size = f"{conditions} conditions x {plan.seeds} seeds = {trials} trials"
    return f"{name} ({escape(plan.preset)}): {size}{done}"


def helping(workers: int, alone: str = "--jobs 1") -> str:
    """Say in one line that processes help, and what the user gives to do without."""
    processes = (
        "a worker process helps" if workers == 1 else f"{workers} worker processes help"
    )
    return (
        f"{workers + 1} conditions at a time from now on: {processes} ({alone} works "
        "without)."
    )


def ending(conditions: Sequence[Condition], outcome: Outcome) -> str:
    """Say in one line how conditions ended."""
    if outcome.state == "done":
        return (
            f"{text_of(conditions)}: {len(outcome.trained)} trials in "
            f"{duration(outcome.seconds)}"
        )
    return (
        f"{text_of(conditions)}: "
        f"{outcome.state}{'. ' + outcome.message if outcome.message else ''}"
    )


def print_damage(console: Console, texts: Iterable[str]) -> None:
    """Print what of the store is damaged, a paragraph each."""
    for text in texts:
        console.print(
            f"Damaged: {text}",
            markup=False,
            highlight=False,
            style="red",
            soft_wrap=True,
        )
