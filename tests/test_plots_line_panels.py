"""Drawings of quantities along a line: every seed, the mean over seeds, its interval,
the two ends.
"""

from __future__ import annotations

import numpy as np
import pytest

from nablab.contract import Condition, Record, Records
from nablab.plots import LinePanel, line_panels, lines_of
from nablab.plots.style import COLORS

X = np.linspace(-1, 2, 7)


def runs(*values: float) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {seed: (X, np.full(7, value)) for seed, value in enumerate(values)}


def test_every_seed_is_thin_and_their_mean_thick() -> None:
    log = LinePanel("loss", "nats", {"a": runs(1.0, 100.0), "b": runs(5.0)}, log=True)
    plain = LinePanel("accuracy", "share", {"a": runs(0.2, 0.4)})
    figure = line_panels([log, plain], title="Lines", caption="See.")
    first, second = figure.figure.axes
    assert (first.get_ylabel(), first.get_yscale(), first.get_title(loc="left")) == (
        "nats",
        "log",
        "loss",
    )
    assert (second.get_ylabel(), second.get_yscale()) == ("share", "linear")
    thick = [line for line in first.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(thick[0].get_ydata(), 10)  # geometric
    np.testing.assert_allclose(
        [line.get_ydata() for line in second.lines if line.get_linewidth() == 2], 0.3
    )
    ends = [line.get_xdata()[0] for line in first.lines if line.get_linewidth() == 0.5]
    assert ends == [0, 1]
    assert {0.0, 1.0} <= set(first.get_xticks())
    assert figure.table["series"].count("a") == 28
    assert figure.table["value"][:7] == [1.0] * 7
    assert [text.get_text() for text in figure.figure.legends[0].get_texts()] == [
        "a",
        "b",
    ]
    assert "A single seed" in figure.caption


def test_the_band_is_students_interval_and_ends_where_values_end() -> None:
    values = (0.90, 0.94, 0.98)
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    for limits, top in (((-np.inf, np.inf), 0.94 + half), ((0.0, 1.0), 1.0)):
        figure = line_panels(
            [LinePanel("accuracy", "share", {"a": runs(*values)}, limits=limits)],
            columns=1,
        )
        corners = figure.figure.axes[0].collections[0].get_paths()[0].vertices
        assert corners[:, 1].max() == pytest.approx(top, rel=1e-5)
        assert corners[:, 1].min() == pytest.approx(0.94 - half, rel=1e-5)


def test_what_cannot_be_drawn_is_left_out_of_the_mean_and_said() -> None:
    broken = {**runs(1.0, 3.0), 2: (X, np.array([1, 1, np.inf, 1, 1, 1, 1]))}
    figure = line_panels(
        [LinePanel("loss", "nats", {"a": broken}, log=True)], columns=1
    )
    thick = [line for line in figure.figure.axes[0].lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(thick[0].get_ydata(), np.sqrt(3))
    assert "1 of 3 runs left out" in figure.caption


def test_colors_of_other_figures_can_be_left_out() -> None:
    panel = LinePanel("loss", "nats", {"a": runs(1.0), "b": runs(2.0)})
    for skip in (0, 4):
        lines = line_panels([panel], columns=1, skip=skip).figure.axes[0].lines
        thick = [line.get_color() for line in lines if line.get_linewidth() == 2]
        assert thick == list(COLORS[skip : skip + 2])


def test_no_panels_and_no_runs() -> None:
    assert line_panels([]).table["value"] == []
    assert (
        "No runs yet: a"
        in line_panels([LinePanel("loss", "nats", {"a": {}}, log=True)]).caption
    )


def test_series_come_from_the_records_that_have_them() -> None:
    arrays = {"x": X, "y": X**2}
    records = Records(
        Record(Condition(ends=ends), seed, {}, arrays=arrays if seed else {})
        for ends in ("order", "start")
        for seed in range(3)
    )
    found = lines_of(records, "x", "y", within=(0.0, 1.0))
    assert {label: list(seeds) for label, seeds in found.items()} == {
        "order": [1, 2],
        "start": [1, 2],
    }
    np.testing.assert_array_equal(found["start"][2][0], [0, 0.5, 1])
    np.testing.assert_array_equal(found["start"][2][1], [0, 0.25, 1])
