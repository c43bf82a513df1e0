"""The parts of the page as plain values.

Sentences, rows and tables that a template only lays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nablab.contract import Experiment
from nablab.contract import configuration as settings
from nablab.report import forest, tables
from nablab.settings.words import in_text
from nablab.statistics.summary import Summary
from nablab.text.durations import duration
from nablab.text.naming import sentence, words
from nablab.verdicts.answering import bare_claim, shared_scope

if TYPE_CHECKING:
    from nablab.report.view import RunView
    from nablab.verdicts import Verdict

LOGARITHMIC = "log10 ratio"
MARKS = {"supported": "+", "refuted": "−", "inconclusive": "?"}
# More metrics than this beside each other are cramped in a column of text.
METRICS_PER_TABLE = 3
LEVELS_LISTED = 6
STATES = {
    "running": "This run is still going.",
    "interrupted": "This run was interrupted.",
    "crashed": "The process of this run ended without a word: it was killed or it "
    "crashed.",
    "failed": "A part of this run failed.",
    "incomplete": "This run is not complete.",
}


def summary(view: RunView) -> str:
    """Say in one sentence what was run, how much of it, how long it took and where."""
    conditions = view.experiment.conditions()
    facts = view.environment
    cores = facts.get("cores")
    where = [str(facts["processor"])] if facts.get("processor") else []
    where += (
        [_count(cores, "core") if isinstance(cores, int) else f"cores: {cores}"]
        if cores
        else []
    )
    where += [f"device {facts['device']}"] if facts.get("device") else []
    done = _count(len(view.records), "trial")
    done += (
        f" in {duration(float(facts['seconds']))} of work"
        if facts.get("seconds")
        else ""
    )
    done += f" on {', '.join(where)}" if where else ""
    planned = f"{_count(len(conditions), 'condition')} ({_factors(conditions)})"
    each = f"{_count(view.seeds, 'seed')} each"
    return (
        f"{view.experiment.name}, preset {view.preset}: {planned} with {each}; {done}."
    )


def _factors(conditions: Sequence[Mapping[str, Any]]) -> str:
    """Write the factors with their levels."""
    parts = []
    for name in dict.fromkeys(
        factor for condition in conditions for factor in condition
    ):
        levels = list(dict.fromkeys(str(c[name]) for c in conditions if name in c))
        more = (
            f" and {len(levels) - LEVELS_LISTED} more"
            if len(levels) > LEVELS_LISTED
            else ""
        )
        parts.append(f"{words(name)}: {', '.join(levels[:LEVELS_LISTED])}{more}")
    return "; ".join(parts) or "no factors"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def banner(view: RunView) -> tuple[str, str] | None:
    """Write what stands above all where the run is not complete.

    The state, and what it means for the reader.
    """
    planned = len(view.experiment.conditions()) * view.seeds
    done = len(view.records)
    if view.state == "done" and done >= planned:
        return None
    state = STATES.get(view.state, STATES["incomplete"])
    number = (
        f"{done:,} of {_count(planned, 'trial')} {'is' if done == 1 else 'are'} done."
    )
    if done >= planned:
        return state, number
    how = (
        "More will follow."
        if view.state == "running"
        else "The command at the end of the page runs the rest."
    )
    return state, f"{number} All that follows rests on these and may change. {how}"


@dataclass(frozen=True)
class Row:
    """One verdict, ready to be laid out.

    Attributes:
        outcome: ``supported``, ``refuted`` or ``inconclusive``.
        mark: Its sign, so that color is never alone.
        claim: The claim in words, without what all claims share.
        effect: The effect with its interval in words; empty if there is none.
        open_: What it would take to decide; empty where it is decided.
        drawing: Effect, interval and deciding line as SVG; empty where nothing was
            measured.
        details: What stands behind it: heading and text.
    """

    outcome: str
    mark: str
    claim: str
    effect: str
    open_: str
    drawing: Markup
    details: Sequence[tuple[str, str]]


def headline(view: RunView) -> str:
    """Say what was run in one line; the whole of it stands further down."""
    parts = [view.experiment.name, f"preset {view.preset}", _count(view.seeds, "seed")]
    return ", ".join([*parts, *_dates(view)])


def shared(verdicts: Sequence[Verdict]) -> str:
    """Write the scope that all claims share; empty if there is none."""
    scope = shared_scope(verdicts)
    return ", ".join(f"{words(factor)} {level}" for factor, level in scope.items())


def tally(verdicts: Sequence[Verdict]) -> str:
    """Count how many claims came out how; empty for fewer than two."""
    if len(verdicts) < 2:
        return ""
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = [
        f"{outcomes.count(kind)} {kind}"
        for kind in dict.fromkeys(sorted(outcomes, reverse=True))
    ]
    return ", ".join(counts)


def verdict_rows(view: RunView) -> list[Row]:
    """Write the verdicts in words and drawings, in the order of the claims."""
    scope = shared_scope(view.verdicts)
    return [
        Row(
            outcome=verdict.outcome,
            mark=MARKS[verdict.outcome],
            claim=bare_claim(verdict, scope),
            effect=tables.with_minus(sentence(verdict.effect_text)),
            open_=sentence(verdict.advice),
            drawing=Markup(forest.drawing(verdict, f"forest-{number}")),
            details=_details(verdict),
        )
        for number, verdict in enumerate(view.verdicts, 1)
    ]


def _details(verdict: Verdict) -> list[tuple[str, str]]:
    """List what a statistician asks, a line each."""
    found = [
        ("Why", tables.with_minus(verdict.reason)),
        ("Method", verdict.method),
        ("Numbers", facts(verdict)),
        ("Published", published(verdict)),
    ]
    return [(heading, text) for heading, text in found if text]


def _dates(view: RunView) -> list[str]:
    """Return the day of the run, or the first and the last of them.

    Empty where it is not known.
    """
    if not view.environment.get("started"):
        return []
    first, last = (_date(seconds) for seconds in view.environment["started"])
    return [first if first == last else f"{first} to {last}"]


def facts(verdict: Verdict) -> str:
    """Write the seeds, p-values and the smallest effect of interest."""
    parts = [_count(verdict.seeds, "seed")]
    if verdict.seeds_needed and f"{verdict.seeds_needed} seeds" not in verdict.reason:
        parts.append(f"about {verdict.seeds_needed:,} needed to decide")
    if verdict.p_value is not None:
        parts.append(f"p = {tables.number(verdict.p_value, 2)} before correction")
    if verdict.p_adjusted is not None:
        parts.append(f"{tables.number(verdict.p_adjusted, 2)} after it")
    if verdict.smallest_effect:
        parts.append(
            "smallest effect of interest: "
            f"{distance(verdict.smallest_effect, verdict.unit)}"
        )
    return "; ".join(parts) + "."


def amount(value: float, unit: str) -> str:
    """Write an effect of either sign in its unit; a difference of logs as a factor.

    >>> amount(-1.0, "log10 ratio"), amount(0.5, "Cliff's delta"), amount(2.0, "")
    ('10 times lower', "0.5 (Cliff's delta)", '2')
    """
    if unit == LOGARITHMIC:
        return (
            f"{tables.number(10 ** abs(value))} times "
            f"{'lower' if value < 0 else 'higher'}"
        )
    return f"{tables.number(value)} ({unit})" if unit else tables.number(value)


def distance(value: float, unit: str) -> str:
    """Write a size in its unit; a difference of logarithms as a factor.

    >>> distance(-1.0, "log10 ratio"), distance(0.3, "Cliff's delta")
    ('a factor of 10', "0.3 (Cliff's delta)")
    """
    return (
        f"a factor of {tables.number(10 ** abs(value))}"
        if unit == LOGARITHMIC
        else amount(value, unit)
    )


def published(verdict: Verdict) -> str:
    """Write the published value, the measured one and how far they lie apart.

    Empty without one.
    """
    if verdict.published is None:
        return ""
    reported, measured, apart = (
        verdict.published,
        verdict.measured_for_published,
        verdict.distance,
    )
    unit = verdict.unit if reported.of == "effect" else ""
    text = f"{amount(reported.value, unit)} ({reported.source})."
    if measured is None or apart is None:
        return f"{text} Not measured here, so there is nothing to compare it with."
    percent = ""
    if not unit and reported.value:
        percent = (
            f" ({tables.number(100 * abs(apart / reported.value))} % "
            f"{'lower' if apart < 0 else 'higher'})"
        )
    return (
        f"{text} Measured here: {amount(measured, unit)}. Distance: "
        f"{distance(apart, unit)}{percent}."
    )


@dataclass(frozen=True)
class MetricTable:
    """Conditions by some of the metrics.

    Attributes:
        factors: Names of the leading columns.
        headings: Per metric: its name, and what its cells are.
        rows: Per condition: its levels, its number of trials, and per metric center and
            remark.
        baselines: Per baseline: its name, and per metric its value or nothing.
    """

    factors: list[str]
    headings: list[tuple[str, str]]
    rows: list[tuple[list[str], int, list[tuple[str, str]]]] = field(
        default_factory=list
    )
    baselines: list[tuple[str, list[str]]] = field(default_factory=list)


def condition_tables(
    view: RunView, baselines: Mapping[str, Mapping[str, float]]
) -> list[MetricTable]:
    """Tabulate every metric of every condition, with the baselines of each metric.

    A table has at most three metrics.
    """
    conditions = view.experiment.conditions()
    rows = tables.condition_rows(
        view.records, conditions, tables.geometric_metrics(view.experiment)
    )
    metrics = view.records.metrics
    found = []
    for shown in shares(metrics, METRICS_PER_TABLE):
        table = MetricTable(
            tables.factors(row.condition for row in rows),
            [heading(metric, rows) for metric in shown],
        )
        for row in rows:
            levels = [str(row.condition.get(factor, "")) for factor in table.factors]
            cells = [cell(row.summaries[metric], row.trials) for metric in shown]
            table.rows.append((levels, row.trials, cells))
        for column, metric in enumerate(shown):
            for name, value in baselines.get(metric, {}).items():
                values = [
                    tables.number(value) if i == column else ""
                    for i in range(len(shown))
                ]
                table.baselines.append((name, values))
        found.append(table)
    return found


def shares(names: Sequence[str], most: int) -> list[Sequence[str]]:
    """Split names into the fewest parts of at most ``most``, of nearly one size.

    >>> shares("abcdefg", 3)
    ['abc', 'de', 'fg']
    """
    parts = -(-len(names) // most)
    size, larger = divmod(len(names), parts) if parts else (0, 0)
    ends = [i * size + min(i, larger) for i in range(parts + 1)]
    return [names[a:b] for a, b in pairwise(ends)]


def heading(metric: str, rows: Sequence[tables.ConditionRow]) -> tuple[str, str]:
    """Write a metric's name, and what its numbers are.

    Means, medians, or one value for all seeds.
    """
    found = [row.summaries[metric] for row in rows if row.summaries[metric].n]
    if found and all(s.same for s in found):
        return words(metric), "the same for all seeds"
    kinds = dict.fromkeys(s.kind for s in found)
    means = " or ".join(kind for kind in kinds if kind != "median")
    if any(s.low < s.high for s in found):
        means += ", 95 % interval"
    return words(metric), ", or ".join(
        part for part in (means, "median" * ("median" in kinds)) if part
    )


def cell(found: Summary, trials: int) -> tuple[str, str]:
    """Write the center of a metric, and what must be said with it.

    Interval, infinite or missing values.
    """
    if not found.n:
        return tables.MISSING, ""
    remarks = []
    if found.low < found.high:
        remarks.append(tables.interval(found.low, found.high))
    if found.infinite:
        remarks.append(f"median; {found.infinite} of {found.n} infinite")
    if found.n < trials:
        remarks.append(f"{found.n} of {trials} trials")
    return tables.number(found.center), "; ".join(remarks)


def configuration(experiment: Experiment) -> list[tuple[str, str, str]]:
    """List the fields of an experiment, nested ones after their parent.

    Each comes with its key, its value as on the command line, and its meaning.
    """
    meanings = {doc.name: doc.help for doc in settings.describe(type(experiment))}
    return [
        (key, value, meanings.get(key, ""))
        for key, value in setting_texts(experiment).items()
    ]


def setting_texts(experiment: Experiment) -> dict[str, str]:
    """Write the resolved fields as text, nested ones with dotted keys."""
    found: dict[str, str] = {}
    for key, value in experiment.configuration().items():
        if isinstance(value, Mapping) and value:
            found |= tables.flat(value, f"{key}.")
        else:
            found[key] = in_text(value)
    return found


def environment(view: RunView) -> dict[str, str]:
    """Write the facts of the machine and the versions.

    The time of work and its dates in words.
    """
    facts = {
        key: value
        for key, value in view.environment.items()
        if key not in ("seconds", "started")
    }
    found = {
        key: text for key, text in tables.flat(facts).items() if text != tables.MISSING
    }
    if view.environment.get("seconds"):
        found["time of work"] = (
            f"{duration(float(view.environment['seconds']))}, all trials together"
        )
    for dates in _dates(view):
        found["begun"] = dates
    return found


def _date(seconds: float) -> str:
    """Write a day in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
