"""Wall time and peak memory of whole runs of deep-vs-shallow.

Each run is in a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from benchmarks.child import Cost, cost
from benchmarks.startup import nablab_command
from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread

EXPERIMENT = "deep-vs-shallow"
GIGABYTE = 1e9
TIME_GOALS = {"quick": ("45 s", "45 s"), "standard": ("180 s", "45 s")}


def measure(
    presets: Sequence[str], *, repeats: int, say: Callable[[str], None]
) -> Findings:
    """Run each preset from nothing: an empty store and no compiled kernel."""
    rows, notes, goals = [], [], []
    for preset in presets:
        say(f"{EXPERIMENT}, preset {preset}")
        costs = [_run(preset) for _ in range(repeats)]
        failed = [done for done in costs if done.exit_code]
        if failed:
            notes.append(
                f"{preset} ended with {failed[0].exit_code}: {failed[0].complaint}"
            )
            continue
        seconds = Spread.of([done.seconds for done in costs])
        memory = Spread.of([done.peak_bytes / GIGABYTE for done in costs])
        rows.append(
            (
                preset,
                str(repeats),
                spread_text(seconds, " s"),
                spread_text(memory, " GB"),
            )
        )
        name = f"{EXPERIMENT}, preset {preset}"
        goals.append(
            Goal(
                f"{name}, wall time",
                f"{significant(seconds.median)} s",
                *TIME_GOALS[preset],
            )
        )
        goals.append(
            Goal(
                f"{name}, peak memory",
                f"{significant(memory.median)} GB",
                "1.5 GB",
                "0.8 GB",
            )
        )
    notes.append(
        "From an empty store and without a compiled kernel, with the report written. "
        "Peak memory is the largest resident set (1 GB = 10⁹ bytes)."
    )
    columns = ("preset", "runs", "wall time", "peak memory")
    return Findings([Table(f"Whole runs of {EXPERIMENT}", columns, rows, notes)], goals)


def _run(preset: str) -> Cost:
    with tempfile.TemporaryDirectory(prefix="nablab-bench-") as folder:
        return cost(
            [
                *nablab_command(),
                "run",
                EXPERIMENT,
                "--preset",
                preset,
                "--quiet",
                "--store",
                f"{folder}/runs",
            ],
            NABLAB_CACHE=f"{folder}/cache",
        )
