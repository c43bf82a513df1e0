"""The machine that was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib import metadata

from benchmarks.table import Table
from nablab.lab.environment import processor


def describe() -> Table:
    """Describe processor, cores, threads, versions, compiler, load and date."""
    import torch

    facts = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": str(usable_cores()),
        "threads of PyTorch": str(torch.get_num_threads()),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{
            name: _version(name)
            for name in ("nablab", "torch", "jax", "jaxlib", "numpy")
        },
        "C compiler": _compiler(),
        "load before the first measurement": f"{os.getloadavg()[0]:.2f}",
    }
    return Table("Machine", ("fact", "value"), list(facts.items()))


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    try:
        done = subprocess.run(
            [os.environ.get("CC", "cc"), "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none ({error})"
    return next(iter(done.stdout.splitlines()), "unknown")
