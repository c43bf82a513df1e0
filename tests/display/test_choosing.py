"""What a run that is called from Python shows: in a terminal, a notebook, or nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pexpect
import pytest

from nablab import runs
from nablab.display import notebook
from nablab.display.choosing import in_terminal, notebook_display, shown
from nablab.display.live import LiveTable
from nablab.display.notebook import NotebookTable
from nablab.lab.runner import Silent

SCRIPT = """
import nablab
print("begins")
run = nablab.run("toy", preset="quick", widths=(2, 4), steps={steps}, pause={pause})
print("ends:", run.state)
"""


class Display:
    """Stands in for ``IPython.display.display`` and the handle that it gives."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        assert not self.shown  # one place below the cell
        self.update(bundle, raw=True)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(bundle)
        self.threads.add(threading.current_thread())


def in_shell(monkeypatch: pytest.MonkeyPatch, *names: str) -> Display:
    """Let this program run in an IPython shell of a class with these names."""
    kind: type = object
    for name in reversed(names):
        kind = type(name, (kind,), {})
    display = Display()
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: kind()  # type: ignore[attr-defined]
    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return display


@pytest.mark.parametrize(
    "names", [("ZMQInteractiveShell",), ("Shell", "ZMQInteractiveShell")]
)
def test_a_notebook_shows_the_table_below_its_cell(
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = in_shell(monkeypatch, *names)
    monkeypatch.setattr(notebook, "EVERY_SECONDS", 0.01)
    before = threading.active_count()
    run = runs.run("toy", preset="quick", pause=0.2)
    assert run.state == "done"
    texts = [bundle["text/plain"] for bundle in display.shown]
    assert all(text.startswith("toy (quick): 2 conditions x 3") for text in texts)
    assert "waiting" in texts[0]
    assert "0 of 2 conditions done, 3 seeds each" in texts[0]
    assert any("1 of 2 conditions done, 3 seeds each, about" in text for text in texts)
    assert len(texts[-1].splitlines()) == 1  # the table goes
    assert len(display.threads) == 2  # while this one works, another one draws
    assert threading.active_count() == before
    assert "\x1b" not in "".join(texts)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_text_and_never_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    display = in_shell(monkeypatch, "ZMQInteractiveShell")
    with shown(None) as table:
        assert isinstance(table, NotebookTable)
        plan = runs.make_plan("toy", preset="quick")
        folder = runs.open_store().create(plan.identity, preset="quick")
        table.started(folder, plan, 6)
        table.console.print("[red]<script>", markup=False)
        table.helped(2)
    last = display.shown[-1]
    assert "[red]<script>" in last["text/plain"]
    assert "&lt;script&gt;" in last["text/html"]
    assert "<script>" not in last["text/html"]
    assert "jobs=1 works without" in last["text/plain"]


def test_a_notebook_is_left_when_a_run_breaks_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    display = in_shell(monkeypatch, "ZMQInteractiveShell")
    before = threading.active_count()
    plan = runs.make_plan("toy", preset="quick")
    folder = runs.open_store().create(plan.identity, preset="quick")

    def broken_off() -> None:
        with shown(True) as table:
            assert table is not None
            table.started(folder, plan, 6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert threading.active_count() == before
    assert "waiting" not in display.shown[-1]["text/plain"]


def test_a_notebook_says_that_nothing_was_left_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs.run("toy", preset="quick")
    display = in_shell(monkeypatch, "ZMQInteractiveShell")
    runs.run("toy", preset="quick")
    assert [bundle["text/plain"] for bundle in display.shown] == [
        "toy (quick): 2 conditions x 3 seeds = 6 trials, 6 of them done before\n"
    ]


def test_ipython_in_a_terminal_or_absent_is_no_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "IPython" not in sys.modules
    assert notebook_display() is None
    in_shell(monkeypatch, "TerminalInteractiveShell", "InteractiveShell")
    assert notebook_display() is None
    in_shell(monkeypatch)  # imported, and no shell runs
    assert notebook_display() is None


def test_where_nobody_looks_nothing_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.run("toy", preset="quick")
    runs.run("toy", preset="quick", progress=False, fresh=True)
    assert capsys.readouterr() == ("", "")


def test_lines_are_shown_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.run("toy", preset="quick", progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    first, second, third = said.err.splitlines()
    assert first == "toy (quick): 2 conditions x 3 seeds = 6 trials"
    assert second.startswith("[1] width=2: 3 trials in ")
    assert " left" in second
    assert third.startswith("[2] width=4: 3 trials in ")


def test_an_observer_of_ones_own_is_the_only_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.run("toy", preset="quick", progress=True, observer=Silent())
    assert capsys.readouterr() == ("", "")


def test_a_script_in_a_terminal_shows_the_table(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(steps=200, pause=1.0))
    child = pexpect.spawn(
        sys.executable,
        ["script.py"],
        dimensions=(24, 60),
        cwd=str(tmp_path),
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm-256color"},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("begins")
    child.expect("2 conditions x 3 seeds = 6 trials")
    child.expect("0 of 2 conditions done, 3 seeds each")
    child.expect(r"1 of 2 conditions done, 3 seeds each, about \d s left")
    child.expect("ends: done")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize("closed", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_script_whose_output_goes_elsewhere_is_silent(
    tmp_path: Path, closed: str
) -> None:
    """Also where only one of its streams is a file, and the other a terminal."""
    (tmp_path / "script.py").write_text(SCRIPT.format(steps=20, pause=0.0))
    child = pexpect.spawn(
        "sh",
        ["-c", f"{sys.executable} script.py {closed}>said.txt"],
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=60,
    )
    child.expect(pexpect.EOF)
    written = f"{child.before}{(tmp_path / 'said.txt').read_text()}"
    assert written.split() == ["begins", "ends:", "done"]


def test_a_stream_that_is_closed_or_missing_is_no_terminal() -> None:
    with Path(os.devnull).open() as stream:
        assert not in_terminal(stream)
    assert not in_terminal(stream)
    assert not in_terminal(None)


def test_rich_is_not_imported_where_nothing_is_shown() -> None:
    program = (
        "import sys\n"
        "from nablab.runs import make_plan, run\n"
        "from nablab.display.choosing import shown\n"
        "with shown(None): pass\n"
        "sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True
    )
    assert done.returncode == 0


def test_what_users_print_reaches_a_pipe_beside_a_live_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    table = LiveTable(Console(stderr=True, force_terminal=True, width=80))
    plan = runs.make_plan("toy", preset="quick")
    table.started(runs.open_store().create(plan.identity, preset="quick"), plan, 6)
    print("for the pipe")
    table.close()
    assert capsys.readouterr().out == "for the pipe\n"
