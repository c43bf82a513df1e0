"""Two runs side by side.

What differs in their settings, what became of the claims, and every number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nablab.contract import Condition
from nablab.report import page, sections, tables
from nablab.text.naming import sentence
from nablab.verdicts.answering import bare_claim

if TYPE_CHECKING:
    from nablab.report.view import RunView
    from nablab.verdicts import Verdict

Section = tuple[str, list[str], list[list[str]]]


def compare(a: RunView, b: RunView) -> str:
    """Render the comparison as one HTML page that stands alone."""
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            title=_title(a, b),
            runs=[
                _Side(name, view)
                for name, view in zip(_names(a, b), (a, b), strict=True)
            ],
            sections=compare_rows(a, b),
        )
    )


class _Side:
    """What the page says of one run before the tables."""

    def __init__(self, name: str, view: RunView) -> None:
        self.name, self.command, self.damage = name, view.command, view.damage
        self.summary, self.banner = sections.summary(view), sections.banner(view)


def compare_rows(a: RunView, b: RunView) -> list[Section]:
    """Build tables of text for page and terminal: (title, header, rows).

    First the settings and the facts of the environment that differ, then the verdicts,
    then one table per metric. What one run lacks is a dash.
    """
    names = _names(a, b)
    found: list[Section] = [
        (
            "Settings that differ",
            ["setting", *names],
            _differing(_settings(a), _settings(b)),
        ),
        (
            "Environment that differs",
            ["fact", *names],
            _differing(sections.environment(a), sections.environment(b)),
        ),
        ("Verdicts", ["claim", *names, "change"], _verdicts(a.verdicts, b.verdicts)),
    ]
    return found + _metrics(a, b, names)


def _title(a: RunView, b: RunView) -> str:
    first, second = a.experiment.question(), b.experiment.question()
    return f"Two runs: {first}" if first == second else "Two runs compared"


def _names(a: RunView, b: RunView) -> tuple[str, str]:
    """Return the names of the runs in the headers: their ids."""
    return (
        (a.run_id, b.run_id)
        if a.run_id != b.run_id
        else (f"{a.run_id} (first)", f"{b.run_id} (second)")
    )


def _settings(view: RunView) -> dict[str, str]:
    return {
        "experiment": view.experiment.name,
        "preset": view.preset,
        "seeds": str(view.seeds),
        "state": view.state,
        **sections.setting_texts(view.experiment),
    }


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[list[str]]:
    keys = dict.fromkeys([*first, *second])
    rows = [
        [key, first.get(key, tables.MISSING), second.get(key, tables.MISSING)]
        for key in keys
    ]
    return [row for row in rows if row[1] != row[2]]


def _verdicts(first: Sequence[Verdict], second: Sequence[Verdict]) -> list[list[str]]:
    sides = [
        {bare_claim(verdict, {}): verdict for verdict in side}
        for side in (first, second)
    ]
    rows = []
    for claim in dict.fromkeys([*sides[0], *sides[1]]):
        pair = [side.get(claim) for side in sides]
        outcomes = {verdict.outcome if verdict else "" for verdict in pair}
        remark = (
            "none"
            if len(outcomes) == 1
            else "only in one"
            if "" in outcomes
            else "differs"
        )
        rows.append([claim, *(_verdict(verdict) for verdict in pair), remark])
    return rows


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return tables.MISSING
    effect = f": {verdict.effect_text}" if verdict.effect_text else ""
    return f"{sections.MARKS[verdict.outcome]} {verdict.outcome}{effect}"


def _metrics(a: RunView, b: RunView, names: tuple[str, str]) -> list[Section]:
    geometric = tables.geometric_metrics(a.experiment) | tables.geometric_metrics(
        b.experiment
    )
    sides = [
        {
            row.condition: row
            for row in tables.condition_rows(
                v.records, v.experiment.conditions(), geometric
            )
        }
        for v in (a, b)
    ]
    conditions = list(dict.fromkeys([*sides[0], *sides[1]]))
    factors = tables.factors(conditions)
    found: list[Section] = []
    for metric in dict.fromkeys([*a.records.metrics, *b.records.metrics]):
        rows = [
            [
                *(str(condition.get(factor, "")) for factor in factors),
                *(_center(side.get(condition), metric) for side in sides),
                _difference(sides, condition, metric, geometric=metric in geometric),
            ]
            for condition in conditions
        ]
        last = "second / first" if metric in geometric else "second − first"
        measured = [
            row for side in sides for row in side.values() if metric in row.summaries
        ]
        name, kind = sections.heading(metric, measured)
        found.append((f"{sentence(name)}: {kind}", [*factors, *names, last], rows))
    return found


def _center(row: tables.ConditionRow | None, metric: str) -> str:
    """Center, interval and number of trials of one metric."""
    if row is None or metric not in row.summaries or not row.summaries[metric].n:
        return tables.MISSING
    center, remark = sections.cell(row.summaries[metric], row.trials)
    inside = "; ".join(
        part for part in (remark, f"n = {row.summaries[metric].n}") if part
    )
    return f"{center} ({inside})"


def _difference(
    sides: Sequence[Mapping[Condition, tables.ConditionRow]],
    condition: Condition,
    metric: str,
    *,
    geometric: bool,
) -> str:
    """Compare the second center with the first.

    The result is a ratio of geometric means, or a difference of means or medians.
    """
    pair = [
        side[condition].summaries.get(metric) for side in sides if condition in side
    ]
    if len(pair) < 2 or pair[0] is None or pair[1] is None:
        return tables.MISSING
    first, second = pair[0], pair[1]
    if first.kind != second.kind or not (
        math.isfinite(first.center) and math.isfinite(second.center)
    ):
        return tables.MISSING
    if geometric and min(first.center, second.center) > 0:
        return f"× {tables.number(second.center / first.center)}"
    return tables.number(second.center - first.center)
