"""Writes are whole or absent; bytes depend on content alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from nablab.errors import StoreError, UsageError
from nablab.files import atomic
from nablab.lab import files
from tests.lab.disks import small_disk


def test_a_write_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 2\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic.write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_nan_and_infinity_survive_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "f.json", {"a": [float("nan"), float("-inf")]})
    assert (
        tmp_path / "f.json"
    ).read_text() == '{\n "a": [\n  "nan",\n  "-inf"\n ]\n}\n'


def test_npz_bytes_do_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"b": np.arange(5), "a": np.eye(3, dtype=np.float32)}
    first = files.npz_bytes(arrays)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert files.npz_bytes(dict(reversed(arrays.items()))) == first


def test_npz_is_read_by_numpy(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(
        files.npz_bytes({"a": np.arange(4.0), "b": np.array(["x", "yz"])})
    )
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["a"], np.arange(4.0))
        assert archive["b"].tolist() == ["x", "yz"]


def test_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        files.npz_bytes({"a": np.array([object()])})


def test_kill_9_in_the_middle_of_a_write_leaves_the_old_or_the_new(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file.bin"
    program = (
        "import sys, itertools; from pathlib import Path; from nablab.files.atomic "
        "import write_bytes\n"
        "for i in itertools.count():\n"
        "    write_bytes(Path(sys.argv[1]), bytes([i % 251]) * 3_000_000)\n"
    )
    for delay in (0.0, 0.005, 0.011, 0.023, 0.041):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1


def test_a_full_disk_is_said_and_leaves_the_old_file() -> None:
    with small_disk(megabytes=1) as disk:
        path = disk / "file.bin"
        atomic.write_bytes(path, b"old")
        with pytest.raises(StoreError, match="No space left") as caught:
            atomic.write_bytes(path, os.urandom(3_000_000))
        assert "give the same command again" in str(caught.value)
        assert path.read_bytes() == b"old"
        assert [p.name for p in disk.iterdir()] == ["file.bin"]


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(StoreError, match=r"is a file.*--store"):
        atomic.write_bytes(tmp_path / "runs" / "x" / "config.json", b"")


def test_a_folder_in_the_way_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(
        StoreError, match=r"report.html is a folder, not a file. Remove it"
    ):
        atomic.write_bytes(tmp_path / "report.html", b"")


# --- files that the user named ------------------------------------------------


def test_an_output_goes_through_a_link_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    (tmp_path / "new.html").symlink_to("later.html")
    for name in ("link.html", "new.html"):
        atomic.write_output(tmp_path / name, b"page")
        assert (tmp_path / name).is_symlink()
    assert (
        (tmp_path / "real.html").read_bytes()
        == (tmp_path / "later.html").read_bytes()
        == b"page"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "later.html",
        "link.html",
        "new.html",
        "real.html",
    ]


def test_an_output_is_sent_into_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    content, found = bytes(range(256)) * 1_000, []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    atomic.check_output(path)
    atomic.write_output(path, content)
    reader.join(timeout=10)
    assert found == [content]
    assert path.is_fifo()


def test_an_output_into_a_device_leaves_the_device() -> None:
    before = Path("/dev/null").stat()
    atomic.write_output(Path("/dev/null"), b"page")
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/null").stat().st_ino == before.st_ino


def test_an_output_is_a_new_or_replaced_file_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "page.html"
    for content in (b"first", b"second"):
        atomic.check_output(path)
        atomic.write_output(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder. Name a file in it"):
        atomic.check_output(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(
        UsageError, match=r"loop cannot be written: Too many levels.*Name another file"
    ):
        atomic.write_output(tmp_path / "loop", b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written: Not a directory"):
        atomic.write_output(tmp_path / "file" / "page.html", b"")
    with (
        (tmp_path / "held").open("w") as held,
        pytest.raises(UsageError, match=r"is the file .*held here"),
    ):
        atomic.check_output(Path(f"/proc/self/fd/{held.fileno()}"))


def test_no_permission_is_said(tmp_path: Path) -> None:
    error = atomic.store_error(
        PermissionError(errno.EACCES, "Permission denied"), tmp_path / "x"
    )
    assert "Permission denied" in str(error)
    assert "NABLAB_STORE" in str(error)
