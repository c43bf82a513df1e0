"""What an axis has no place for is counted in the caption, in every kind of figure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nablab import plots
from nablab.contract import Condition, Curve, Record, Records
from nablab.plots import frame
from nablab.plots.critical_points import outcomes

BELOW = "no place on a logarithmic axis: "
X = np.linspace(0.0, 1.0, 5)
GOOD = np.array([1.0, 0.5, 0.2, 0.1, 0.05])


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """A logarithm of 0 that nobody looks at is a figure with a hole."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trained(values: np.ndarray) -> Records:
    good, other = (
        Record(
            Condition(model="a"), seed, {}, curves={"loss": Curve(np.arange(1, 6), v)}
        )
        for seed, v in enumerate((GOOD, values))
    )
    return Records([good, other])


def curves(values: np.ndarray) -> plots.Figure:
    return plots.curves(trained(values), "loss")


def line_panels(values: np.ndarray) -> plots.Figure:
    runs = {0: (X, GOOD), 1: (X, values)}
    panel = plots.LinePanel("loss", "nats", {"a": runs}, log=True)
    return plots.line_panels([panel], columns=1)


def lines(values: np.ndarray) -> plots.Figure:
    records = Records(
        Record(Condition(model="a"), seed, {}, arrays={"alpha": X, "along": v})
        for seed, v in enumerate((GOOD, values))
    )
    return plots.lines(records, "alpha", "along")


def surfaces(values: np.ndarray) -> plots.Figure:
    plane = np.stack([GOOD, values])
    arrays = {"p_alphas": X, "p_betas": np.array([0.0, 1.0]), "p_values": plane}
    record = Record(Condition(model="a"), 0, {}, arrays=arrays)
    return plots.surfaces(Records([record]), "p", value_label="loss")


def paths(values: np.ndarray) -> plots.Figure:
    xy = np.stack([X, X**2], axis=1)
    plane = plots.Plane("one", {"a": xy}, {"a": values}, (0.6, 0.3))
    return plots.paths([plane], columns=1, value_label="loss")


def searched(values: np.ndarray) -> plots.Figure:
    records = Records(
        Record(
            Condition(model="a"),
            seed,
            {"loss": float(value), "share": 0.5, "reached": 1.0},
            {"reason": "gradient below tolerance"},
        )
        for seed, value in enumerate(values)
    )
    return outcomes(records, "loss", "share", ("loss", "share"), "Ends", "See.")


def trend(values: np.ndarray) -> plots.Figure:
    records = Records(
        Record(Condition(width=float(x)), 0, {"loss": float(value)})
        for x, value in zip(X, values, strict=True)
    )
    return plots.trend(records, "loss", x="width", log_y=True)


FIGURES = (curves, line_panels, lines, surfaces, paths, searched, trend)


@pytest.mark.parametrize("draw", FIGURES)
def test_values_without_a_logarithm_are_counted(
    draw: Callable[[np.ndarray], plots.Figure],
) -> None:
    assert "Not drawn" not in draw(GOOD).caption
    one = draw(np.array([1.0, 0.5, 0.0, 0.1, 0.05]))
    assert f"{BELOW}1 value of loss." in one.caption
    two = draw(np.array([1.0, 0.5, -0.2, 0.1, 0.0]))
    assert f"{BELOW}2 values of loss." in two.caption
    figure = two.figure
    figure.draw_without_rendering()


@pytest.mark.parametrize("draw", FIGURES)
def test_values_that_are_not_finite_are_counted(
    draw: Callable[[np.ndarray], plots.Figure],
) -> None:
    caption = draw(np.array([1.0, 0.5, math.nan, 0.1, -math.inf])).caption
    assert "since not finite: 2 values of loss." in caption
    assert BELOW not in caption


def test_a_plane_without_any_logarithm_is_left_empty() -> None:
    plane = {"p_alphas": X, "p_betas": X, "p_values": np.zeros((5, 5))}
    record = Record(Condition(model="a"), 0, {}, arrays=plane)
    figure = plots.surfaces(Records([record]), "p")
    assert f"{BELOW}25 values of training loss." in figure.caption
    assert not figure.figure.axes[0].collections


def test_a_mean_never_comes_from_a_logarithm_of_zero() -> None:
    thick = [
        line
        for line in lines(np.array([1.0, 0.0, 0.2, 0.1, 0.05])).figure.axes[0].lines
        if line.get_linewidth() == 2
    ]
    np.testing.assert_allclose(thick[0].get_ydata(), GOOD)


def test_a_run_whose_last_values_are_zero_has_not_ended_early() -> None:
    assert "ended early" not in curves(np.array([1.0, 0.5, 0.2, 0.0, 0.0])).caption
    assert (
        "ended early"
        in plots.curves(
            Records(
                [
                    *trained(GOOD),
                    Record(
                        Condition(model="a"),
                        2,
                        {},
                        curves={"loss": Curve(np.arange(1, 4), GOOD[:3])},
                    ),
                ]
            ),
            "loss",
        ).caption
    )


@pytest.mark.parametrize("first", [0, 1])
def test_step_0_on_a_logarithmic_axis_is_said(first: int) -> None:
    run = Curve(np.arange(first, first + 5), GOOD)
    records = Records([Record(Condition(model="a"), 0, {}, curves={"loss": run})])
    said = "Step 0 has no place on the logarithmic axis."
    assert (said in plots.curves(records, "loss", log_x=True).caption) == (first == 0)
    assert said not in plots.curves(records, "loss").caption


def test_counts_of_several_things_stand_in_one_sentence() -> None:
    notes = frame.Notes()
    for _ in range(600):
        notes.undrawn("error", below=2, not_finite=1)
    notes.undrawn("loss", below=1)
    assert notes.caption("See.") == (
        "See. Not drawn, since 0 and negative numbers have no place on a logarithmic "
        "axis: 1,200 values of error, 1 value of loss. Not drawn, since not finite: "
        "600 values of error."
    )
