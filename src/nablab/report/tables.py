"""Numbers as rows of text: conditions, trials, verdicts.

Shared by the page, the exports and `compare`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Condition, Experiment, Level, Record, Records
from nablab.statistics.summary import Summary, summarize
from nablab.text.naming import words

if TYPE_CHECKING:
    from nablab.verdicts import Verdict

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"


def number(value: Any, digits: int = 3) -> str:
    """Write a number as a reader wants it.

    Three digits, commas, powers of ten, a real minus sign.

    >>> number(0.012345), number(20000), number(1.5e-7), number(float("inf")), number(-2.0)
    ('0.0123', '20,000', '1.5 × 10⁻⁷', '∞', '−2')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return (
            f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        ).replace("-", "−")
    text = f"{value:,.0f}" if size >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return text.replace("-", "−")


def with_minus(text: str) -> str:
    """Put real minus signs into the numbers of a text; names such as 1-190-1 stay.

    >>> with_minus("tau -0.5 of 1-190-1 (-0.7 to -0.1)")
    'tau −0.5 of 1-190-1 (−0.7 to −0.1)'
    """
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def interval(low: float, high: float) -> str:
    """Write an interval; empty where there is none.

    >>> interval(0.1, 0.25)
    '0.1 to 0.25'
    """
    return (
        ""
        if math.isnan(low) or math.isnan(high)
        else f"{number(low)} to {number(high)}"
    )


def geometric_metrics(experiment: Experiment) -> set[str]:
    """Name the metrics that the claims compare on logarithms.

    Their means are geometric everywhere.
    """
    return {
        claim.metric for claim in experiment.active_claims() if claim.scale == "log10"
    }


def factors(conditions: Iterable[Condition]) -> list[str]:
    """List all factors, in the order in which they first occur."""
    return list(
        dict.fromkeys(factor for condition in conditions for factor in condition)
    )


@dataclass(frozen=True)
class ConditionRow:
    """One condition: its levels and one summary per metric."""

    condition: Condition
    trials: int
    summaries: Mapping[str, Summary]


def condition_rows(
    records: Records, conditions: Sequence[Condition], geometric: set[str]
) -> list[ConditionRow]:
    """Make one row per planned condition, in the planned order.

    Conditions without a trial yet have a row too.
    """
    everything: dict[Condition, list[Record]] = {
        condition: [] for condition in conditions
    }
    for record in records:
        everything.setdefault(record.condition, []).append(record)
    metrics = records.metrics
    rows = []
    for condition, trials in everything.items():
        own = Records(trials)
        found = {m: summarize(own.values(m), geometric=m in geometric) for m in metrics}
        rows.append(ConditionRow(condition, len(own), found))
    return rows


def trial_rows(records: Records) -> tuple[list[str], list[list[str]]]:
    """Write a header and one row per trial: levels, seed, metrics, notes; as text."""
    names, metrics = factors(records.conditions), records.metrics
    notes = list(dict.fromkeys(note for record in records for note in record.notes))
    header = [*names, "seed", *map(words, metrics), *map(words, notes)]
    rows = [
        [
            *(_level(record.condition, name) for name in names),
            str(record.seed),
            *(number(record.scalars.get(metric), 4) for metric in metrics),
            *(record.notes.get(note, "") for note in notes),
        ]
        for record in records
    ]
    return header, rows


def scalar_rows(records: Records) -> tuple[list[str], list[list[Any]]]:
    """Return a header and tidy rows: levels, seed, metric, value; floats untouched."""
    names = factors(records.conditions)
    rows: list[list[Any]] = [
        [
            *(record.condition.get(name, "") for name in names),
            record.seed,
            metric,
            value,
        ]
        for record in records
        for metric, value in record.scalars.items()
    ]
    return [*names, "seed", "metric", "value"], rows


VERDICT_COLUMNS = (
    "claim",
    "scope",
    "outcome",
    "effect",
    "low",
    "high",
    "unit",
    "effect_text",
    "p_value",
    "p_adjusted",
    "seeds",
    "seeds_needed",
    "smallest_effect",
    "published",
    "published_source",
    "measured_for_published",
    "distance",
    "reason",
)


def verdict_rows(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[Any]]]:
    """Return a header and one row per verdict; empty where there is nothing."""
    rows = []
    for verdict in verdicts:
        low, high = verdict.interval or ("", "")
        special = {
            "scope": scope(verdict.scope),
            "low": low,
            "high": high,
            "published": verdict.published.value if verdict.published else "",
            "published_source": verdict.published.source if verdict.published else "",
        }
        values = [
            special[c] if c in special else getattr(verdict, c) for c in VERDICT_COLUMNS
        ]
        rows.append(["" if value is None else value for value in values])
    return list(VERDICT_COLUMNS), rows


def scope(levels: Mapping[str, Level]) -> str:
    """Write factor levels as text.

    >>> scope({"target": "sinc"})
    'target = sinc'
    """
    return ", ".join(f"{factor} = {level}" for factor, level in levels.items())


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys and text.

    >>> flat({"a": {"b": 1}, "c": ["x", "y"]})
    {'a.b': '1', 'c': 'x, y'}
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (list, tuple, Mapping)) for item in value)
        return ("; " if nested else ", ").join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_text(v)}" for k, v in value.items())
    if value is None or value == "":
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _level(condition: Condition, name: str) -> str:
    return str(condition[name]) if name in condition else ""
