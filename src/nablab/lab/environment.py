"""What trials ran on: versions, processor, threads, git state."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from nablab.lab.git import git_state
from nablab.version import VERSION

PACKAGES = ("torch", "numpy", "scipy", "pandas", "matplotlib")


def describe_environment(device: str) -> dict[str, Any]:
    """Collect the facts that a reader needs to judge or repeat a trial.

    They are those of this process, as they are now.
    """
    import torch

    facts = {**_lasting(), "threads": torch.get_num_threads(), "device": device}
    if device == "cuda":
        facts["device"] = f"cuda ({torch.cuda.get_device_name()})"
    return facts | {"git": _git_state(str(Path.cwd()))}


@functools.cache
def _lasting() -> dict[str, Any]:
    """Collect what stays the same while the process lives."""
    return {
        "nablab": VERSION,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
    }


@functools.cache
def _git_state(folder: str) -> str:
    """Return the state at the first call: the process's code was loaded by then."""
    return git_state(Path(folder))


def processor() -> str:
    """Return the processor's name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return (
            _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
            or platform.processor()
        )
    return platform.processor() or platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
