"""Shared by all tests: one thread for torch, a store of one's own, and the toy
experiments.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nablab.cli.main import main

# Before torch is imported: its threads would fight with the other test workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell script's background jobs ignore Ctrl-C, and so would the processes that tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
TOYS = Path(__file__).parent / "toys"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's store, data or experiments."""
    monkeypatch.setenv("NABLAB_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(TOYS))
    monkeypatch.setenv("COLUMNS", "100")
    # On a busy machine a short test may last, and a worker process of its own would
    # make it last longer.
    monkeypatch.setattr("nablab.lab.executors.PATIENCE_SECONDS", 3600.0)


Nablab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def nablab(tmp_path: Path) -> Nablab:
    """Run the command line in a process of its own, as a user would."""

    def call(
        *words: str, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nablab", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, **environment},
            check=False,
        )

    return call


@pytest.fixture
def nablab_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Nablab:
    """The same without a process of its own, which takes seconds to import PyTorch."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        written = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(
            words, ended.value.code, written.out, written.err
        )

    return call
