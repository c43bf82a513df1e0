"""What a run ran on: versions, processor, threads, git state."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import nablab

PACKAGES = ("torch", "numpy", "scipy", "pandas", "matplotlib")


def describe_environment(device: str) -> dict[str, Any]:
    """The facts that a reader needs to judge or repeat a run."""
    import torch

    facts: dict[str, Any] = {
        "nablab": nablab.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": device,
        "git": git_state(Path.cwd()),
    }
    if device == "cuda":
        facts["device"] = f"cuda ({torch.cuda.get_device_name()})"
    return facts


def processor() -> str:
    """The processor's name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> str:
    """The commit of the folder, with ``+changes`` when files differ; empty outside a repository."""
    commit = _output("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return ""
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} +changes" if changed else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
