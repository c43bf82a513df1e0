"""Fetching from servers that behave and from those that do not."""

from __future__ import annotations

import io
import socket
import tarfile
import time
from pathlib import Path

import pytest
import torch

from nablab import data
from nablab.data import known
from nablab.data.fetching import download
from nablab.data.fetching.progress import Step
from nablab.data.fetching.sources import Archive, Files, Tree
from nablab.data.known.idx import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS
from nablab.errors import DataError
from tests.data.serving import Server
from tests.data.tiny import WHOLE, Said, names_in, tiny_arrays, tiny_files, tiny_set

ROOT = Path(__file__).resolve().parents[2]


def test_a_set_is_fetched_once_and_then_read_from_the_cache(
    tiny: known.KnownSet, server: Server, cache: Path
) -> None:
    said = Said()
    train = data.load("tiny", progress=said)
    assert torch.equal(
        train.images[:, 0], torch.from_numpy(tiny_arrays()[TRAIN_IMAGES])
    )
    assert train.labels.tolist() == [n % 10 for n in range(30)]
    assert (train.labels.dtype, train.images.dtype) == (torch.int64, torch.uint8)
    assert train.source == server.address("/set/")
    assert {path for path, _ in server.log} == {
        f"/set/{name}.gz" for name in tiny_files()
    }
    assert names_in(cache) == WHOLE
    assert not (cache / "tiny.unfinished").exists()
    sizes = [step for step in said if step.done is not None]
    assert sizes
    assert all(step.total and 0 < (step.done or 0) <= step.total for step in sizes)
    assert "verified" in said[-1].text
    asked = len(server.log)
    test = data.load("tiny", split="test", offline=True)
    assert torch.equal(test.images[:, 0], torch.from_numpy(tiny_arrays()[TEST_IMAGES]))
    assert test.source == train.source
    assert len(server.log) == asked


def test_files_may_lie_at_an_address_as_they_are(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Files(server.address("/plain/"), packed=False)
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(source,)))
    files = tiny_files()
    server.contents |= {f"/plain/{name}": body for name, body in files.items()}
    assert data.load("tiny").labels.tolist() == [n % 10 for n in range(30)]
    assert {path for path, _ in server.log} == {f"/plain/{name}" for name in files}
    assert names_in(cache) == WHOLE


def test_images_may_be_written_to_without_touching_the_cache(
    tiny: known.KnownSet,
) -> None:
    first = data.load("tiny")
    first.images[:] = 0
    assert data.load("tiny").images.sum() > 0


def test_offline_asks_nobody(
    tiny: known.KnownSet, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as error:
        data.load("tiny", offline=True)
    monkeypatch.setenv("NABLAB_OFFLINE", "1")
    with pytest.raises(DataError, match="offline no source is asked"):
        data.load("tiny")
    assert server.log == []
    assert f"has no {TRAIN_IMAGES}" in str(error.value)
    assert "NABLAB_DATA=FOLDER" in str(error.value)
    assert "'digits'" in str(error.value)


def test_no_source_is_one_error_that_lists_all_of_them(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    made = tiny_set(
        closed, server.address("/absent/"), sources=(Tree("/nonexistent/tiny"),)
    )
    monkeypatch.setitem(known.KNOWN, "tiny", made)
    with pytest.raises(DataError) as error:
        data.load("tiny", progress=Said())
    lines = str(error.value).splitlines()
    assert lines[0] == "The data set tiny cannot be fetched. Tried:"
    assert lines[1] == f"  {closed}: connection refused"
    assert lines[2] == f"  {server.address('/absent/')}: HTTP 404 Not Found"
    assert lines[3] == "  /nonexistent/tiny: is not there"
    assert "NABLAB_DATA=FOLDER" in lines[4]
    assert "digits" in lines[4]
    assert names_in(cache) == {"tiny.lock"}


def test_a_name_that_does_not_resolve_closes_the_network_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def resolve(host: str, *args: object, **options: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setitem(
        known.KNOWN, "tiny", tiny_set("https://one.invalid/", "https://two.invalid/")
    )
    with pytest.raises(DataError) as error:
        data.load("tiny", progress=Said())
    assert asked == ["one.invalid"]
    assert "one.invalid/: the host's name cannot be resolved\n" in str(error.value)
    assert (
        "two.invalid/: the host's name cannot be resolved (found out before)"
    ) in str(error.value)


def test_a_firewall_that_drops_packets_costs_seconds_not_minutes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host with many addresses, none of which answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        # fill the queue: further connections hang
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        answer = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [answer] * 8)
        monkeypatch.setattr(download, "CONNECT_SECONDS", 0.4)
        start = time.monotonic()
        for url in (f"http://dropped.invalid:{port}/a", "http://other.invalid/b"):
            with pytest.raises(
                download.SourceError, match=r"no connection within 0\.4 s"
            ):
                download.download(url, tmp_path, Said())
        assert time.monotonic() - start < 2
        for one in waiting:
            one.close()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/gzip"])
def test_a_proxy_that_answers_with_a_page_is_recognized(
    tiny: known.KnownSet, server: Server, cache: Path, kind: str
) -> None:
    server.page = (
        "\n <!DOCTYPE html><html><head><title>Hotel\n Login</title></head></html>"
    )
    server.page_type = kind
    with pytest.raises(
        DataError, match="answered with an HTML page titled 'Hotel Login'"
    ):
        data.load("tiny", progress=Said())
    assert names_in(cache) == {"tiny.lock"}


def test_a_proxy_is_honored(
    tiny: known.KnownSet, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_set("http://far.invalid/set/")
    monkeypatch.setitem(known.KNOWN, "tiny", made)
    monkeypatch.setenv("http_proxy", server.address(""))
    server.offer("http://far.invalid/set/", tiny_files())
    assert data.load("tiny", progress=Said()).source == "http://far.invalid/set/"


def test_a_wrong_checksum_is_named_and_the_next_source_tried(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = tiny_files() | {TRAIN_IMAGES: tiny_files()[TRAIN_IMAGES][:-1] + b"\0"}
    server.offer("/altered/", altered)
    made = tiny_set(server.address("/altered/"), server.address("/set/"))
    monkeypatch.setitem(known.KNOWN, "tiny", made)
    said = Said()
    loaded = data.load("tiny", progress=said)
    assert f"{TRAIN_IMAGES} is refused: its checksum is wrong (SHA-256 " in said.text
    assert torch.equal(
        loaded.images[:, 0], torch.from_numpy(tiny_arrays()[TRAIN_IMAGES])
    )
    assert loaded.source == server.address("/set/")


def test_what_was_refused_is_not_taken_for_good_next_time(
    tiny: known.KnownSet, server: Server
) -> None:
    good = dict(server.contents)
    server.offer("/set/", {TRAIN_IMAGES: b"something else"})
    with pytest.raises(DataError, match="is truncated"):
        data.load("tiny", progress=Said())
    server.contents = good
    assert len(data.load("tiny", progress=Said())) == 30


def test_files_that_were_right_are_kept_and_not_asked_for_again(
    tiny: known.KnownSet, server: Server, cache: Path
) -> None:
    missing = server.contents.pop(f"/set/{TEST_IMAGES}.gz")
    with pytest.raises(DataError, match="404"):
        data.fetch("tiny", progress=Said())
    # the training split is whole, and may be used
    assert len(data.load("tiny", progress=Said())) == 30
    assert names_in(cache / "tiny") == {TRAIN_IMAGES, TRAIN_LABELS, "origin.json"}
    server.contents[f"/set/{TEST_IMAGES}.gz"] = missing
    server.log.clear()
    data.load("tiny", split="test", progress=Said())
    assert f"/set/{TRAIN_IMAGES}.gz" not in {path for path, _ in server.log}


def test_a_cut_connection_is_resumed_where_it_stopped(
    tiny: known.KnownSet, server: Server
) -> None:
    server.cut = 2
    assert len(data.load("tiny", progress=Said())) == 30
    size = len(server.contents[f"/set/{TRAIN_IMAGES}.gz"])
    first = [wanted for path, wanted in server.log if path == f"/set/{TRAIN_IMAGES}.gz"]
    assert first == [
        "",
        f"bytes={size // 2}-",
        f"bytes={size // 2 + (size - size // 2) // 2}-",
    ]


def test_a_server_without_ranges_is_asked_from_the_beginning(
    tiny: known.KnownSet, server: Server
) -> None:
    server.cut, server.ranges = 99, False
    with pytest.raises(DataError, match="the connection ended after"):
        data.load("tiny", progress=Said())
    server.cut = 0
    assert len(data.load("tiny", progress=Said())) == 30


def test_a_part_longer_than_the_file_is_begun_anew(
    tmp_path: Path, server: Server
) -> None:
    server.contents["/file.bin"] = b"a" * 1_000

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.download(server.address("/file.bin"), tmp_path, stop)
    (part,) = tmp_path.glob("*.part")
    assert 0 < part.stat().st_size < 1_000
    part.write_bytes(b"b" * 2_000)
    assert (
        download.download(server.address("/file.bin"), tmp_path, Said()).read_bytes()
        == b"a" * 1_000
    )


def test_a_damaged_gzip_file_is_named(tiny: known.KnownSet, server: Server) -> None:
    packed = server.contents[f"/set/{TRAIN_IMAGES}.gz"]
    server.contents[f"/set/{TRAIN_IMAGES}.gz"] = (
        packed[:20] + b"\xff\xff\xff" + packed[23:]
    )
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES}\.gz is damaged"):
        data.load("tiny", progress=Said())
    server.contents[f"/set/{TRAIN_IMAGES}.gz"] = packed
    assert len(data.load("tiny", progress=Said())) == 30


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_an_archive_is_read_without_being_unpacked(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    members = {f"inside/{name}": content for name, content in tiny_files().items()}
    server.contents["/all.tar.gz"] = archive_of(members | {"../outside": b"x"})
    source = Archive(server.address("/all.tar.gz"), "inside/")
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(source,)))
    assert len(data.load("tiny", progress=Said())) == 30
    assert names_in(cache) == WHOLE
    assert not (cache.parent / "outside").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no archive", "damaged"), (None, "has no inside/train-images")],
)
def test_an_archive_that_is_damaged_or_lacks_a_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    server.contents["/all.tar.gz"] = content or archive_of({"inside/other": b"x"})
    source = Archive(server.address("/all.tar.gz"), "inside/")
    monkeypatch.setitem(known.KNOWN, "tiny", tiny_set(sources=(source,)))
    with pytest.raises(DataError, match=reason):
        data.load("tiny", progress=Said())
