"""A crashed run is never shown as running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nablab.lab import status
from nablab.lab.status import Heartbeat, read_state
from nablab.lab.store import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_running_then_done(folder: RunFolder) -> None:
    assert read_state(folder) == "incomplete"
    with Heartbeat(folder, seeds=5) as heartbeat:
        assert read_state(folder) == "running"
        heartbeat.finish("done", notes=["a"])
    assert read_state(folder) == "done"
    content = folder.read_json("status.json")
    assert content is not None
    assert content["seeds"] == 5
    assert content["notes"] == ["a"]


def test_an_error_leaves_failed(folder: RunFolder) -> None:
    with pytest.raises(RuntimeError), Heartbeat(folder):
        raise RuntimeError
    assert read_state(folder) == "failed"


def test_a_second_ctrl_c_leaves_interrupted(folder: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), Heartbeat(folder):
        raise KeyboardInterrupt
    assert read_state(folder) == "interrupted"


def test_a_killed_process_reads_as_crashed(folder: RunFolder) -> None:
    program = (
        "import os, sys; from pathlib import Path; from nablab.lab.status import "
        "Heartbeat\n"
        "from nablab.lab.store import RunFolder\n"
        "Heartbeat(RunFolder(Path(sys.argv[1]))).__enter__(); print('up', flush=True)\n"
        "import time; time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert read_state(folder) == "running"
        process.kill()
    # what the dead process left
    assert (folder.read_json("status.json") or {})["state"] == "running"
    assert read_state(folder) == "crashed"


def test_a_reused_process_number_does_not_pass_for_the_old_process(
    folder: RunFolder,
) -> None:
    with Heartbeat(folder):
        content = folder.read_json("status.json") or {}
    content |= {"state": "running", "pid": os.getpid(), "process_started": "1"}
    if status._process_started(os.getpid()) is None:
        pytest.skip("this system does not tell when a process started")
    folder.write_json("status.json", content)
    assert read_state(folder) == "crashed"


@pytest.mark.parametrize(
    "without", [{"pid"}, {"pid", "process_started"}, {"heartbeat", "pid"}]
)
def test_running_without_a_process_is_crashed(
    folder: RunFolder, without: set[str]
) -> None:
    with Heartbeat(folder):
        content = folder.read_json("status.json") or {}
    content = {name: value for name, value in content.items() if name not in without}
    folder.write_json("status.json", {**content, "state": "running", "heartbeat": 0.0})
    assert read_state(folder) == "crashed"


@pytest.mark.parametrize("pid", [0, -1, True, "1", 2**40, None])
def test_a_process_number_that_is_none_keeps_no_run_running(
    folder: RunFolder, pid: object
) -> None:
    with Heartbeat(folder):
        content = folder.read_json("status.json") or {}
    folder.write_json(
        "status.json", {**content, "state": "running", "pid": pid, "heartbeat": 0.0}
    )
    assert read_state(folder) in ("crashed", "incomplete")


def test_a_living_process_without_a_start_time_needs_a_fresh_heartbeat(
    folder: RunFolder,
) -> None:
    if status._process_started(os.getpid()) is None:
        pytest.skip("this system does not tell when a process started")
    with Heartbeat(folder):
        content = folder.read_json("status.json") or {}
    content |= {"state": "running", "process_started": None}
    folder.write_json("status.json", content)
    assert read_state(folder) == "running"
    folder.write_json("status.json", {**content, "heartbeat": time.time() - 3600})
    assert read_state(folder) == "crashed"


@pytest.mark.parametrize(
    "content", ["", "null", "[1]", '{"state": 3}', '{"state": "done", "pid": "x"}']
)
def test_a_damaged_status_is_named_and_counts_as_none(
    folder: RunFolder, content: str
) -> None:
    (folder.path / "status.json").write_text(content)
    assert read_state(folder) == "incomplete"
    assert ["status.json is damaged" in text for text in folder.damage()] == [True]


def test_durations_do_not_follow_the_clock(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Heartbeat(folder) as heartbeat:
        now = time.time()
        # somebody sets the clock back
        monkeypatch.setattr(status.time, "time", lambda: now - 3600)
        heartbeat.finish("done")
    found = folder.status()
    assert found is not None
    assert found.seconds is not None
    assert 0 <= found.seconds < 600


@pytest.mark.parametrize(
    ("age", "state"),
    [(1.0, "running"), (3600.0, "crashed"), (-1.0, "running"), (-3600.0, "crashed")],
)
def test_on_another_machine_the_heartbeat_decides(
    folder: RunFolder, age: float, state: str
) -> None:
    content = {
        "state": "running",
        "host": "elsewhere",
        "pid": 1,
        "heartbeat": time.time() - age,
    }
    folder.write_json("status.json", content)
    assert read_state(folder) == state


def test_the_heart_beats(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 0.02)
    with Heartbeat(folder) as heartbeat:
        first = (folder.read_json("status.json") or {})["heartbeat"]
        deadline = time.time() + 5
        while (folder.read_json("status.json") or {})["heartbeat"] == first:
            assert time.time() < deadline
            time.sleep(0.01)
        heartbeat.finish("done")
