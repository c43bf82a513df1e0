"""What the terminal shows of a run, whatever the files and names hold."""

from __future__ import annotations

import json
import os
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nablab.cli.run_table import now_text
from nablab.cli.verdict_lines import ROOM_FOR_EFFECTS, print_verdicts
from nablab.contract import Trial
from nablab.display.consoles import SafeConsole
from nablab.display.live import LiveTable
from nablab.display.plain import PlainLines, Quiet
from nablab.display.sentences import STOPPING
from nablab.lab.runner import Plan
from nablab.lab.store import RunFolder, Store
from nablab.lab.work import Outcome
from nablab.runs import make_plan
from nablab.verdicts import Verdict
from tests.report.conftest import fake_verdict

RED = "\x1b[31mred\x1b]0;title\x07\x9b2J"


@pytest.fixture
def plan() -> Plan:
    return make_plan("toy", preset="quick")


@pytest.fixture
def folder(plan: Plan, tmp_path: Path) -> RunFolder:
    return Store(tmp_path).create(plan.identity, preset="quick")


def progress(plan: Plan, **changes: Any) -> dict[str, Any]:
    content = {
        "condition": dict(plan.conditions[0]),
        "replicas": 3,
        "part": 1,
        "step": 50,
        "steps": 200,
        "rate": 100.0,
        "loss": 0.125,
        "time": time.time(),
    }
    return {**content, **changes}


def shown(folder: RunFolder, plan: Plan, content: str) -> str:
    """What the live table shows with this progress file."""
    stream = StringIO()
    table = LiveTable(Console(file=stream, width=100))
    table.started(folder, plan, pending=len(plan.conditions) * plan.seeds)
    try:
        path = folder.progress_path(plan.conditions[0])
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        table.console.print(table)
    finally:
        table.close()
    return stream.getvalue()


def test_progress_is_shown(folder: RunFolder, plan: Plan) -> None:
    text = shown(folder, plan, json.dumps(progress(plan)))
    assert "1.25e-01" in text
    assert "4.5 s" in text  # 150 steps of 3 replicas at 100 a second
    assert "waiting" in text  # the other condition
    assert "nan" in shown(folder, plan, json.dumps(progress(plan, loss="nan")))
    # a loop of the experiment's own
    without = shown(folder, plan, json.dumps(progress(plan, loss=None)))
    assert "4.5 s" in without
    assert "None" not in without


def ended(plan: Plan, seconds: float) -> Outcome:
    trials = tuple(Trial(plan.conditions[0], seed) for seed in range(plan.seeds))
    return Outcome("done", trials, seconds)


@pytest.mark.parametrize(
    ("width", "foot"),
    [
        (80, "1 of 2 conditions done, 3 seeds each, about 8 s left"),
        (60, "1 of 2 conditions done, 3 seeds each, about 8 s left"),
        (50, "1 of 2 conditions done, about 8 s left"),
    ],
)
def test_the_table_says_how_long_the_whole_will_go_on(
    folder: RunFolder, plan: Plan, width: int, foot: str
) -> None:
    stream = StringIO()
    table = LiveTable(Console(file=stream, width=width))
    table.started(folder, plan, 6)
    try:
        table.console.print(table)
        assert "left" not in stream.getvalue().splitlines()[-1]
        table.finished(plan.groups[0], ended(plan, 8.0))
        table.console.print(table)
        assert stream.getvalue().splitlines()[-1] == foot
        table.finished(plan.groups[1], ended(plan, 8.0))
        table.console.print(table)
        assert "left" not in stream.getvalue().splitlines()[-1]
        table.stopping()
        table.console.print(table)
        said = stream.getvalue().splitlines()
        assert said[-1] == STOPPING or (width < 60 and said[-1].endswith("…"))
    finally:
        table.close()


@pytest.mark.parametrize("width", [30, 60, 100])
def test_the_table_has_as_many_lines_whatever_it_says(
    folder: RunFolder, plan: Plan, width: int
) -> None:
    table = LiveTable(Console(file=StringIO(), width=width))

    def height() -> int:
        stream = StringIO()
        Console(file=stream, width=width).print(table)
        return len(stream.getvalue().splitlines())

    table.started(folder, plan, 6)
    try:
        assert height() == 4  # the names, two conditions, the foot
        table.finished(plan.groups[0], ended(plan, 8000.0))
        assert height() == 4
        table.stopping()
        assert height() == 4
    finally:
        table.close()


def test_lines_say_how_long_the_whole_will_go_on(folder: RunFolder, plan: Plan) -> None:
    stream = StringIO()
    lines = PlainLines(Console(file=stream, width=80))
    lines.started(folder, plan, 6)
    for group in plan.groups:
        lines.finished(group, ended(plan, 8.0))
    assert stream.getvalue().splitlines()[1:] == [
        "[1] width=2: 3 trials in 8.0 s; about 8 s left",
        "[2] width=4: 3 trials in 8.0 s",
    ]


def test_lines_of_a_run_that_goes_wrong_say_no_time(
    folder: RunFolder, plan: Plan
) -> None:
    stream = StringIO()
    lines = PlainLines(Console(file=stream, width=80))
    lines.started(folder, plan, 6)
    lines.finished(plan.groups[0], Outcome("failed", message="no", seconds=8.0))
    lines.finished(plan.groups[1], Outcome("interrupted"))
    assert "left" not in stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": "200"},
        {"step": None},
        {"rate": float("nan")},
        {"rate": -1.0},
        {"loss": [1]},
        {"time": "now"},
        {"time": 10**400},
        {"time": time.time() + 10**6},
        {"time": 0.0},
        {"replicas": 0},
        {"condition": [1]},
        {"condition": {"self": 1, "width": [1]}},
        {"steps": 10**30},
    ],
)
def test_progress_of_another_shape_is_not_shown(
    folder: RunFolder, plan: Plan, changes: dict[str, Any]
) -> None:
    text = shown(folder, plan, json.dumps(progress(plan, **changes)))
    assert text.count("waiting") == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "17", '{"step": ' + "[" * 100_000])
def test_progress_that_is_none_is_not_shown(
    folder: RunFolder, plan: Plan, content: str
) -> None:
    assert shown(folder, plan, content).count("waiting") == 2


def test_a_pipe_for_progress_is_not_waited_for(folder: RunFolder, plan: Plan) -> None:
    path = folder.progress_path(plan.conditions[0])
    path.parent.mkdir()
    os.mkfifo(path)
    table = LiveTable(Console(file=StringIO(), width=100))
    table.started(folder, plan, 0)
    table.console.print(table)


@pytest.mark.parametrize("observer", [PlainLines, LiveTable, Quiet])
def test_a_damaged_file_of_the_run_is_said_before_it_goes_on(
    folder: RunFolder, plan: Plan, observer: Any
) -> None:
    (folder.path / "status.json").write_text("{")
    stream = StringIO()
    observer(Console(file=stream, width=100)).started(folder, plan, 0)
    assert f"Damaged: {folder.path / 'status.json'} is damaged" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_text_never_steers_the_terminal(terminal: bool) -> None:
    stream = StringIO()
    colors = "truecolor" if terminal else None
    console = SafeConsole(
        file=stream, width=60, force_terminal=terminal, color_system=colors
    )
    table = Table(RED)
    table.add_row(Text(RED, style="bold"), RED)
    console.print(table)
    console.print(RED, markup=False, style="green")
    console.print(f"[bold]{RED}[/bold]\ttabs\nand lines stay")
    text = stream.getvalue()
    assert ("\x1b[1m" in text) == terminal  # its own colors stay
    assert not any(sign in text for sign in ("\x1b[31m", "\x1b]0;", "\x07", "\x9b"))
    assert "[31mred" in text
    assert "and lines stay" in text.splitlines()


@pytest.mark.parametrize("seconds", [1e300, -1e300, float("inf"), float("nan")])
def test_a_time_that_no_calendar_has(seconds: float) -> None:
    assert now_text(seconds) == "?"


# --- the summary after a run --------------------------------------------------


def summary(verdicts: list[Verdict], width: int) -> list[str]:
    """The lines that the terminal shows of these verdicts."""
    stream = StringIO()
    print_verdicts(Console(file=stream, width=width), verdicts)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def verdicts_of_three() -> list[Verdict]:
    scope = {"network": "flatten-256"}
    claim = (
        "The deep network has a lower held-out error than the shallow one "
        "(network flatten-256)"
    )
    return [
        fake_verdict("supported", claim=claim, scope=scope, answer="depth helps"),
        fake_verdict("refuted", claim=claim, scope=scope),
        fake_verdict(
            "inconclusive", claim=claim, scope=scope, advice="about 12 seeds would tell"
        ),
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_answer_comes_first_then_one_or_two_lines_a_claim(width: int) -> None:
    lines = summary(verdicts_of_three(), width)
    assert lines[0] == "Depth helps."
    assert max(map(len, lines)) <= width
    rows = [
        number for number, line in enumerate(lines) if line[:2] in ("+ ", "- ", "? ")
    ]
    legend, *claims = rows
    assert (
        " ".join(lines[legend : claims[0]]).split("; ")[0] == "+ 1 supported, - 1 "
        "refuted, ? 1 "
        "inconclusive"
    )
    assert [lines[row][0] for row in claims] == ["+", "-", "?"]
    ends = [*claims[1:], len(lines)]
    assert all(end - row <= 2 for row, end in zip(claims, ends, strict=True))
    text = " ".join(" ".join(lines).split())
    assert text.count("flatten-256") == 1  # what all claims share is said once
    assert ("4.0 times lower (2.0 to 7.9)" in text) == (width >= ROOM_FOR_EFFECTS)
    assert "About 12 seeds would tell." in text


def test_no_verdict_prints_nothing() -> None:
    assert summary([], 80) == []
