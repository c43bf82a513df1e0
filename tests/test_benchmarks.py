"""The benchmarks: the race is equal, works without JAX, and its tables say what was
measured.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import presets, replicas, startup
from benchmarks.__main__ import main
from benchmarks.cases import ALL, QUICK, Case
from benchmarks.child import Cost, cost
from benchmarks.peers import Side
from benchmarks.peers.laboratory import Fit
from benchmarks.peers.notebook import PlainLoop
from benchmarks.replicas import UnequalRace, check_equal
from benchmarks.table import Goal, Table, goals_table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab.training.engine import FloatArray

TINY = Case("tiny", "1-4-1", "relu", 20, 2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads of PyTorch wait for each other at every operation when other tests
    hold the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_quick_race_prints_its_rows_and_says_that_jax_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr("benchmarks.cases.QUICK", (TINY,))
    page = tmp_path / "page.md"
    main(["--quick", "--only", "replicas", "--repeats", "1", "--output", str(page)])
    printed, written = capsys.readouterr().out, page.read_text(encoding="utf-8")
    for text in (printed, written):
        assert "tiny 13 P, 20 points" in text
        assert (
            "No JAX vmap+jit+scan: JAX is not installed: pip install 'nablab[bench]'"
        ) in text
        assert "PyTorch loop, fused Adam" in text
        assert "batched engine" in text
    assert "| tiny 13 P, 20 points | 2 |" in written


def test_without_a_compiler_the_race_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    findings = replicas.measure(
        [TINY], repeats=1, turn_seconds=0.01, say=lambda text: None
    )
    ratios, times = findings.tables
    assert any("No engine alone: no C compiler found" in note for note in ratios.notes)
    assert any("cannot compile" in note for note in times.notes)


def test_ratios_count_compilation_on_both_sides() -> None:
    """Our side: 1 s to compile and 1 µs; theirs: 3 s and 1 µs.

    So (3 + 20,000·2·1e-6) / (1 + 0.04).
    """
    race = replicas.ratios_of_totals(
        {"nablab": [1e-6], "theirs": [1e-6]}, {"nablab": 1.0, "theirs": 3.0}, replicas=2
    )
    assert race["theirs"] == [pytest.approx(3.04 / 1.04)]
    assert race["nablab"] == [1.0]


def test_the_plain_loop_computes_what_fit_computes() -> None:
    sides: list[Side] = [
        Fit(TINY, 0.0),
        PlainLoop(TINY, fused=False),
        PlainLoop(TINY, fused=True),
    ]
    assert 0 < check_equal(sides) < 1e-5


def test_an_unequal_race_is_refused() -> None:
    with pytest.raises(
        UnequalRace, match="'theirs' and 'nablab' start from equal weights"
    ):
        check_equal([_Scripted("nablab"), _Scripted("theirs", loss=1.01)])


def test_the_distance_is_relative_to_the_loss() -> None:
    sides = [_Scripted("nablab", loss=4.0), _Scripted("theirs", loss=4.0004)]
    assert check_equal(sides) == pytest.approx(1e-4)


def test_a_side_that_gives_no_number_is_refused() -> None:
    with pytest.raises(UnequalRace):
        check_equal([_Scripted("nablab"), _Scripted("theirs", loss=float("nan"))])


def test_the_notebooks_loop_starts_anew_from_the_same_weights() -> None:
    side = PlainLoop(TINY, fused=False)
    first = side.train(5)
    side.start()
    np.testing.assert_array_equal(side.train(5), first)


def test_the_cases_have_the_sizes_that_they_are_known_by() -> None:
    sizes = {case.name: (case.parameters, case.points) for case in ALL}
    assert sizes == {
        "deep": (571, 300),
        "middle": (572, 300),
        "shallow": (571, 300),
        "wide": (2361, 4000),
    }
    assert [case.replicas for case in ALL if case.name == "deep"] == [10, 30, 100]
    assert QUICK[0] in ALL


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = take_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, 3)
    assert order == ["a", "b"] * 3
    assert values == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_a_spread_holds_the_median_and_the_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (3.849, "3.85"),
        (187.4, "187"),
        (999.9, "1,000"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert significant(value) == text


def test_a_spread_without_width_shows_one_number() -> None:
    assert spread_text(Spread(2.0, 2.0, 2.0), "x") == "2x"
    assert spread_text(Spread(14.23, 14.0, 15.01), "x") == "14.2x (14–15)"


def test_a_table_is_aligned_text_and_markdown() -> None:
    table = Table(
        "Title", ("name", "µs"), [("a|b", "1.5"), ("longer", "12")], ["a note"]
    )
    assert table.text().splitlines() == [
        "Title",
        "",
        "name     µs",
        "------  ---",
        "a|b     1.5",
        "longer   12",
        "",
        "a note",
    ]
    assert table.markdown().splitlines() == [
        "## Title",
        "",
        "| name | µs |",
        "| --- | ---: |",
        "| a\\|b | 1.5 |",
        "| longer | 12 |",
        "",
        "- a note",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table("Title", ("one",), [("a", "b")])


def test_goals_stand_in_the_order_in_which_they_were_measured() -> None:
    goal = Goal("memory", "0.5 GB", "1.5 GB", "0.8 GB")
    assert goals_table([goal]).rows == [("memory", "0.5 GB", "1.5 GB", "0.8 GB")]


def test_a_childs_peak_memory_is_its_own() -> None:
    """100 MB that the child holds show up; the PyTorch that this process holds does
    not.
    """
    small = cost([sys.executable, "-S", "-c", "pass"])
    large = cost([sys.executable, "-S", "-c", "b'x' * 100_000_000"])
    assert small.exit_code == large.exit_code == 0
    assert small.peak_bytes < 40e6
    assert 100e6 < large.peak_bytes - small.peak_bytes + 5e6 < 130e6


def test_a_child_that_fails_says_why() -> None:
    done = cost([sys.executable, "-c", "raise SystemExit('no luck')"])
    assert (done.exit_code, done.complaint) == (1, "no luck")


def test_start_up_measures_the_three_commands() -> None:
    findings = startup.measure(repeats=1)
    names = ["nablab --help", "nablab list", "nablab show deep-vs-shallow"]
    assert [goal.measure for goal in findings.goals] == names
    assert [row[0] for row in findings.tables[0].rows] == [*names, "python -c pass"]


def test_a_preset_is_run_from_nothing_and_a_failed_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[tuple[Sequence[str], dict[str, str]]] = []

    def scripted(command: Sequence[str], **environment: str) -> Cost:
        commands.append((command, environment))
        if "standard" in command:
            return Cost(1.0, 1, 1, "it broke")
        return Cost(12.0, 500_000_000, 0, "")

    monkeypatch.setattr("benchmarks.presets.cost", scripted)
    findings = presets.measure(["quick", "standard"], repeats=2, say=lambda text: None)
    table = findings.tables[0]
    assert table.rows == [("quick", "2", "12 s", "0.5 GB")]
    assert table.notes[0] == "standard ended with 1: it broke"
    assert [goal.measured for goal in findings.goals] == ["12 s", "0.5 GB"]
    assert len({environment["NABLAB_CACHE"] for _, environment in commands}) == 4


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)
def test_jax_computes_the_same() -> None:
    """In a process of its own: JAX's first import decides how many devices it has."""
    lines = (
        "from benchmarks.cases import ALL",
        "from benchmarks.peers.jax_scan import JaxScan",
        "from benchmarks.peers.laboratory import Fit",
        "from benchmarks.replicas import check_equal",
        "for case in (ALL[0], ALL[-2]):",
        "    check_equal([Fit(case, 0), JaxScan(case, per_core=True), JaxScan(case, "
        "per_core=False)])",
    )
    subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        check=True,
        cwd=Path(__file__).parents[1],
    )


class _Scripted:
    """A side with a constant loss."""

    replicas = 2
    compile_seconds = 0.0

    def __init__(self, name: str, loss: float = 1.0) -> None:
        self.name, self._loss = name, loss

    def start(self) -> None:
        pass

    def train(self, steps: int) -> FloatArray:
        return np.full((steps, self.replicas), self._loss)
