"""The benchmark of a busy machine keeps cores busy for as long as it measures, and no
longer.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from benchmarks import busy
from nablab.training import Unsupported


def test_neighbors_are_there_inside_and_gone_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        return started[-1]

    monkeypatch.setattr(busy.subprocess, "Popen", noted)
    with busy.neighbors(2):
        assert [process.poll() for process in started] == [None, None]
    assert [process.returncode for process in started] == [-9, -9]


def test_ratios_compare_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise Unsupported("no such hardware")

    counted: list[int] = []
    monkeypatch.setattr(
        busy, "_sides", lambda: {"one": lambda: counted.append, "other": absent}
    )
    monkeypatch.setattr(
        busy, "_seconds", lambda work, steps: (work(steps), 0.01 * steps)[1]
    )
    found = busy.measure(repeats=2, turn_seconds=0.1, say=lambda text: None)
    assert [row[0] for row in found.tables[0].rows] == ["one"]
    assert found.tables[0].rows[0][-1].startswith("1x")
    assert len(set(counted[-4:])) == 1
    assert found.goals[0].aim == "2.2x"
    assert any("no such hardware" in note for note in found.tables[0].notes)
