"""The pages say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Nablab

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_experiments_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "write_docs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{done.stdout}{done.stderr}\nRun 'make docs' and commit the pages."
    )


@pytest.mark.parametrize("name", ["MomentumHelps", "CriticSteps"])
def test_the_experiments_of_the_guide_run(
    name: str, nablab_here: Nablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```",
        (ROOT / "docs" / "writing-an-experiment.md").read_text(),
        re.S,
    )
    (block,) = [block for block in blocks if f"class {name}(Experiment)" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 60
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(block)
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path / "own"))
    command = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
    done = nablab_here("run", command, "--preset", "quick")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_and_to_pictures_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [
        link
        for link in links
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:src|docs|tests|benchmarks|tools)/[\w./-]+\.\w+)`", page.read_text()
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_example_of_a_loop_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nablab_here: Nablab
) -> None:
    page = (ROOT / "docs" / "writing-an-experiment.md").read_text()
    example = (
        page.split("## A loop of your own")[1].split("```python\n")[1].split("```")[0]
    )
    (tmp_path / "wider_margin.py").write_text(example)
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(tmp_path))
    done = nablab_here("run", "wider-margin", "--preset", "quick", "--seeds", "10")
    assert done.returncode == 0, done.stderr
    assert "supported" in done.stdout
    report = next(tmp_path.glob("runs/wider-margin/*/report.html"))
    assert "mistakes" in report.read_text()
    foretold = nablab_here("run", "wider-margin", "--preset", "quick", "--dry-run")
    assert "own loop" in foretold.stdout
