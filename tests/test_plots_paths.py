"""Drawings of paths in a plane: every run, its start and end, and the values of its
points.
"""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex

from nablab.plots import Plane, paths
from nablab.plots.style import COLORS


def plane(title: str, runs: int = 2, points: int = 5, low: float = 1e-3) -> Plane:
    draw = np.random.default_rng(len(title))
    xy = {run: draw.normal(size=(points, 2)) for run in range(runs)}
    return Plane(
        title, xy, {run: np.geomspace(1, low, points) for run in xy}, (0.613, 0.152)
    )


def test_every_run_has_a_line_a_start_an_end_and_dots_by_value() -> None:
    first, second = plane("first"), plane("second panel", runs=3, low=1e-5)
    figure = paths([first, second], title="Ways", caption="See.")
    axes = [ax for ax in figure.figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in axes] == ["first", "second panel"]
    for ax, shown in zip(axes, (first, second), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == (
            "component 1 (61 %)",
            "component 2 (15 %)",
        )
        lines, dots = ax.get_lines(), ax.collections
        assert (len(lines), len(dots)) == (3 * len(shown.runs), len(shown.runs))
        for run, xy in shown.runs.items():
            whole, start, end = lines[3 * run : 3 * run + 3]
            np.testing.assert_array_equal(np.c_[whole.get_data()], xy)
            np.testing.assert_array_equal(np.c_[start.get_data()], xy[:1])
            np.testing.assert_array_equal(np.c_[end.get_data()], xy[-1:])
            assert (
                start.get_marker(),
                start.get_markerfacecolor(),
                end.get_marker(),
            ) == ("o", "none", "s")
            assert {to_hex(line.get_color()) for line in (whole, start, end)} == {
                COLORS[run]
            }
            np.testing.assert_array_equal(dots[run].get_offsets(), xy)
            np.testing.assert_array_equal(dots[run].get_array(), shown.values[run])
            assert isinstance(dots[run].norm, LogNorm)
            assert (dots[run].norm.vmin, dots[run].norm.vmax) == pytest.approx(
                (1e-5, 1)
            )
    assert [text.get_text() for text in figure.figure.legends[0].get_texts()] == [
        "start",
        "end",
    ]
    bar = figure.figure.axes[-1]
    assert bar.get_xlabel() == "training loss (MSE)"
    assert [label.get_text() for label in bar.get_xticklabels()] == [
        "10⁻⁵",
        "10⁻⁴",
        "10⁻³",
        "10⁻²",
        "10⁻¹",
        "10⁰",
    ]
    assert figure.caption.startswith("See. Each run has a color")
    assert "first (2 runs), second panel (3 runs)" in figure.alt


def test_the_table_holds_what_is_drawn() -> None:
    shown = plane("only")
    table = paths([shown], columns=1).table
    assert set(table) == {"panel", "run", "point", "x", "y", "value"}
    assert table["panel"] == ["only"] * 10
    assert table["run"] == [0] * 5 + [1] * 5
    assert table["point"] == [0, 1, 2, 3, 4] * 2
    np.testing.assert_array_equal(table["y"][5:], shown.runs[1][:, 1])
    np.testing.assert_array_equal(table["value"][:5], shown.values[0])


def test_spare_panels_are_left_out_and_nothing_to_draw_is_a_figure() -> None:
    figure = paths([plane("a"), plane("b"), plane("c")]).figure
    assert len([ax for ax in figure.axes if ax.get_title(loc="left")]) == 3
    assert len(figure.axes) == 4  # and the color bar
    assert paths([]).table["x"] == []


def test_values_that_have_no_logarithm_still_draw() -> None:
    shown = plane("a")
    figure = paths(
        [Plane("a", shown.runs, {0: np.zeros(5), 1: np.full(5, np.nan)}, (0.5, 0.5))]
    )
    figure.figure.canvas.draw()
    assert len(figure.table["x"]) == 10
