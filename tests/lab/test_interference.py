"""What others do to a run's files meanwhile: deleted folders, full disks, missing
rights.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import nablab
from nablab import runs
from nablab.contract import Condition
from nablab.errors import StoreError
from nablab.lab.runner import Silent
from nablab.lab.status import read_state
from nablab.lab.stop import StopToken, end_signals
from nablab.lab.store import RunFolder
from nablab.lab.work import Outcome
from tests.lab.disks import as_nobody, read_only, small_disk
from tests.lab.test_runner import trial_bytes


class Vandal(Silent):
    """Does something to the run's folder after its first condition."""

    def __init__(self, act: Callable[[Path], object]) -> None:
        self.act, self.folder = act, Path()

    def started(self, folder: RunFolder, plan: Any, pending: int) -> None:
        self.folder = folder.path

    def finished(self, conditions: Sequence[Condition], outcome: Outcome) -> None:
        if self.act:
            self.act(self.folder)
            self.act = lambda _: None


def run_toy(**options: Any) -> runs.Run:
    return nablab.run("toy", **{"preset": "quick", "steps": 20, **options})


def test_a_run_whose_folder_is_deleted_stops_and_the_next_one_starts_over() -> None:
    expected = trial_bytes(run_toy().folder.path)
    vandal = Vandal(shutil.rmtree)
    with pytest.raises(
        StoreError, match=r"deleted while the run went on.*same command again"
    ):
        run_toy(fresh=True, observer=vandal)
    assert not list(vandal.folder.glob("trials/*"))
    run = run_toy()
    assert run.state == "done"
    assert trial_bytes(run.folder.path) == expected


def test_trials_that_are_deleted_meanwhile_are_missed() -> None:
    def delete(folder: Path) -> None:
        shutil.rmtree(next(folder.glob("trials/*-s1")))

    broken = run_toy(observer=Vandal(delete))
    assert broken.state == "incomplete"
    assert len(broken.records) == 5
    assert "deleted" in broken.messages[0]
    assert run_toy().state == "done"


@pytest.mark.parametrize(
    "left", ["checkpoints", "failures", "progress", "trials", "provenance", "locks"]
)
def test_what_a_deleted_run_left_is_gone_on_from(left: str) -> None:
    run = run_toy(fail=4)
    checkpoints = run.folder.path / "checkpoints"
    (
        checkpoints / f"{RunFolder.condition_key(Condition(width=4))}-0.safetensors"
    ).write_bytes(b"half")
    for path in run.folder.path.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run_toy(fail=4)
    assert again.state == "failed"
    assert len(again.records) == 3
    assert len(again.messages) == 1


def test_a_disk_without_room_for_files_says_so_and_leaves_nothing_behind() -> None:
    for files in (8, 24):
        with small_disk(megabytes=8, files=files) as disk:
            with pytest.raises(StoreError, match="No space left"):
                run_toy(store=disk / "runs")
            assert not list(disk.glob("runs/toy/*/go-*"))


def test_a_request_to_stop_needs_no_space() -> None:
    with small_disk(megabytes=1) as disk:
        token = StopToken.create(disk)
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(2_000_000))
        assert not token.requested()
        token.request()
        assert token.requested()


def test_fresh_on_a_disk_that_cannot_be_written_is_refused_and_deletes_nothing() -> (
    None
):
    with small_disk(megabytes=8) as disk:
        run = run_toy(store=disk / "runs")
        before = trial_bytes(run.folder.path)
        with (
            read_only(disk),
            pytest.raises(StoreError, match=r"Read-only file system.*store=FOLDER"),
        ):
            run_toy(store=disk / "runs", fresh=True)
        assert trial_bytes(run.folder.path) == before
        assert read_state(run.folder) == "done"


def test_fresh_that_may_not_delete_is_refused() -> None:
    with small_disk(megabytes=8) as disk:
        run = run_toy(store=disk / "runs")
        disk.chmod(0o755)
        # its files may be deleted, the trials in it may not
        run.folder.path.chmod(0o777)
        with (
            as_nobody(),
            pytest.raises(
                StoreError, match=r"Permission denied.*trials.*Nothing was run"
            ),
        ):
            run_toy(store=disk / "runs", fresh=True)
        assert len(run.records) == 6
        assert run_toy(store=disk / "runs", fresh=True).state == "done"


def test_trials_that_may_not_be_read_are_an_answer_and_no_traceback() -> None:
    with small_disk(megabytes=8) as disk:
        run = run_toy(store=disk / "runs")
        disk.chmod(0o755)
        (run.folder.path / "trials").chmod(0o700)
        with (
            as_nobody(),
            pytest.raises(StoreError, match=r"Permission denied.*store=FOLDER"),
        ):
            run_toy(store=disk / "runs")


def test_what_a_kill_left_of_figures_and_report_is_swept_at_the_next_use() -> None:
    run = run_toy()
    names = [
        "figures/.loss.svg.abc.tmp",
        ".report.html.abc.tmp",
        ".scalars.csv.abc.tmp",
    ]
    left = [run.folder.path / name for name in names]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    run_toy()
    assert not [path for path in left if path.exists()]


def test_a_closed_terminal_is_heard_unless_it_was_to_be_ignored() -> None:
    assert signal.SIGHUP in end_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in end_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
