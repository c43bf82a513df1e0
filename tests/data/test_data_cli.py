"""`nablab data list` and `nablab data get`."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nablab.cli import data_table
from nablab.data import known
from nablab.data.fetching.progress import Lines, Step
from nablab.data.known import idx
from nablab.errors import UsageError
from tests.conftest import Nablab
from tests.data.serving import Server


def shown(width: int) -> list[str]:
    stream = StringIO()
    data_table.print_sets(Console(file=stream, width=width), data_table.set_facts())
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 70, 80, 120])
def test_the_list_fits_and_nothing_of_the_table_is_cut(width: int) -> None:
    lines = shown(width)
    classes = ["classes"] if width > 70 else []
    sizes = ["size"] if width > 60 else []
    titles = ["name", "samples", "of", *classes, *sizes, "license"]
    assert lines[0].split() == titles
    assert [line.split()[0] for line in lines[1:10]] == data_names()
    assert all(len(line) <= width for line in lines[:11])
    assert not any("…" in line for line in lines)
    ten, four = (["10"], ["4"]) if classes else ([], [])
    size = ["184", "MB"] if sizes else []
    assert lines[2].split()[1:-3] == ["60,000", "32x32x3", *ten, *size]
    size = ["31.3", "MB"] if sizes else []
    assert lines[1].split()[1:-1] == ["127,600", "texts", *four, *size]
    size = ["18.8", "MB"] if sizes else []
    weights = ["efficientnet-lite0", "4,652,008", "weights", *size, "Apache", "2.0"]
    assert lines[3].split() == weights
    assert "mnist is not here; 'nablab data get mnist' fetches it" in lines


def data_names() -> list[str]:
    return [
        "ag-news",
        "cifar10",
        "efficientnet-lite0",
        "fashion-mnist",
        "glove",
        "imdb",
        "mnist",
        "digits",
        "king-james",
    ]


def test_getting_says_where_and_the_list_then_says_so(
    tiny: known.KnownSet, cache: Path
) -> None:
    stream = StringIO()
    data_table.get(Console(file=stream, width=80), "tiny")
    assert stream.getvalue().strip() == str(cache / "tiny")
    fact = next(fact for fact in data_table.set_facts() if fact["name"] == "tiny")
    assert (fact["state"], fact["bytes"]) == ("cached", tiny.nbytes)
    assert any(
        line.startswith(f"tiny is in {cache / 'tiny'}, from http://")
        for line in shown(200)
    )
    (cache / "tiny" / idx.TRAIN_IMAGES).unlink()
    assert any("tiny is in" in line and "in part" in line for line in shown(200))


def test_the_users_own_files_are_listed_as_such(
    tiny: known.KnownSet,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "mine" / "tiny"
    place.mkdir(parents=True)
    for path, content in server.contents.items():
        (place / Path(path).name).write_bytes(content)
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path / "mine"))
    assert any(line == f"tiny is yours, in {place}" for line in shown(200))
    stream = StringIO()
    data_table.get(Console(file=stream, width=80), "tiny")
    assert stream.getvalue().strip() == str(place)
    assert server.log == []


def test_what_cannot_be_got(tmp_path: Path) -> None:
    stream = StringIO()
    data_table.get(Console(file=stream), "digits")
    assert "always here" in stream.getvalue()
    with pytest.raises(UsageError, match="is your own data"):
        data_table.get(Console(file=stream), str(tmp_path))


def test_the_command_line(nablab: Nablab) -> None:
    listed = json.loads(nablab("data", "list", "--json").stdout)
    assert [fact["name"] for fact in listed] == data_names()
    assert {"samples", "kind", "bytes", "state", "folder", "source", "license"} <= set(
        listed[0]
    )
    assert set(listed[-1]) <= set(listed[0]) | {"state"}
    assert nablab("data", "list").stdout.startswith("name")
    got = nablab("data", "get", "digits")
    assert (got.returncode, got.stderr) == (0, "")
    wrong = nablab("data", "get", "minst")
    assert (wrong.returncode, "Did you mean 'mnist'" in wrong.stderr) == (2, True)


def test_the_list_imports_neither_torch_nor_numpy() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "nablab", "data", "list"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if "|" in line
    }
    assert not modules & {"torch", "numpy", "sklearn", "PIL", "matplotlib"}


def test_lines_say_each_thing_once_and_a_long_download_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nablab.data.fetching import progress

    clock = iter([0.0, 1.0, 2.0, 7.5, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = Lines()
    for step in (
        Step("begin"),
        Step("a", 10**6, 4 * 10**6),
        Step("a", 2 * 10**6),
        Step("a", 3 * 10**6),
        Step("end"),
    ):
        lines(step)
    assert capsys.readouterr().err.splitlines() == [
        "begin",
        "a: 1.0 of 4.0 MB",
        "a: 3.0 MB",
        "end",
    ]


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    import pexpect

    script = (
        "from nablab.data.fetching.progress import Step, shown\n"
        "import time\n"
        "with shown() as say:\n"
        "    say(Step('beginning [x]'))\n"
        "    for done in range(1, 6):\n"
        "        say(Step('file.gz from host', done * 1_000_000, 5_000_000)); "
        "time.sleep(0.1)\n"
    )
    child = pexpect.spawn(
        sys.executable,
        ["-c", script],
        dimensions=(20, 80),
        timeout=20,
        encoding="utf-8",
    )
    child.expect_exact("beginning [x]")
    child.expect("/5.0.*MB")
    child.expect_exact("file.gz from host")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
