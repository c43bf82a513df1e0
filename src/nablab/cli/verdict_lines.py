"""The verdicts of a run in the terminal: the answer, and a line or two per claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from nablab.contract import Level
    from nablab.verdicts import Verdict

MARKS = {
    "supported": ("+", "bold green"),
    "refuted": ("-", "bold red"),
    "inconclusive": ("?", "bold yellow"),
}
# columns from which most claims, and most effects, take one line each
ROOM_FOR_EFFECTS = 96


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print the answer, then one or two lines per claim.

    The effect of a claim is printed only where there is room. Tests, p-values and
    reasons are left to the report.
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
    """Write the second line: the effect, and what it would take to decide.

    The latter is left out where both do not fit.
    """
    parts = [
        f"{sentence(part)}." for part in (verdict.effect_text, verdict.advice) if part
    ]
    line = " ".join(parts)
    return f"\n{line if len(line) <= width - 2 else parts[0]}" if parts else ""


def _after(verdict: Verdict) -> str:
    """Write what it would take to decide, behind the claim."""
    return f" {sentence(verdict.advice)}." if verdict.advice else ""


def _legend(verdicts: Sequence[Verdict], shared: Mapping[str, Level]) -> str:
    """Say what the signs mean, how often each occurs, and what all claims share."""
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
