"""Sends command lines to a server that runs each in a process of its own, with limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BYTES = 2_000_000_000
SECONDS = 20


@dataclass(frozen=True)
class Answer:
    """How a command line ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    bytes: int


class Server:
    """One process that has imported everything and forks for each command line."""

    def __init__(self, folder: Path, *, stubbed: bool) -> None:
        self.folder, self.stubbed = folder, stubbed
        environment = {
            **os.environ,
            "NABLAB_CACHE": str(folder / "cache"),
            "NABLAB_STORE": str(folder / "runs"),
            "NABLAB_EXPERIMENTS": str(Path(__file__).parents[1] / "toys"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "NABLAB_OFFLINE": "1",
        }
        environment.pop("NABLAB_TRACEBACK", None)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, words: Sequence[str]) -> Answer:
        """Run one command line in the folder."""
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "words": list(words),
            "folder": str(self.folder),
            "stubbed": self.stubbed,
            "bytes": BYTES,
            "seconds": SECONDS,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        self._process.communicate()


def check(words: Sequence[str], answer: Answer) -> None:
    """A command line ends with one of four codes, says why, and shows no traceback."""
    told = (
        f"nablab {' '.join(words)[:2_000]}\n"
        f"ended with {answer.code} after {answer.seconds:.1f} s of CPU\n"
    )
    told += answer.stdout[-2_000:] + answer.stderr[-4_000:]
    assert answer.code in (0, 1, 2, 130), told
    assert "Traceback" not in answer.stdout + answer.stderr, told
    assert "This should not happen" not in answer.stderr, told
    assert answer.bytes <= BYTES, told
    assert answer.code == 0 or answer.stderr.strip(), told
    if (
        "--json" in words
        and answer.code == 0
        and answer.stdout
        and "--help" not in words
    ):
        json.loads(answer.stdout)
