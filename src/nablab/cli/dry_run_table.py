"""What a dry run is at and what it found, in the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nablab.cli.seed_warnings import print_warnings, undecided_claims, warnings
from nablab.contract import Condition, shared_levels, text_of
from nablab.settings.words import in_text

if TYPE_CHECKING:
    from nablab.lab.rehearsal import Estimate
    from nablab.lab.runner import Plan


@contextmanager
def measuring(
    console: Console, plan: Plan
) -> Iterator[Callable[[Sequence[Condition]], None]]:
    """Say, in a terminal, which condition a dry run is at.

    It takes one line, which goes away at the end.
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


def dry_run_facts(plan: Plan, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Collect what a dry run found, as plain JSON types.

    Memory is the peak of this process so far, in bytes.
    """
    from nablab.lab.memory import peak_bytes

    conditions = [
        {
            "condition": dict(shared_levels(group)),
            "conditions": [dict(condition) for condition in group],
            "seconds": e.seconds,
            "engine": e.engine,
            "steps": e.steps,
            "may_end_early": e.may_end_early,
            "run_in_full": e.run_in_full,
        }
        for group, e in zip(plan.groups, estimates, strict=True)
    ]
    return {
        "experiment": plan.experiment.name,
        "run": plan.identity.run_id,
        "preset": plan.preset,
        "configuration": plan.experiment.configuration(),
        "seeds": plan.seeds,
        "trials": len(plan.conditions) * plan.seeds,
        "device": plan.device,
        "replicas": plan.replicas,
        "conditions": conditions,
        "undecided": undecided_claims(plan.experiment, plan.seeds),
        "warnings": warnings(plan.experiment, plan.preset, plan.seeds),
        "seconds": sum(e.seconds for e in estimates),
        "may_end_early": any(e.may_end_early for e in estimates),
        "peak_memory_bytes": peak_bytes(),
    }


def print_dry_run(console: Console, facts: Mapping[str, Any]) -> None:
    """Print the configuration, the trials and the estimate."""
    from nablab.text.durations import duration

    console.print(
        Text(
            f"{facts['experiment']} ({facts['preset']}), run {facts['run']}",
            style="bold",
        )
    )
    settings = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in facts["configuration"].items():
        settings.add_row(Text(key, style="cyan"), Text(in_text(value)))
    settings.add_row(Text("device", style="cyan"), facts["device"])
    settings.add_row(Text("replicas", style="cyan"), facts["replicas"])
    console.print(settings)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("condition", "seeds", "steps", "engine"):
        table.add_column(title, overflow="fold")
    table.add_column("estimate", justify="right")
    for row in facts["conditions"]:
        name = text_of([Condition(**condition) for condition in row["conditions"]])
        most = "at most " if row["may_end_early"] else ""
        seeds = str(facts["seeds"])
        steps = f"{most}{row['steps']:,}" if row["steps"] else ""
        engine = "run in full" if row["run_in_full"] else row["engine"]
        table.add_row(
            Text(name), seeds, steps, engine, f"{most}{duration(row['seconds'])}"
        )
    console.print(table)
    memory = facts["peak_memory_bytes"] / 1e9
    about = "at most about" if facts["may_end_early"] else "about"
    more = (
        " Training may end before its last step, and then sooner."
        if facts["may_end_early"]
        else ""
    )
    if any(row["run_in_full"] for row in facts["conditions"]):
        more += (
            " What is marked 'run in full' calls none of lab.train, lab.steps, lab.each "
            "and lab.budget: if it has a loop of its own, none of that could be "
            "left out, so it was run to its end and thrown away."
        )
    console.print(
        "\n"
        f"{facts['trials']} trials, {about} {duration(facts['seconds'])} of training "
        f"and {memory:.1f} GB at the peak, measured on a few steps of every condition "
        f"in one process. Starting up and writing the report come on top.{more} "
        "Nothing was stored."
    )
    if facts["warnings"]:
        console.print()
        print_warnings(console, facts["warnings"])
