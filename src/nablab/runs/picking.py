"""Which of several conditions is meant, by some of their levels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nablab.contract import Condition, Level
from nablab.errors import UsageError, unknown

MOST_SHOWN = 12


def pick_condition(
    conditions: Sequence[Condition], wanted: Mapping[str, Level] | str
) -> Condition:
    """Return the one condition that has these levels.

    >>> conditions = [Condition(model="deep", width=2), Condition(model="deep", width=4)]
    >>> pick_condition(conditions, "width=4"), pick_condition(conditions, {"width": 2})
    (Condition(model='deep', width=4), Condition(model='deep', width=2))

    Args:
        conditions: The conditions to choose from.
        wanted: Levels by factor, as many as it takes; or a text such as ``model=deep,
            width=4``.

    Raises:
        UsageError: An unknown factor or level, or several conditions that fit; the text
            lists the choices.
    """
    factors = list(
        dict.fromkeys(factor for condition in conditions for factor in condition)
    )
    levels = _parse(wanted, factors) if isinstance(wanted, str) else wanted
    for condition in conditions:
        # another one may have the same levels and further factors
        if condition == levels:
            return condition
    fitting = list(conditions)
    for factor, level in levels.items():
        if factor not in factors:
            raise unknown("factor", str(factor), factors)
        having = [condition for condition in fitting if factor in condition]
        fitting = [condition for condition in having if _is(condition[factor], level)]
        if not fitting:
            raise unknown(
                f"level of '{factor}'",
                str(level),
                dict.fromkeys(str(c[factor]) for c in having),
            )
    if len(fitting) > 1:
        shown = "; ".join(map(str, fitting[:MOST_SHOWN]))
        more = (
            (f"; and {len(fitting) - MOST_SHOWN} more")
            if len(fitting) > MOST_SHOWN
            else ""
        )
        raise UsageError(
            f"Which condition? {len(fitting)} fit: {shown}{more}. Give "
            "more of the levels."
        )
    return fitting[0]


def _parse(text: str, factors: Sequence[str]) -> dict[str, Level]:
    """Read levels from a text such as ``model=deep, width=4``.

    A level may hold commas and equal signs. A factor's name with an equal sign begins
    the next one.
    """
    if not text.strip():
        return {}
    names = ("|").join(
        re.escape(factor) for factor in sorted(factors, key=len, reverse=True)
    )
    found: dict[str, Level] = {}
    for part in re.split(rf",\s*(?=(?:{names})\s*=)", text):
        factor, equals, level = part.partition("=")
        if not equals:
            raise UsageError(
                f"'{part.strip()}' is not a level. Write factor=level; factors: "
                f"{', '.join(factors)}."
            )
        found[factor.strip()] = level.strip()
    return found


def _is(level: Level, wanted: Level) -> bool:
    """Tell whether a level is the wanted one, which may be a text of it."""
    if not isinstance(wanted, str) or isinstance(level, str):
        return level == wanted
    if isinstance(level, bool):
        return str(level).lower() == wanted.lower()
    try:
        return float(level) == float(wanted.replace("_", ""))
    except ValueError:
        return False
