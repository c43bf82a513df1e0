"""The command line: exit codes, messages, machine-readable output, narrow and absent
terminals.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from nablab import catalogue
from nablab.cli import app, streams
from nablab.cli.main import main
from nablab.contract import configuration
from nablab.lab.rehearsal import Estimate
from nablab.lab.runner import Plan
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
        (
            ("run", "toy", "preset=quick"),
            "'preset' is an option of its own: --preset NAME",
        ),
        (("run", "toy", "--seeds", "1000000000"), "at most 10,000"),
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
    nablab_here: Nablab, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = nablab_here(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_all_experiments_are_run_by_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nablab import catalogue, runs

    asked: list[tuple[str, str]] = []

    def rehearse(plan: Plan, **_: object) -> list[Estimate]:
        asked.append((plan.experiment.name, plan.preset))
        return [Estimate() for _ in plan.conditions]

    monkeypatch.setattr(catalogue, "BUILT_IN", Path("nowhere"))
    monkeypatch.setattr(runs, "rehearse", rehearse)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--all", "--preset", "quick", "--dry-run", "--json"])
    assert ended.value.code == 0
    assert asked == [("toy", "quick")]
    json.loads(capsys.readouterr().out)


def test_run_then_runs_report_compare(
    nablab: Nablab, nablab_here: Nablab, tmp_path: Path
) -> None:
    first = nablab("run", "toy", "--preset", "quick")
    assert first.returncode == 0, first.stderr
    assert "[1] width=2: 3 trials in" in first.stdout  # no terminal: plain lines
    assert "\x1b" not in first.stdout
    assert (
        "supported" in first.stdout
        or "refuted" in first.stdout
        or "inconclusive" in first.stdout
    )
    assert "report.html" in first.stdout
    second = nablab_here(
        "run", "toy", "--preset", "quick", "learning_rate=0.02", "--quiet"
    )
    assert second.returncode == 0
    assert "trials in" not in second.stdout
    listed = json.loads(nablab_here("runs", "--json").stdout)
    assert [fact["state"] for fact in listed] == ["done", "done"]
    one, two = (fact["run"] for fact in listed)
    assert one in nablab_here("runs").stdout
    compared = nablab_here("compare", one, two, "-o", str(tmp_path / "compare.html"))
    assert compared.returncode == 0, compared.stderr
    assert "learning_rate" in compared.stdout
    assert "0.02" in (tmp_path / "compare.html").read_text()
    reported = nablab_here("report", one, "--output", str(tmp_path / "out.html"))
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>") or (
        tmp_path / "out.html"
    ).read_text().startswith("<!DOCTYPE html>")


def test_json_is_all_that_is_printed(nablab_here: Nablab) -> None:
    done = nablab_here("run", "toy", "--preset", "quick", "--json")
    content = json.loads(done.stdout)
    assert content["state"] == "done"
    assert {verdict["outcome"] for verdict in content["verdicts"]}
    assert Path(content["report"]).name == "report.html"
    assert json.loads(nablab_here("list", "--json").stdout)[0]["name"]
    assert json.loads(nablab_here("show", "toy", "--json").stdout)["name"] == "toy"


def test_a_failed_run_exits_with_1_and_says_why(nablab_here: Nablab) -> None:
    done = nablab_here("run", "toy", "--preset", "quick", "fail=4")
    assert done.returncode == 1
    assert "this width was asked to fail" in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_of_an_unfinished_run_say_what_they_rest_on(
    nablab_here: Nablab,
) -> None:
    words = ("run", "toy", "--preset", "quick", "widths=2,3,4")
    unfinished = nablab_here(*words, "fail=4").stdout
    said = unfinished.index("On 6 of 9 trials, so all of it may change:")
    assert said < unfinished.index("inconclusive")
    assert "may change" not in nablab_here(*words).stdout


def test_dry_run_measures_and_stores_nothing(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    done = nablab_here("run", "toy", "steps=50_000", "--dry-run", "--seeds", "7")
    assert done.returncode == 0, done.stderr
    assert "50_000" in done.stdout or "50,000" in done.stdout or "50000" in done.stdout
    assert "14 trials" in done.stdout
    assert not (tmp_path / "runs").exists()
    facts = json.loads(
        nablab_here("run", "toy", "steps=50_000", "--dry-run", "--json").stdout
    )[0]
    assert facts["seconds"] > 0.2  # 500,000 replica-steps are never free
    assert facts["peak_memory_bytes"] > 50e6
    assert all(row["steps"] == 50_000 for row in facts["conditions"])


def test_help_list_and_show_import_neither_torch_nor_numpy(nablab: Nablab) -> None:
    for words in (
        ["--help"],
        ["list"],
        ["show", "deep-vs-shallow"],
        ["run", "--help"],
        ["runs"],
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "nablab", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        modules = {
            line.rsplit("|", 1)[-1].strip()
            for line in done.stderr.splitlines()
            if "|" in line
        }
        assert not modules & {"torch", "numpy", "matplotlib", "pandas", "scipy"}, words


def test_show_explains_the_toy(nablab: Nablab) -> None:
    text = nablab("show", "toy").stdout
    assert "Does a wider network fit a parabola better?" in text
    assert "learning_rate" in text
    assert "Step size" in text
    assert "quick" in text


def test_a_narrow_terminal_shows_a_live_table_that_fits(tmp_path: Path) -> None:
    words = [
        "-m",
        "nablab",
        "run",
        "toy",
        "steps=4_000",
        "--replicas",
        "sequential",
        "--seeds",
        "2",
    ]
    environment = {**os.environ, "COLUMNS": "44", "TERM": "xterm-256color"}
    child = pexpect.spawn(
        sys.executable,
        words,
        dimensions=(20, 44),
        cwd=str(tmp_path),
        env=environment,
        timeout=60,
    )
    child.expect("conditions done")
    child.expect("Report:")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_dry_run_in_a_terminal_says_where_it_is(tmp_path: Path) -> None:
    # So many steps that each condition is measured for longer than a frame lasts.
    settings = ["--preset", "quick", "steps=1_000_000"]
    words = ["-m", "nablab", "run", "toy", *settings, "--dry-run"]
    child = pexpect.spawn(
        sys.executable,
        words,
        dimensions=(20, 60),
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=60,
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
    monkeypatch.setattr(app.output, "_width", 40)
    listed = nablab_here("list").stdout.splitlines()[:-2]
    topics = catalogue.by_topic(catalogue.scan().values())
    wanted = [
        word
        for topic, entries in topics.items()
        for word in (topic, *(f"  {entry.name}" for entry in entries))
    ]
    column = max(len(word) for word in wanted) + 2
    first = [line[:column].rstrip() for line in listed]
    assert [word for word in first if word] == wanted
    assert max(len(line) for line in listed) <= 40


def test_the_list_as_json_says_the_topic(nablab_here: Nablab) -> None:
    facts = json.loads(nablab_here("list", "--json").stdout)
    topics = {fact["name"]: fact["topic"] for fact in facts}
    assert topics["cnn-depth"] == "images"
    assert topics["sharpness"] == "generalization"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m nablab list | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "Traceback" not in done.stderr


def test_version(nablab: Nablab) -> None:
    import nablab as package

    assert nablab("--version").stdout.strip() == package.__version__


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_the_output_will_do(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    for words in (
        ["show", "sharpness"],
        ["list"],
        ["show", "zero-gradient", "--json"],
        ["data", "list"],
    ):
        raw = io.BytesIO()
        monkeypatch.setattr(
            sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        )
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        text = raw.getvalue().decode(encoding)
        if words == ["show", "sharpness"]:
            width = (
                "half-width ε (|x_i|"
                if encoding == "utf-8"
                else "half-width epsilon (|x_i|"
            )
            assert width in " ".join(text.split())
            assert "?" not in text.partition("Keskar")[2].partition("Claims")[0]
        if "--json" in words:
            assert (
                json.loads(text)["question"]
                == catalogue.find("zero-gradient").question()
            )
            assert (
                json.loads(text)["page"].isascii()
                or encoding == "utf-8"
                or "ε" in json.loads(text)["page"]
            )


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("2 × 3 ≤ 10⁻³ … ½", "2 x 3 <= 10-3 ... 1/2"),
        ("Zoë’s naïve “ﬁt” — ∇‖g‖²", 'Zoe\'s naive "fit" - grad||g||2'),
        ("日本 \udcff", "?? ?"),
        ("├──┤ ━╸", "+--+ --"),
    ],
)
def test_characters_that_an_encoding_lacks_have_a_nearest(
    text: str, readable: str
) -> None:
    assert text.encode("ascii", streams.READABLE).decode() == readable


LOUD = """
import os
import subprocess
print("on import")
os.write(1, b"past Python\\n")
subprocess.run(["echo", "from a child"])
from torch import nn

def build():
    print("when built")
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
"""


@pytest.mark.slow
def test_a_loud_file_leaves_the_json_of_a_run_alone(
    nablab: Nablab, nablab_here: Nablab, tmp_path: Path
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    words = [
        "run",
        "deep-vs-shallow",
        "--preset",
        "quick",
        "targets=sinc",
        "trio=none",
        "steps=20",
    ]
    words += ["--model", "loud.py:build", "--seeds", "2", "--json"]
    done = nablab(*words, "--jobs", "2")
    json.loads(done.stdout)
    for said in ("on import", "past Python", "from a child", "when built"):
        assert said in done.stderr
    done = nablab_here(*words, "--dry-run")
    json.loads(done.stdout)
    assert "when built" in done.stderr


def test_a_loud_experiment_leaves_every_json_alone(
    nablab_here: Nablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = (Path(__file__).parent / "toys" / "toy.py").read_text()
    for name in ("list", "show"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(toy + "\nprint('a word')\n")
        monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path / name))
        done = nablab_here(name, *(["toy"] if name == "show" else []), "--json")
        json.loads(done.stdout)
        assert "a word" in done.stderr


LEAVING = """
import sys
{on_import}
from dataclasses import dataclass
from nablab.contract import Condition, Experiment

@dataclass(frozen=True)
class Leaving(Experiment):
    "Does it stay?"
    where: str = "run"

    def leave(self, where):
        if self.where == where:
            sys.exit(0)

    def validate(self):
        self.leave("validate")

    def conditions(self):
        self.leave("conditions")
        return [Condition(only="one")]

    def run(self, trials, lab):
        self.leave("run")
        for trial in trials:
            lab.record(trial, value=1.0)

    def figures(self, records):
        self.leave("figures")
        return {{}}
"""


@pytest.mark.parametrize("where", ["validate", "conditions", "run", "figures"])
def test_an_experiment_that_calls_exit_is_an_error(
    nablab_here: Nablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "leaving.py").write_text(LEAVING.format(on_import=""))
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path / "own"))
    done = nablab_here("run", "leaving", f"where={where}", "--seeds", "1")
    assert "leaving.py, line " in done.stderr
    assert "SystemExit: 0" in done.stderr
    assert done.returncode == (0 if where == "figures" else 1)
    if where != "figures":
        dry = nablab_here(
            "run", "leaving", f"where={where}", "--seeds", "1", "--dry-run"
        )
        assert dry.returncode == 1
        assert "leaving.py, line " in dry.stderr


def test_a_file_that_calls_exit_on_import_is_listed_as_broken(
    nablab_here: Nablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "leaving.py").write_text(
        LEAVING.format(on_import="sys.exit(0)")
    )
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path / "own"))
    done = nablab_here("list")
    assert "cannot be imported: SystemExit: 0" in " ".join(done.stdout.split())
    assert "sharpness" in done.stdout
    for words in (["show", "leaving"], ["run", "leaving"]):
        done = nablab_here(*words)
        assert done.returncode == 2
        assert "SystemExit: 0" in done.stderr


def test_a_dry_run_that_raises_is_one_sentence(nablab_here: Nablab) -> None:
    done = nablab_here("run", "toy", "fail=4", "--dry-run", "--seeds", "1", "steps=20")
    assert done.returncode == 1
    assert (
        "The dry run of toy (width=4) raised RuntimeError: this width was asked to "
        "fail ("
    ) in done.stderr
    assert "toy.py, line " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_figures_that_are_missing_are_said(nablab_here: Nablab) -> None:
    words = ("run", "toy", "bad_figure=true", "--preset", "quick", "steps=20")
    done = nablab_here(*words)
    said = (
        "Failed: The figures could not be drawn. RuntimeError: this figure was "
        "asked to fail"
    )
    assert said in done.stderr
    assert said in nablab_here("report", "toy").stderr
    assert json.loads(nablab_here(*words, "--json").stdout)["messages"]


@pytest.mark.parametrize("width", [pytest.param(60, marks=pytest.mark.slow), 80, 44])
def test_runs_break_between_words_and_name_their_settings(
    nablab_here: Nablab, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    widths = "widths=2,3,4,5,6,7,8,9,10,11,12"
    for more in ((), ("learning_rate=0.02", widths)):
        assert (
            nablab_here(
                "run", "toy", "--preset", "quick", "steps=20", *more, "--quiet"
            ).returncode
            == 0
        )
    facts = json.loads(nablab_here("runs", "--json").stdout)
    monkeypatch.setattr(app.output, "_width", width)
    lines = nablab_here("runs").stdout.splitlines()
    assert max(map(len, lines)) <= width
    said = {word.rstrip(",:") for line in lines for word in line.split()}
    for fact in facts:
        assert {f"toy/{fact['run']}", "quick", "done", "steps=20"} <= said
    assert {"learning_rate=0.02", widths} <= said
    assert facts[0]["settings"] == [widths, "steps=20", "learning_rate=0.02"]


@pytest.mark.parametrize("width", [40, 80])
def test_show_holds_claims_and_exercises_and_cuts_nothing(
    nablab_here: Nablab, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(app.output, "_width", width)
    for name in ("random-labels", "cnn-depth", "toy"):
        text = nablab_here("show", name).stdout
        experiment = catalogue.find(name)
        whole = " ".join(text.split())
        assert "`" not in text
        assert "…" not in text
        for point in (
            *(claim.sentence for claim in experiment.claims),
            *experiment.exercises,
        ):
            assert " ".join(point.replace("`", "").rstrip(".").split()) in whole
        joined = re.sub(r"([,;]) *\n", r"\1", text)
        for field in configuration.describe(experiment):
            assert f"{field.name}={field.default}" in joined


def test_texts_name_the_option_for_a_preset() -> None:
    for entry in catalogue.scan().values():
        assert entry.experiment
        texts = [entry.experiment.__doc__ or "", *entry.experiment.exercises]
        assert not [text for text in texts if "preset=" in text], entry.name


def test_a_dry_run_says_at_most_where_training_may_end_early(
    nablab_here: Nablab,
) -> None:
    words = [
        "data=digits@60",
        "networks=flatten-3",
        "shares=0",
        "epochs=1",
        "batch_size=30",
        "--seeds",
        "1",
    ]
    done = nablab_here("run", "random-labels", *words, "--dry-run")
    assert "at most 2" in done.stdout
    assert "at most about" in done.stdout
    done = nablab_here("run", "toy", "steps=20", "--seeds", "1", "--dry-run")
    assert "at most" not in done.stdout


def test_show_and_the_dry_run_name_claims_that_the_seeds_cannot_decide(
    nablab_here: Nablab,
) -> None:
    shown = " ".join(nablab_here("show", "sharpness").stdout.split())
    assert (
        "5 seeds cannot decide 5 of the claims: five batch sizes at one learning rate"
    ) in shown
    assert "- The gap rises with Keskar's sharpness (takes more conditions)" in shown
    assert "cannot decide" not in nablab_here("show", "deep-vs-shallow").stdout
    words = [
        "run",
        "deep-vs-shallow",
        "--preset",
        "quick",
        "steps=20",
        "targets=sawtooth",
        "--dry-run",
    ]
    dry = " ".join(nablab_here(*words, "--seeds", "5").stdout.split())
    assert (
        "5 seeds cannot decide 1 of the claims on their own, whatever they give:"
    ) in dry
    assert (
        "- Training does not find the sawtooth, although a smaller network equals it"
    ) in dry
    assert "(takes at least 6 seeds)" in dry
    (facts,) = json.loads(nablab_here(*words, "--seeds", "5", "--json").stdout)
    assert [one["seeds"] for one in facts["undecided"]] == [6]
    assert "cannot decide" not in nablab_here(*words, "--seeds", "6").stdout


def test_show_lists_what_others_reported(nablab_here: Nablab) -> None:
    shown = " ".join(nablab_here("show", "deep-vs-shallow").stdout.split())
    assert (
        "a course (sinc, deep network, Adam): epochs until the loss is 0.001 961, "
        "1 seed"
    ) in shown
    facts = json.loads(nablab_here("show", "deep-vs-shallow", "--json").stdout)
    assert facts["reported"][0]["value"] == 961


def test_an_experiment_whose_conditions_fail_is_still_shown(
    nablab_here: Nablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    leaving = LEAVING.format(on_import="").replace(
        'where: str = "run"', 'where: str = "conditions"'
    )
    (tmp_path / "own" / "leaving.py").write_text(leaving)
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path / "own"))
    done = nablab_here("show", "leaving")
    assert done.returncode == 0
    assert (
        "Whether 5 seeds can decide the claims is not known: SystemExit: 0"
    ) in " ".join(done.stdout.split())
