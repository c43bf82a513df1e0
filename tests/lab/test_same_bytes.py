"""The bytes of a trial do not depend on the number of threads, of processes, or on what ran before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nablab import catalogue, configuration, runs
from nablab.experiment import Record
from nablab.lab.executors import InProcess, ProcessPool
from nablab.lab.runner import Plan, execute
from nablab.lab.store import Store

CLOCKS = ("seconds", "seconds_to_threshold")  # what is measured with a clock; all else is computed
QUICK = sorted(
    name
    for name, entry in catalogue.scan().items()
    if not entry.error and catalogue.find(name).__module__.startswith("nablab.experiments")
)


class Backwards(InProcess):
    """Does the work in the opposite order."""

    def results(self, function: Any, items: Any) -> Any:
        return super().results(function, items[::-1])


def content(plan: Plan, folder: Path, *, threads: int, executor: Any) -> dict[str, bytes]:
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
            f"{trial} {k}": float(v).hex().encode() for k, v in record.scalars.items() if k not in CLOCKS
        }
        found |= {f"{trial} {k}": v.encode() for k, v in record.notes.items()}
        found |= {f"{trial} {k}": c.steps.tobytes() + c.values.tobytes() for k, c in record.curves.items()}
        found |= {f"{trial} {k}": a.tobytes() for k, a in record.arrays.items()}
    return found


def plan_of(name: str, seeds: int, **changes: Any) -> Plan:
    return Plan(configuration.resolve(catalogue.find(name), "quick", changes), "quick", seeds)


def test_a_network_on_many_points_whatever_the_threads(tmp_path: Path) -> None:
    """Enough samples that PyTorch shares sums between its threads: without a fixed number they differ."""
    plan = plan_of("deep-vs-shallow", 2, targets=("sawtooth-3",), steps=40)
    one = content(plan, tmp_path / "one", threads=1, executor=InProcess())
    assert one
    assert content(plan, tmp_path / "two", threads=2, executor=Backwards()) == one
    assert content(plan, tmp_path / "pool", threads=1, executor=ProcessPool(2)) == one


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_quick_preset_whatever_helps(name: str, tmp_path: Path) -> None:
    plan = runs.make_plan(name, preset="quick", seeds=2)
    one = content(plan, tmp_path / "one", threads=1, executor=InProcess())
    assert one
    assert content(plan, tmp_path / "two", threads=2, executor=Backwards()) == one
    assert content(plan, tmp_path / "pool", threads=1, executor=ProcessPool(2)) == one
