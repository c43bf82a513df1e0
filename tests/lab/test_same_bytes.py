"""The bytes of a trial do not depend on the number of threads, of processes, or on what
ran before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nablab import catalogue, runs
from nablab.contract import Condition, Experiment, Lab, Record, Trials
from nablab.lab.executors import InProcess, ProcessPool
from nablab.lab.notebook import Notebook
from nablab.lab.runner import Plan, execute
from nablab.lab.store import Store

# what is measured with a clock; all else is computed
CLOCKS = ("seconds", "seconds_to_threshold")
QUICK = sorted(
    name
    for name, entry in catalogue.scan().items()
    if not entry.error
    and catalogue.find(name).__module__.startswith("nablab.experiments")
)


class Backwards(InProcess):
    """Does the work in the opposite order."""

    def results(self, function: Any, items: Any) -> Any:
        return super().results(function, items[::-1])


def content(
    plan: Plan, folder: Path, *, threads: int, executor: Any
) -> dict[str, bytes]:
    """The bytes of everything that was computed, by trial and name."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report = execute(plan, Store(folder), executor=executor)
    finally:
        torch.set_num_threads(before)
    assert report.state == "done", report.messages
    found: dict[str, bytes] = {}
    for record in report.folder.trials():
        assert isinstance(record, Record)
        trial = f"{record.condition} {record.seed}"
        found |= {
            f"{trial} {k}": float(v).hex().encode()
            for k, v in record.scalars.items()
            if k not in CLOCKS
        }
        found |= {f"{trial} {k}": v.encode() for k, v in record.notes.items()}
        found |= {
            f"{trial} {k}": c.steps.tobytes() + c.values.tobytes()
            for k, c in record.curves.items()
        }
        found |= {f"{trial} {k}": a.tobytes() for k, a in record.arrays.items()}
    return found


@dataclass(frozen=True)
class Adding(Experiment):
    """What does PyTorch make of a long sum?

    Its last digits follow the number of threads: the smallest case of what happens in a
    training.
    """

    parts: tuple[int, ...] = (1, 2)

    def conditions(self) -> list[Condition]:
        return [Condition(part=part) for part in self.parts]

    def run(self, trials: Trials, lab: Lab) -> None:
        for trial in trials:
            numbers = torch.rand(
                3, 1_000_003, generator=torch.Generator().manual_seed(trial.seed)
            )
            lab.record(trial, total=float(numbers[0].sum()), mean=float(numbers.mean()))
            lab.array(trial, "products", (numbers @ numbers.T).numpy())


def test_the_sum_follows_the_threads_where_nothing_fixes_them() -> None:
    """Or the test below could not fail."""
    found = set()
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        trials = Trials([Condition(part=1)], [0])
        notebook = Notebook(Adding(), trials)
        Adding().run(trials, notebook)
        found.add(
            (
                *notebook.records()[0].scalars.values(),
                notebook.records()[0].arrays["products"].tobytes(),
            )
        )
    torch.set_num_threads(before)
    assert len(found) == 2


@pytest.mark.parametrize("parts", [(1, 2), (1,)])
def test_a_sum_whatever_the_threads(parts: tuple[int, ...], tmp_path: Path) -> None:
    plan = Plan(Adding(parts), "quick", 2)
    one = content(plan, tmp_path / "one", threads=1, executor=InProcess())
    assert len(one) == 6 * len(parts)
    assert content(plan, tmp_path / "two", threads=2, executor=Backwards()) == one
    assert content(plan, tmp_path / "three", threads=3, executor=InProcess()) == one
    if len(parts) > 1:
        assert (
            content(plan, tmp_path / "pool", threads=1, executor=ProcessPool(2)) == one
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_quick_preset_whatever_helps(name: str, tmp_path: Path) -> None:
    plan = runs.make_plan(name, preset="quick", seeds=2)
    one = content(plan, tmp_path / "one", threads=1, executor=InProcess())
    assert one
    assert content(plan, tmp_path / "two", threads=2, executor=Backwards()) == one
    assert content(plan, tmp_path / "pool", threads=1, executor=ProcessPool(2)) == one
