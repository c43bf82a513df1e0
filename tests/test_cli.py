"""The command line: exit codes, messages, machine-readable output, narrow and absent terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from nablab import catalogue, cli
from nablab.lab.runner import Plan
from nablab.lab.session import Estimate
from tests.conftest import Nablab


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "Which experiment"),
        (("run", "tyo"), "Did you mean 'toy'"),
        (("run", "toy", "stepz=3"), "Did you mean 'steps'"),
        (("run", "toy", "steps=x"), "steps"),
        (("run", "toy", "steps=1", "steps=2"), "twice"),
        (("run", "toy", "replicas_of=tow"), "two"),
        (("run", "toy", "--preset", "qick"), "Did you mean 'quick'"),
        (("run", "toy", "--seeds", "0"), "must be 1 or more"),
        (("run", "toy", "--seeds", "many"), "many"),
        (("run", "toy", "--device", "tpu"), "cpu, cuda, mps"),
        (("run", "toy", "--model", "net.py:make"), "model"),
        (("run", "toy", "--bogus"), "--bogus"),
        (("run", "--all", "toy"), "leave out toy"),
        (("show", "tyo"), "Did you mean 'toy'"),
        (("shwo", "toy"), "show"),
        (("report",), "Which run"),
        (("report", "nothing"), "no runs here yet"),
        (("compare", "toy"), "compare|second|SECOND"),
    ],
)
def test_usage_errors_exit_with_2_and_one_message(
    nablab: Nablab, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = nablab(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_all_experiments_are_run_by_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nablab import catalogue, cli, runs

    asked: list[tuple[str, str]] = []

    def rehearse(plan: Plan, **_: object) -> list[Estimate]:
        asked.append((plan.experiment.name, plan.preset))
        return [Estimate() for _ in plan.conditions]

    monkeypatch.setattr(catalogue, "BUILT_IN", Path("nowhere"))
    monkeypatch.setattr(runs, "rehearse", rehearse)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--all", "--preset", "quick", "--dry-run", "--json"])
    assert ended.value.code == 0
    assert asked == [("toy", "quick")]
    json.loads(capsys.readouterr().out)


def test_run_then_runs_report_compare(nablab: Nablab, tmp_path: Path) -> None:
    first = nablab("run", "toy", "--preset", "quick")
    assert first.returncode == 0, first.stderr
    assert "[1] width=2: 3 trials in" in first.stdout  # no terminal: plain lines
    assert "\x1b" not in first.stdout
    assert "supported" in first.stdout or "refuted" in first.stdout or "inconclusive" in first.stdout
    assert "report.html" in first.stdout
    second = nablab("run", "toy", "--preset", "quick", "learning_rate=0.02", "--quiet")
    assert second.returncode == 0
    assert "trials in" not in second.stdout
    listed = json.loads(nablab("runs", "--json").stdout)
    assert [fact["state"] for fact in listed] == ["done", "done"]
    one, two = (fact["run"] for fact in listed)
    assert one in nablab("runs").stdout
    compared = nablab("compare", one, two, "-o", str(tmp_path / "compare.html"))
    assert compared.returncode == 0, compared.stderr
    assert "learning_rate" in compared.stdout
    assert "0.02" in (tmp_path / "compare.html").read_text()
    reported = nablab("report", one, "--output", str(tmp_path / "out.html"))
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>") or (
        tmp_path / "out.html"
    ).read_text().startswith("<!DOCTYPE html>")


def test_json_is_all_that_is_printed(nablab: Nablab) -> None:
    done = nablab("run", "toy", "--preset", "quick", "--json")
    content = json.loads(done.stdout)
    assert content["state"] == "done"
    assert {verdict["outcome"] for verdict in content["verdicts"]}
    assert Path(content["report"]).name == "report.html"
    assert json.loads(nablab("list", "--json").stdout)[0]["name"]
    assert json.loads(nablab("show", "toy", "--json").stdout)["name"] == "toy"


def test_a_failed_run_exits_with_1_and_says_why(nablab: Nablab) -> None:
    done = nablab("run", "toy", "--preset", "quick", "fail=4")
    assert done.returncode == 1
    assert "this width was asked to fail" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_measures_and_stores_nothing(nablab: Nablab, tmp_path: Path) -> None:
    done = nablab("run", "toy", "steps=50_000", "--dry-run", "--seeds", "7")
    assert done.returncode == 0, done.stderr
    assert "50_000" in done.stdout or "50,000" in done.stdout or "50000" in done.stdout
    assert "14 trials" in done.stdout
    assert not (tmp_path / "runs").exists()
    facts = json.loads(nablab("run", "toy", "steps=50_000", "--dry-run", "--json").stdout)[0]
    assert facts["seconds"] > 0.2  # 500,000 replica-steps are never free
    assert facts["peak_memory_bytes"] > 50e6
    assert all(row["steps"] == 50_000 for row in facts["conditions"])


def test_help_list_and_show_import_neither_torch_nor_numpy(nablab: Nablab) -> None:
    for words in (["--help"], ["list"], ["show", "deep-vs-shallow"], ["run", "--help"], ["runs"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "nablab", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
        assert not modules & {"torch", "numpy", "matplotlib", "pandas", "scipy"}, words


def test_show_explains_the_toy(nablab: Nablab) -> None:
    text = nablab("show", "toy").stdout
    assert "Does a wider network fit a parabola better?" in text
    assert "learning_rate" in text
    assert "Step size" in text
    assert "quick" in text


def test_a_narrow_terminal_shows_a_live_table_that_fits(tmp_path: Path) -> None:
    words = ["-m", "nablab", "run", "toy", "steps=4_000", "--replicas", "sequential", "--seeds", "2"]
    environment = {**os.environ, "COLUMNS": "44", "TERM": "xterm-256color"}
    child = pexpect.spawn(
        sys.executable, words, dimensions=(20, 44), cwd=str(tmp_path), env=environment, timeout=60
    )
    child.expect("conditions done")
    child.expect("Report:")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_dry_run_in_a_terminal_says_where_it_is(tmp_path: Path) -> None:
    words = ["-m", "nablab", "run", "toy", "--preset", "quick", "--dry-run"]
    child = pexpect.spawn(
        sys.executable, words, dimensions=(20, 60), cwd=str(tmp_path), encoding="utf-8", timeout=60
    )
    child.expect(r"Measuring toy, 1 of \d+: width=\d")
    child.expect(r"Measuring toy, 2 of \d+: width=\d")
    child.expect("Nothing was")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_in_a_narrow_terminal_questions_stay_in_their_column(
    nablab_here: Nablab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.output, "_width", 40)
    listed = nablab_here("list").stdout.split("\n\n")[0].splitlines()
    names = [entry.name for entry in catalogue.scan().values()]
    column = max(len(name) for name in names) + 2
    assert [line[:column].strip() for line in listed if line[:column].strip()] == names
    assert max(len(line) for line in listed) <= 40


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m nablab list | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr


def test_version(nablab: Nablab) -> None:
    import nablab as package

    assert nablab("--version").stdout.strip() == package.__version__
