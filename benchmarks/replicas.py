"""Replicas trained side by side, against PyTorch loops and JAX.

All sides start from equal weights, and their losses must agree before any clock starts:
an unequal race is not a race. A ratio compares the seconds for 20,000 steps of all
replicas, compilation included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import COUNTED_STEPS, Case
from benchmarks.peers import Absent, Side
from benchmarks.peers.jax_scan import JaxScan
from benchmarks.peers.laboratory import EngineAlone, Fit, fresh_kernel
from benchmarks.peers.notebook import PlainLoop
from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import training

CHECKED_STEPS = 50

# Relative to the loss, over all steps and replicas. Measured: up to 5e-5 between the
# sides as they are (float32 sums in another order); 4e-4 or more on the three deeper
# networks for an epsilon ten times too large, 4e-3 for a learning rate 1 % too large,
# 0.05 for epsilon in the wrong place or no bias correction.
TOLERANCE = 3e-4

OURS = "nablab"


class UnequalRace(Exception):
    """Two sides do not compute the same thing."""


@dataclass(frozen=True)
class Race:
    """What one case gave.

    Attributes:
        case: The race.
        microseconds: Per replica-step, without compilation, by side.
        ratios: Seconds for `COUNTED_STEPS` steps with compilation, over ours of the
            same round, by side.
        compile_seconds: By side.
        distance: The largest relative difference of the losses before the clock
            started.
    """

    case: Case
    microseconds: dict[str, Spread]
    ratios: dict[str, Spread]
    compile_seconds: dict[str, float]
    distance: float


def measure(
    cases: Sequence[Case],
    *,
    repeats: int,
    turn_seconds: float,
    say: Callable[[str], None],
) -> Findings:
    """Run every case and make the tables."""
    absent: dict[str, str] = {}
    with fresh_kernel(min(repeats, 3)) as compile_times:
        kernel_seconds = Spread.of(compile_times or [0.0])
        races = []
        for case in cases:
            say(f"{case.label}, {case.replicas} replicas")
            sides = _sides(case, kernel_seconds.median, absent)
            races.append(_race(case, sides, repeats, turn_seconds))
    notes = [f"No {name}: {reason}" for name, reason in absent.items()]
    return Findings(
        [_ratios_table(races, notes), _times_table(races, kernel_seconds)],
        _goals(races),
    )


def _sides(case: Case, kernel_seconds: float, absent: dict[str, str]) -> list[Side]:
    """Make the sides that can take part; why others cannot goes into ``absent``."""
    makers: dict[str, Callable[[], Side]] = {
        OURS: lambda: Fit(case, kernel_seconds),
        "engine alone": lambda: EngineAlone(
            "engine alone", case, training.FusedEngine, kernel_seconds
        ),
        "PyTorch loop": lambda: PlainLoop(case, fused=False),
        "PyTorch loop, fused Adam": lambda: PlainLoop(case, fused=True),
        "JAX vmap+jit+scan": lambda: JaxScan(case, per_core=False),
        "JAX, device per core": lambda: JaxScan(case, per_core=True),
        "batched engine": lambda: EngineAlone(
            "batched engine", case, training.BatchedEngine, 0.0
        ),
    }
    sides = []
    for name, make in makers.items():
        try:
            sides.append(make())
        except Absent as reason:
            absent[name] = str(reason)
    return sides


def _race(case: Case, sides: Sequence[Side], repeats: int, turn_seconds: float) -> Race:
    distance = check_equal(sides)
    turns = {side.name: _turn(side, turn_seconds) for side in sides}
    seconds = take_turns(turns, repeats)  # per replica-step
    compiled = {side.name: side.compile_seconds for side in sides}
    ratios = ratios_of_totals(seconds, compiled, case.replicas)
    return Race(
        case,
        {
            name: Spread.of([1e6 * value for value in values])
            for name, values in seconds.items()
        },
        {name: Spread.of(values) for name, values in ratios.items()},
        compiled,
        distance,
    )


def ratios_of_totals(
    seconds: Mapping[str, Sequence[float]],
    compile_seconds: Mapping[str, float],
    replicas: int,
) -> dict[str, list[float]]:
    """Divide each side's seconds for `COUNTED_STEPS` steps by ours.

    The seconds are of the same round and include compilation. The ratios are given by
    side.

    Args:
        seconds: Per replica-step, one value for each round, by side.
        compile_seconds: By side.
        replicas: K.
    """
    totals = {
        name: [
            compile_seconds[name] + COUNTED_STEPS * replicas * value for value in values
        ]
        for name, values in seconds.items()
    }
    return {
        name: [other / own for other, own in zip(values, totals[OURS], strict=True)]
        for name, values in totals.items()
    }


def check_equal(sides: Sequence[Side]) -> float:
    """Train every side for a few steps and compare the losses with the first's.

    The losses of each step and replica are compared.

    Returns:
        The largest difference, relative to the loss.

    Raises:
        UnequalRace: They differ by more than `TOLERANCE`.
    """
    reference, largest = sides[0].train(CHECKED_STEPS), 0.0
    for side in sides[1:]:
        side.start()
        losses = side.train(CHECKED_STEPS)[:CHECKED_STEPS]
        expected = reference[:, : side.replicas]
        distance = float(np.max(np.abs(losses - expected) / expected))
        if not distance <= TOLERANCE:
            raise UnequalRace(
                f"'{side.name}' and '{sides[0].name}' start from equal weights, but "
                f"within {CHECKED_STEPS} steps their losses differ by {distance:.2g} "
                f"of the loss (allowed: {TOLERANCE:g})."
            )
        largest = max(largest, distance)
    return largest


def _turn(side: Side, turn_seconds: float) -> Callable[[], float]:
    """Make a measurement that takes about ``turn_seconds``.

    It gives the seconds per replica-step of a fresh training.
    """

    def train(steps: int) -> tuple[float, int]:
        side.start()
        began = time.perf_counter()
        taken = len(side.train(steps))
        return time.perf_counter() - began, taken

    seconds, taken = train(CHECKED_STEPS)
    while seconds < turn_seconds / 5 and taken < COUNTED_STEPS:
        seconds, taken = train(3 * taken)
    steps = min(COUNTED_STEPS, max(CHECKED_STEPS, int(taken * turn_seconds / seconds)))

    def turn() -> float:
        seconds, taken = train(steps)
        return seconds / taken / side.replicas

    return turn


def _ratios_table(races: Sequence[Race], absent: Sequence[str]) -> Table:
    others = [name for name in _names(races) if name not in (OURS, "engine alone")]
    rows = [
        [
            race.case.label,
            str(race.case.replicas),
            spread_text(race.microseconds[OURS]),
            *(_cell(race.ratios.get(name), "x") for name in others),
        ]
        for race in races
    ]
    notes = [
        "Ratio: seconds of the other side over seconds of nablab, for "
        f"{COUNTED_STEPS:,} steps of all replicas with compilation on both sides; "
        "above 1, nablab is faster. Full batch, Adam at 0.001.",
        "Importing the libraries is counted on neither side. JAX compiles for each "
        "network and number of replicas; nablab once per machine.",
        "Medians of repeats in turns A B C A B C, in brackets the smallest and "
        "largest.",
        "nablab is `training.fit` with everything a user pays: building the networks, "
        f"curves, evaluations every {COUNTED_STEPS // 100} steps, and compiling the "
        "kernel into an empty cache.",
        "A PyTorch loop was measured with one replica and counted once per replica: "
        "such loops share nothing. Two processes of one thread each, side by side, "
        "would at best halve its time.",
        "JAX's second column has one device per core (`pmap`); its first, one device "
        "for all replicas.",
        "The batched engine is what nablab uses where there is no C compiler, here "
        "without the loop around.",
        f"Before the clock starts, the losses of all sides over {CHECKED_STEPS} steps "
        f"from equal weights must agree to {TOLERANCE:g} of the loss; the most found "
        f"was {max(race.distance for race in races):.1g}.",
        *absent,
    ]
    columns = ("network", "replicas", "nablab, µs per replica-step", *others)
    return Table("Replicas: how many times faster nablab is", columns, rows, notes)


def _times_table(races: Sequence[Race], kernel_seconds: Spread) -> Table:
    names = _names(races)
    jax_names = [name for name in names if name.startswith("JAX")]
    rows = [
        [
            race.case.label,
            str(race.case.replicas),
            *(_cell(race.microseconds.get(name)) for name in names),
            *(significant(race.compile_seconds[name]) for name in jax_names),
        ]
        for race in races
    ]
    columns = (
        "network",
        "replicas",
        *names,
        *(f"compile: {name}, s" for name in jax_names),
    )
    notes = [
        f"nablab's kernel took {spread_text(kernel_seconds)} s to compile, once per "
        "machine."
        if kernel_seconds.median
        else "This machine cannot compile nablab's kernel; the batched engine trained."
    ]
    return Table(
        "Replicas: microseconds per replica-step, without compilation",
        columns,
        rows,
        notes,
    )


def _names(races: Sequence[Race]) -> list[str]:
    """List every side of any race, once, in order."""
    return list(dict.fromkeys(name for race in races for name in race.microseconds))


def _cell(spread: Spread | None, unit: str = "") -> str:
    return "absent" if spread is None else spread_text(spread, unit)


def _goals(races: Sequence[Race]) -> list[Goal]:
    wanted = [
        ("deep", 30, "PyTorch loop", "15x", "60x"),
        ("deep", 30, "JAX vmap+jit+scan", "1x", "3x"),
        ("deep", 30, "JAX, device per core", "1x", "3x"),
        ("wide", 8, "PyTorch loop", "2.2x", "5x"),
    ]
    found = {(race.case.name, race.case.replicas): race for race in races}
    goals = []
    for network, replicas, side, at_least, aim in wanted:
        race = found.get((network, replicas))
        if race and side in race.ratios:
            measure = f"{race.case.label}, {replicas} replicas, against {side}"
            goals.append(
                Goal(measure, spread_text(race.ratios[side], "x"), at_least, aim)
            )
    return goals
