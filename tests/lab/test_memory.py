"""What would be allocated is computed before it is."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from nablab.errors import UsageError
from nablab.lab import memory


def test_losses_that_cannot_be_held_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "limit_bytes", lambda: 8 * memory.COPIES * 5 * 1_000)
    memory.check_losses(5, 1_000)
    with pytest.raises(
        UsageError, match="The losses of 1,001 steps of 5 replicas would take"
    ):
        memory.check_losses(5, 1_001)


def test_the_limit_is_the_smallest_of_those_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP", group)
    whole = memory.limit_bytes()
    assert 2**28 < whole < 2**45
    group.write_text("max\n")
    assert memory.limit_bytes() == whole
    group.write_text("100000000\n")
    assert memory.limit_bytes() == 100_000_000
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: (50_000_000, resource.RLIM_INFINITY)
    )
    assert memory.limit_bytes() == 50_000_000
