"""Real disks and users that refuse: a small disk, one that cannot be written, a user
without rights.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(*, megabytes: int, files: int = 0) -> Iterator[Path]:
    """Mount a tmpfs of this size, with room for so many files if given.

    Skips the test where mounting is not allowed (no root, macOS).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"size={megabytes}m" + (f",nr_inodes={files}" if files else "")
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small tmpfs")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Make a mounted disk read-only for the while."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Work with the rights of a user who owns nothing; skips the test where we are not
    root.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
