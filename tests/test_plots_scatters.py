"""A metric against another: the dots are the trials, tau is that of the verdict."""

from __future__ import annotations

import math

import pytest

from nablab import plots
from nablab.contract import Claim, Condition, Record, Records
from nablab.verdicts import judge


def records() -> Records:
    return Records(
        Record(
            Condition(size=size),
            seed,
            {"a": size + 0.1 * seed, "b": -size - seed, "y": size + 0.3 * seed},
        )
        for size in (1, 2, 4)
        for seed in range(4)
    )


def test_every_trial_is_a_dot_and_tau_is_the_verdicts() -> None:
    found = plots.scatter(
        records(), {"first": "a", "second": "b"}, y="y", color_by="size", y_label="gap"
    )
    axes = found.figure.axes
    assert [ax.get_xlabel() for ax in axes] == ["first", "second"]
    assert axes[0].get_ylabel() == "gap"
    assert sorted(x for line in axes[0].lines for x in line.get_xdata()) == sorted(
        records().values("a")
    )
    assert sorted(y for line in axes[0].lines for y in line.get_ydata()) == sorted(
        records().values("y")
    )
    drawn = [
        x
        for x, panel in zip(found.table["x"], found.table["panel"], strict=True)
        if panel == "first"
    ]
    assert sorted(x for x in drawn if x != "") == sorted(records().values("a"))
    verdict = judge([Claim.correlates("a", "y", paired=True)], records())[0]
    taus = [value for value in found.table["tau"] if value != ""]
    assert taus[0] == verdict.effect
    assert axes[0].get_title("left").startswith(f"τ = {verdict.effect:.2f} (")
    assert axes[1].get_title("left").startswith("τ = −")
    assert "dot is a trial" in found.caption
    assert len({len(column) for column in found.table.values()}) == 1


def test_values_that_cannot_be_drawn_are_said() -> None:
    broken = Records(
        [
            *records(),
            Record(Condition(size=1), 9, {"a": math.nan, "y": 1.0}),
            Record(Condition(size=1), 10, {}),
        ]
    )
    assert "First: 1 trial has" in plots.scatter(broken, {"first": "a"}, y="y").caption


def test_values_below_0_have_a_place_on_a_logarithmic_axis() -> None:
    values = [0.0, -5.0, 1e-3, 10.0, 1e4]
    wide = Records(
        Record(Condition(size=1), k, {"a": value, "y": float(k)})
        for k, value in enumerate(values)
    )
    figure = plots.scatter(wide, {"first": "a"}, y="y", log_x=True)
    (ax,) = figure.figure.axes
    assert ax.get_xscale() == "symlog"
    assert sorted(ax.lines[0].get_xdata()) == sorted(values)
    assert "the axis of first is linear up to 10⁻³ and logarithmic" in figure.caption
    # twelve trials below 0, of about one size: nothing that a logarithm helps to see
    plain = plots.scatter(records(), {"second": "b"}, y="y", log_x=True)
    assert plain.figure.axes[0].get_xscale() == "linear"
    assert len(plain.figure.axes[0].lines[0].get_xdata()) == 12
    assert "logarithmic" not in plain.caption


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_few_records_draw(kept: int) -> None:
    few = Records(list(records())[:kept])
    found = plots.scatter(few, {"first": "a"}, y="y", color_by="size")
    assert "τ" not in found.figure.axes[0].get_title("left")


def test_wide_values_get_a_logarithmic_axis() -> None:
    wide = Records(
        Record(Condition(size=1), k, {"a": 10.0**k, "y": float(k)}) for k in range(5)
    )
    assert (
        plots.scatter(wide, {"first": "a"}, y="y").figure.axes[0].get_xscale() == "log"
    )
    assert (
        plots.scatter(records(), {"first": "a"}, y="y").figure.axes[0].get_xscale()
        == "linear"
    )
