"""Which claims a number of seeds cannot decide, said before the run.

The warnings are written for the terminal and as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nablab.cli.lines import without_quotes
from nablab.contract import configuration
from nablab.errors import in_short

if TYPE_CHECKING:
    from nablab.contract import Experiment
    from nablab.verdicts import Undecidable


def too_few(experiment: Experiment, seeds: int) -> list[Undecidable]:
    """Find the claims of a configured experiment that this many seeds cannot decide."""
    from nablab.verdicts.feasibility import undecidable

    return undecidable(experiment.active_claims(), experiment.conditions(), seeds)


def undecided_claims(experiment: Experiment, seeds: int) -> list[dict[str, Any]]:
    """List these claims as plain JSON types."""
    return [
        {"claim": one.claim, "seeds": one.seeds} for one in too_few(experiment, seeds)
    ]


def warnings(experiment: Experiment, preset: str, seeds: int) -> list[str]:
    """Write what to tell a user before the run, a line each.

    The lines say which claims will stay open and why; there are none where all can be
    decided.
    """
    found = too_few(experiment, seeds)
    if not found:
        return []
    reason = experiment.undecided.get(preset, "")
    why = f": {reason}" if reason else " on their own, whatever they give:"
    count = f"{seeds} seed{'' if seeds == 1 else 's'} cannot decide"
    return [
        f"{count} {len(found)} of the claims{why}",
        *(f"- {_line(one)}" for one in found),
    ]


def warnings_of_preset(experiment_class: type[Experiment], preset: str) -> list[str]:
    """Write the same for a preset, which is not checked and not run.

    An experiment of the user's own may raise anything where it lists its conditions;
    the line then says so.
    """
    seeds = configuration.seeds_of(experiment_class, preset)
    try:
        experiment = configuration.resolve(experiment_class, preset, {}, validate=False)
        return warnings(experiment, preset, seeds)
    except (Exception, SystemExit) as error:
        return [
            f"Whether {seeds} seeds can decide the claims is not known: "
            f"{in_short(error)}"
        ]


def print_warnings(console: Console, lines: Sequence[str], *, indent: int = 0) -> None:
    """Print which claims stay open, and nothing where all can be decided."""
    for line in lines:
        console.print(
            Padding(Text(without_quotes(line), style="yellow"), (0, 0, 0, indent))
        )


def _line(one: Undecidable) -> str:
    needed = (
        f"takes at least {one.seeds} seeds" if one.seeds else "takes more conditions"
    )
    return f"{one.claim.rstrip('.')} ({needed})"
