"""Run one command and print, as JSON, its wall time and peak memory.

This is a process of its own, and a small one: on Linux the peak of a child counts from
that of the process that started it, so one started from a program that holds PyTorch
would seem to hold PyTorch too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: Wall time.
        peak_bytes: Largest resident set of the largest of its processes.
        exit_code: 0 for success.
        complaint: The last line that it wrote to standard error.
    """

    seconds: float
    peak_bytes: int
    exit_code: int
    complaint: str


def cost(command: Sequence[str], **environment: str) -> Cost:
    """Run ``command`` to its end and say what it took."""
    done = subprocess.run(
        [sys.executable, "-S", __file__, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout))


def _measure(command: Sequence[str]) -> Cost:
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    complaint = process.stderr.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    # Linux counts in KiB
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(
        seconds, peak, os.waitstatus_to_exitcode(status), complaint.rpartition("\n")[2]
    )


if __name__ == "__main__":
    print(json.dumps(vars(_measure(sys.argv[1:]))))
