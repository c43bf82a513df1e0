"""What others reported, as a table beside what was measured here.

A value of ours stands beside one of theirs only where it is the same quantity under the
same settings; a score on a small stand-in data set next to a published one would invite
a comparison that nobody made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nablab.report import tables
from nablab.statistics.summary import summarize

if TYPE_CHECKING:
    from nablab.contract import Experiment, Records, Reported

HEADER = ("who", "setting", "what", "reported", "seeds", "measured here")


@dataclass(frozen=True)
class ReportedTable:
    """Rows of text; columns that would be empty are left out.

    Attributes:
        header: The names of the columns.
        rows: One per reported value.
        beside: Whether a value measured here stands beside any of them.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    beside: bool


def reported_table(experiment: Experiment, records: Records) -> ReportedTable:
    """Tabulate what others reported beside what was measured here.

    A row says who reported what, in which setting and from how many seeds.

    Args:
        experiment: The configured experiment; its settings say what can be compared.
        records: The finished trials.
    """
    beside = [measured(one, experiment, records) for one in experiment.reported]
    return table_of(experiment.reported, beside)


def table_of(reported: Sequence[Reported], beside: Sequence[str]) -> ReportedTable:
    """Tabulate reported values.

    What stands beside each of them is in the last column.
    """
    rows = [_row(one, here) for one, here in zip(reported, beside, strict=True)]
    kept = [i for i, _ in enumerate(HEADER) if any(row[i] for row in rows)]
    # An empty cell says "nothing comparable", which a dash makes visible.
    shown = [tuple(row[i] or tables.MISSING for i in kept) for row in rows]
    return ReportedTable(tuple(HEADER[i] for i in kept), shown, any(beside))


def _row(one: Reported, here: str) -> tuple[str, ...]:
    who = f"{one.who} ({one.source})" if one.source else one.who
    seeds = "" if one.seeds is None else str(one.seeds)
    value = one.value if isinstance(one.value, str) else tables.number(one.value, 4)
    return who, one.setting, one.quantity, value, seeds, here


def measured(one: Reported, experiment: Experiment, records: Records) -> str:
    """Write the mean over the seeds of what was reported, and from how many.

    Empty if it is not comparable.
    """
    if not one.metric or not comparable(one, experiment):
        return ""
    values: Sequence[float] = records.where(**one.where).values(one.metric)
    found = summarize(
        values, geometric=one.metric in tables.geometric_metrics(experiment)
    )
    if not found.n:
        return ""
    kind = "median of " if found.kind == "median" else ""
    return (
        f"{tables.number(found.center, 4)} ({kind}{found.n} "
        f"seed{'' if found.n == 1 else 's'})"
    )


def comparable(one: Reported, experiment: Experiment) -> bool:
    """Tell whether this configuration repeats the setting of a reported value."""
    return all(getattr(experiment, name) == value for name, value in one.fields.items())
