"""No test of data sees the user's data, cache or network, and none takes from another
what it learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nablab.data import known
from nablab.data.fetching import download
from tests.data.serving import Server
from tests.data.tiny import tiny_files, tiny_set
from tests.data.written import Write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of fetched sets."""
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "cache"))
    for name in (
        "NABLAB_DATA",
        "NABLAB_OFFLINE",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_closed", {})
    return tmp_path / "cache" / "data"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine with the tiny set as gzip files below /set/."""
    with Server.running() as running:
        running.offer("/set/", tiny_files())
        yield running


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> known.KnownSet:
    """A set of 4 x 4 images that the server has, known by the name "tiny"."""
    made = tiny_set(server.address("/set/"))
    monkeypatch.setitem(known.KNOWN, made.name, made)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file below the test's folder and returns its path."""

    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return make
