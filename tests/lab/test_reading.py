"""Every file of the store is read by type, bounds and checksum; what does not fit is
named with its field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nablab.lab import contents, files, reading
from nablab.lab.reading import Damaged, read

NUMBERS = Mapping[str, contents.Number]
STATUS = {"state": "done", "pid": 7, "seeds": 5, "seconds": 1.5, "notes": ["a", "b"]}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**STATUS, **changes}))
    return path


def test_what_fits_comes_back_typed(tmp_path: Path) -> None:
    found = read(
        written(tmp_path / "status.json", later="of a newer version"), contents.Status
    )
    assert found == contents.Status(
        "done", pid=7, seeds=5, seconds=1.5, notes=("a", "b")
    )
    assert read(tmp_path / "nothing.json", contents.Status) is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("seeds", "5", "'seeds' is \"5\"; it must be a whole number"),
        ("seeds", 2.5, "'seeds' is 2.5; it must be a whole number"),
        ("seeds", True, "'seeds' is true; it must be a whole number"),
        (
            "seeds",
            -1,
            "'seeds' is -1; it must be a whole number from 0 to 1,000,000,000",
        ),
        ("seeds", 10**12, "it must be a whole number from 0 to 1,000,000,000"),
        ("pid", 0, "'pid' is 0; it must be a whole number from 1 to"),
        ("pid", -1, "'pid' is -1"),
        ("seconds", "1.5", "'seconds' is \"1.5\"; it must be a number"),
        ("seconds", -0.1, "'seconds' is -0.1; it must be a number from 0 to"),
        ("seconds", 10**400, "'seconds' is 1000"),
        ("seconds", float("nan"), "it holds NaN, which is not JSON"),
        ("heartbeat", float("inf"), "it holds Infinity, which is not JSON"),
        (
            "state",
            "crashed",
            "'state' is \"crashed\"; it must be one of running, done, "
            "failed, interrupted",
        ),
        ("state", None, "'state' is null; it must be one of"),
        ("notes", "a", "'notes' is \"a\"; it must be a list"),
        ("notes", ["a", 3], "'notes[1]' is 3; it must be text"),
        ("notes", {"a": 1}, "'notes' is an object; it must be a list"),
        ("host", "\ud800", "it holds text that is not Unicode"),
    ],
)
def test_a_field_that_does_not_fit_is_named(
    tmp_path: Path, field: str, value: Any, reason: str
) -> None:
    path = written(tmp_path / "status.json", **{field: value})
    with pytest.raises(Damaged) as caught:
        read(path, contents.Status)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert reason in str(caught.value)
    assert contents.Status.remedy in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"seeds": 5}')
    with pytest.raises(Damaged, match="'state' is missing"):
        read(path, contents.Status)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"{", "it is not complete JSON"),
        (b"[1]", "it holds a list of 1 instead of fields in braces"),
        (b"null", "it holds null instead of"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"state": ' + b"[" * 50 + b"]" * 50 + b"}", "nested too deeply"),
        ('{"state": "done"}'.encode("utf-16"), "its text is not UTF-8"),
        (b'{"seconds": 1e999}', "a number too large"),
        (b'{"seconds": ' + b"9" * 5_000 + b"}", "not complete JSON"),
    ],
)
def test_a_file_of_another_form_is_said(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=reason):
        read(path, contents.Status)


def test_what_is_no_readable_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.mkdir()
    with pytest.raises(Damaged, match="it is a folder"):
        read(path, contents.Status)
    path.rmdir()
    os.mkfifo(path)  # opening it must not wait for a writer
    with pytest.raises(Damaged, match="it is not a regular file"):
        read(path, contents.Status)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(Damaged, match="a link to a file that does not exist"):
        read(path, contents.Status)
    path.unlink()
    path.symlink_to("status.json")
    with pytest.raises(Damaged, match="it cannot be read: Too many levels"):
        read(path, contents.Status)
    with pytest.raises(Damaged, match="Not a directory"):
        read(Path(__file__) / "status.json", contents.Status)


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 50)
    with pytest.raises(Damaged, match="bytes, more than any file of its kind"):
        read(written(tmp_path / "status.json"), contents.Status)


def test_a_change_after_the_writing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    files.write_json(path, files.sealed(STATUS))
    assert read(path, contents.Status)
    path.write_text(path.read_text().replace('"seeds": 5', '"seeds": 4'))  # one bit
    with pytest.raises(Damaged, match="its checksum is wrong"):
        read(path, contents.Status)
    # a new checksum replaces the old one
    files.write_json(path, files.sealed(json.loads(path.read_text())))
    found = read(path, contents.Status)
    assert found is not None
    assert found.seeds == 4


def test_numbers_that_json_lacks_are_read_where_they_may_stand() -> None:
    scalars = reading.fit({"a": "inf", "b": "nan", "c": 3}, NUMBERS)
    assert scalars["a"] == float("inf")
    assert scalars["b"] != scalars["b"]
    assert isinstance(scalars["c"], float)
    for wrong in ("1.5", "infinity", None, True):
        with pytest.raises(reading.Misfit, match=r"'scalars.a'"):
            reading.fit({"a": wrong}, NUMBERS, "scalars")


@pytest.mark.parametrize(
    "seeds", [[-1], [0, 0], [float("inf")], ["0"], [0.5], 3, None, [10**10], [[0]]]
)
def test_a_marker_of_seeds_that_are_none_is_damaged(tmp_path: Path, seeds: Any) -> None:
    path = tmp_path / "marker.json"
    path.write_text(json.dumps({"seeds": seeds}))
    with pytest.raises(Damaged, match="checkpoint"):
        read(path, contents.Marker)
