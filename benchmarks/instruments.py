"""Instruments against the tools in common use.

All measure the same model on the same data, in turns.

A side that is measured on a part of the work (a few of a hundred networks) is scaled
up; the table says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.contest import OURS, Race, Side
from benchmarks.peers import Absent, tools
from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns


def measure(*, repeats: int, quick: bool, say: Callable[[str], None]) -> Findings:
    """Run every race and make the tables."""
    rows, goals, notes = measure_races(tools.races(quick=quick), repeats, say)
    title = "Instruments: how many times faster nablab is"
    columns = ("measure", "side", "seconds", "nablab is faster by")
    return Findings(
        [Table(title, columns, rows, notes), tools.product_costs(repeats)], goals
    )


def measure_races(
    races: Sequence[Race], repeats: int, say: Callable[[str], None]
) -> tuple[list[list[str]], list[Goal], list[str]]:
    """Run the races; return rows (race, side, seconds, ratio), goals and notes."""
    rows: list[list[str]] = []
    goals: list[Goal] = []
    notes: list[str] = []
    for race in races:
        say(race.label)
        seconds = _seconds(race, repeats, notes)
        ratios = {
            name: Spread.of(
                [other / own for other, own in zip(values, seconds[OURS], strict=True)]
            )
            for name, values in seconds.items()
        }
        for name, values in seconds.items():
            say(f"  {name}: {spread_text(Spread.of(values))} s")
            ratio = "" if name == OURS else spread_text(ratios[name], "x")
            rows.append([race.label, name, spread_text(Spread.of(values)), ratio])
            if name in race.goals:
                at_least, aim = race.goals[name]
                label = f"{race.label}, against {name}"
                goals.append(Goal(label, spread_text(ratios[name], "x"), at_least, aim))
        notes += race.notes
    return rows, goals, notes


def _seconds(race: Race, repeats: int, notes: list[str]) -> dict[str, list[float]]:
    sides = {}
    for name, build in race.sides.items():
        try:
            sides[name] = build()
        except Absent as reason:
            notes.append(f"No {name} in '{race.label}': {reason}")
    for name, side in sides.items():
        side.work()  # the first call loads and compiles; it is not counted
        if side.share < 1:
            notes.append(
                f"{race.label}: {name} did {significant(100 * side.share)} % of the "
                "work, scaled up."
            )
    return take_turns({name: _timer(side) for name, side in sides.items()}, repeats)


def _timer(side: Side) -> Callable[[], float]:
    def turn() -> float:
        began = time.perf_counter()
        side.work()
        return (time.perf_counter() - began) / side.share

    return turn
