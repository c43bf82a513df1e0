"""Compiled kernels where nothing can be kept: they serve, and no file stays behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from nablab.training import Unsupported
from nablab.training.fused import compiler


@pytest.mark.parametrize("place", ["no folder", "a file"])
def test_a_cache_that_cannot_be_written_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    compiler._compiler()  # without one there is nothing to compile
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv(
        "NABLAB_CACHE",
        "/proc/nowhere" if place == "no folder" else str(tmp_path / "file"),
    )
    assert compiler.load("float") is not None
    assert list(scratch.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("NABLAB_CACHE", "/proc/elsewhere")
    monkeypatch.setattr(compiler, "_OPTIONS", ("--no-such-option",))
    with pytest.raises(Unsupported, match="failed"):
        compiler.load("float")
    assert list(tmp_path.iterdir()) == []
