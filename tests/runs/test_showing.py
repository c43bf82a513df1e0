"""What a notebook and a Python prompt show of a run."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import nablab
from nablab.report.notebook import in_lines, summary
from nablab.runs import Run
from nablab.verdicts.answering import answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("a store") / "runs #1"
    with pytest.MonkeyPatch.context() as patch:
        toys = Path(__file__).parents[1] / "toys"
        patch.setenv("NABLAB_EXPERIMENTS", str(toys))
        return nablab.run("toy", preset="quick", store=store)


def test_a_notebook_shows_the_answer_and_a_row_per_claim(run: Run) -> None:
    shown = run._repr_html_()
    assert run.experiment.question() in html.unescape(shown)
    assert shown.count("<tr>") == len(run.verdicts) > 0
    assert run.verdicts[0].outcome in shown
    assert "This run is" not in shown


@pytest.mark.parametrize("inside", [True, False])
def test_a_notebook_links_the_report(
    run: Run, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    page = run.folder.path / "report.html"
    here = run.folder.path.parents[2] if inside else Path(__file__).parent
    monkeypatch.chdir(here)
    found = re.search(r'<a href="([^"]*)"[^>]*>(.*?)</a>', run._repr_html_())
    assert found is not None
    parts = urlsplit(html.unescape(found[1]))
    assert parts.scheme == ("" if inside else "file")
    assert not parts.fragment  # the sign # in a name is none
    assert (here / unquote(parts.path)).samefile(page)
    assert str(page) in html.unescape(found[2])


def test_no_report_is_no_link() -> None:
    assert "<a " not in summary("Why?", "done", [], Path("none"))
    assert "Report" not in in_lines("Run", [], Path("none"))


def test_what_an_experiment_says_is_text_in_a_notebook() -> None:
    shown = summary("<script>1</script>?", "interrupted", [], Path("none"))
    assert "<script>" not in shown
    assert "This run is interrupted." in shown


def test_a_prompt_shows_which_run_it_is_how_far_and_the_answer(run: Run) -> None:
    first, *middle, last = repr(run).splitlines()
    assert first == f"Run of toy, {run.folder.path.name}: done, 6 of 6 trials"
    assert " ".join(middle) == answer(run.verdicts)
    assert max(map(len, middle)) <= 80
    assert last == f"Report: {run.folder.path / 'report.html'}"


def test_a_prompt_shows_what_went_wrong() -> None:
    run = nablab.run("toy", preset="quick", fail=4, progress=False)
    first, *rest = repr(run).splitlines()
    assert first.endswith(": failed, 3 of 6 trials")
    assert "this width was asked to fail" in " ".join(rest)


def test_a_run_without_trials_has_no_answer() -> None:
    run = nablab.run("toy", preset="quick", widths=(4,), fail=4)
    first, *rest = repr(replace(run, messages=())).splitlines()
    assert first.endswith(": failed, 0 of 3 trials")
    assert rest == []


def test_a_prompt_never_breaks_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in a claim")

    monkeypatch.setattr(type(run.experiment), "active_claims", broken)
    shown = repr(nablab.open_run(str(run.folder.path)))
    assert shown.startswith(f"Run of toy, {run.folder.path.name}\n")
    assert "ZeroDivisionError: in a claim" in " ".join(shown.split())


def test_a_run_whose_folder_is_gone_is_still_shown() -> None:
    run = nablab.run("toy", preset="quick")
    other = nablab.open_run(str(run.folder.path))
    run.folder.path.rename(run.folder.path.with_name("away"))
    assert repr(other).startswith(f"Run of toy, {run.folder.path.name}: incomplete, 0")
