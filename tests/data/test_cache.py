"""The user's folder, the cache and the disk below it, and several processes at once."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nablab import data
from nablab.data import known
from nablab.data.cache import cache_error
from nablab.data.known.idx import TRAIN_IMAGES, TRAIN_LABELS
from nablab.errors import DataError, UsageError
from tests.data.serving import Server
from tests.data.tiny import WHOLE, Said, names_in, tiny_files
from tests.lab.disks import small_disk

ROOT = Path(__file__).resolve().parents[2]


def test_an_altered_file_in_the_cache_is_named_and_fetched_again(
    tiny: known.KnownSet, server: Server, cache: Path
) -> None:
    data.load("tiny", progress=Said())
    path = cache / "tiny" / TRAIN_IMAGES
    for content, what in (
        (path.read_bytes()[:-3], "truncated"),
        (b"\1" * path.stat().st_size, "checksum"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{TRAIN_IMAGES} was changed: .*{what}"):
            data.load("tiny", offline=True)
        said = Said()
        server.log.clear()
        assert data.load("tiny", progress=said).images.sum() > 0
        assert f"{path} was changed" in said.text
        assert [name for name, _ in server.log] == [f"/set/{TRAIN_IMAGES}.gz"]


def put(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("inside", ["tiny", "Tiny/raw", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_the_users_folder_comes_first(
    tiny: known.KnownSet,
    server: Server,
    tmp_path: Path,
    cache: Path,
    inside: str,
    packed: bool,
) -> None:
    place = tmp_path / "mine" / inside
    put(place, tiny_files(), packed=packed)
    loaded = data.load("tiny", folder=tmp_path / "mine")
    assert loaded.source == str(place)
    assert len(loaded) == 30
    assert server.log == []
    assert not cache.exists()


def test_nablab_data_is_a_folder_of_sets(
    tiny: known.KnownSet,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(tmp_path / "all" / "tiny", tiny_files())
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path / "all"))
    assert data.load("tiny").source == str(tmp_path / "all" / "tiny")
    # Files directly in it may be those of another set with the same names: they are not
    # looked at.
    put(tmp_path / "flat", {TRAIN_IMAGES: b"fashion"})
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path / "flat"))
    assert data.load("tiny", progress=Said()).source == server.address("/set/")


def test_an_altered_file_of_the_users_is_refused(
    tiny: known.KnownSet,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(tmp_path / "tiny", tiny_files() | {TRAIN_LABELS: b"x" * 38})
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    with pytest.raises(
        DataError,
        match=rf"{TRAIN_LABELS} is not tiny's: its checksum is wrong .*Replace",
    ):
        data.load("tiny")
    assert server.log == []


def test_a_file_of_another_known_set_is_recognized(
    tiny: known.KnownSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses
    import hashlib

    content = b"y" * 38
    other = known.File(TRAIN_LABELS, 38, hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(
        known.KNOWN, "other", dataclasses.replace(tiny, name="other", files=(other,))
    )
    put(tmp_path / "tiny", tiny_files() | {TRAIN_LABELS: content})
    with pytest.raises(DataError, match="this is other's"):
        data.load("tiny", folder=tmp_path)


def test_a_folder_that_is_not_there_is_a_mistake(
    tiny: known.KnownSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="There is no folder"):
        data.load("tiny", folder=tmp_path / "typo")


def test_a_full_disk_leaves_nothing_half_written(
    server: Server, monkeypatch: pytest.MonkeyPatch, tiny: known.KnownSet
) -> None:
    # more than the disk has
    server.contents[f"/set/{TRAIN_IMAGES}.gz"] = os.urandom(3_000_000)
    with small_disk(megabytes=1) as disk:
        monkeypatch.setenv("NABLAB_CACHE", str(disk))
        with pytest.raises(
            DataError, match="No space left on the disk that holds the cache"
        ) as error:
            data.load("tiny", progress=Said())
        assert "NABLAB_CACHE" in str(error.value)
        assert names_in(disk) <= {"tiny.lock"}
    with small_disk(megabytes=1) as disk:  # the download fits, the file no longer does
        monkeypatch.setenv("NABLAB_CACHE", str(disk))
        monkeypatch.setattr(os, "fsync", _no_space)
        with pytest.raises(DataError, match="No space left"):
            data.load("tiny", progress=Said())
        assert names_in(disk) <= {"tiny.lock"}


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_cache_that_may_not_be_written_is_said_with_the_remedy(cache: Path) -> None:
    error = cache_error(PermissionError(13, "Permission denied"), cache / "tiny")
    assert str(error) == (
        f"The cache cannot be written: Permission denied ({cache / 'tiny'}): "
        "choose another folder with NABLAB_CACHE."
    )


def test_a_cache_that_is_a_file(
    tiny: known.KnownSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"The cache cannot be written: .*choose another folder"
    ):
        data.load("tiny", progress=Said())


FETCH = """
import sys
from nablab import data
from nablab.data import known
from tests.data.tiny import WHOLE, Said, names_in, tiny_arrays, tiny_files, tiny_set
known.KNOWN["tiny"] = tiny_set(sys.argv[1])
try:
    print(data.fetch("tiny"))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_fetch(server: Server) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FETCH, server.address("/set/")]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_of_two_processes_one_fetches_and_the_other_waits_and_says_so(
    server: Server, cache: Path
) -> None:
    server.pause = 0.15
    both = [start_fetch(server), start_fetch(server)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache / "tiny")}
    assert sorted(path for path, _ in server.log) == sorted(
        f"/set/{name}.gz" for name in tiny_files()
    )
    waited = [
        "Another process is fetching tiny; waiting for it." in err for _, err in outputs
    ]
    assert sorted(waited) == [False, True]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_fetch_that_is_stopped_goes_on_where_it_was(
    server: Server, cache: Path, how: int
) -> None:
    server.pause = 0.5
    process = start_fetch(server)
    deadline = time.monotonic() + 30
    parts: list[Path] = []
    while not (parts and parts[0].stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
        parts = list((cache / "tiny.unfinished").glob("*.part"))
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert not (cache / "tiny").exists()
    assert [path.suffix for path in (cache / "tiny.unfinished").iterdir()] == [".part"]
    server.pause = 0
    server.log.clear()
    again = start_fetch(server)
    out, err = again.communicate(timeout=60)
    assert (again.returncode, out.strip()) == (0, str(cache / "tiny")), err
    assert server.log[0][1].startswith("bytes=")
    assert names_in(cache) == WHOLE


def test_leftovers_of_a_killed_write_are_removed(
    tiny: known.KnownSet, cache: Path
) -> None:
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / f".{TRAIN_IMAGES}.abc.tmp").write_text("half")
    data.load("tiny", progress=Said())
    assert names_in(cache) == WHOLE


def test_where_it_came_from_is_kept_and_its_loss_is_no_harm(
    tiny: known.KnownSet, cache: Path
) -> None:
    data.load("tiny", progress=Said())
    origin = cache / "tiny" / "origin.json"
    assert set(json.loads(origin.read_text())) == set(tiny_files())
    origin.write_text("[")
    assert data.load("tiny", offline=True).source == "the cache"


def test_fetch_takes_names_only() -> None:
    with pytest.raises(UsageError, match="Did you mean 'mnist'"):
        data.fetch("mnits")


def test_fetching_offline_is_refused_unless_all_is_here(
    tiny: known.KnownSet, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NABLAB_OFFLINE", "1")
    with pytest.raises(DataError, match="offline no source is asked"):
        data.fetch("tiny")
    monkeypatch.setenv("NABLAB_OFFLINE", "0")
    data.fetch("tiny", progress=Said())
    monkeypatch.setenv("NABLAB_OFFLINE", "1")
    asked = len(server.log)
    assert data.fetch("tiny") == cache / "tiny"
    assert len(server.log) == asked
