"""The figures of an experiment that draws none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nablab.contract import Condition, Curve, Record, Records
from nablab.plots import default_figures


def records(
    levels: dict[str, tuple[object, ...]], scalars: dict[str, float], **curves: float
) -> Records:
    """Two seeds of every combination; each curve falls from 1 by a factor."""
    conditions: list[dict[str, object]] = [{}]
    for factor, own in levels.items():
        conditions = [{**c, factor: level} for c in conditions for level in own]
    return Records(
        Record(
            Condition(**condition),
            seed,
            {name: value + 0.1 * seed for name, value in scalars.items()},
            {},
            {
                name: Curve(np.arange(3), np.array([1.0, factor**0.5, factor]))
                for name, factor in curves.items()
            },
        )
        for condition in conditions
        for seed in (0, 1)
    )


def test_every_curve_and_what_claims_are_about() -> None:
    found = default_figures(
        records({"width": (2, 4)}, {"a": 1.0, "b": 2.0, "c": 3.0}, loss=0.1, norm=0.5),
        ["c", "a", "c", "never_recorded"],
    )
    assert list(found) == ["curve loss", "curve norm", "c", "a"]


def test_all_numbers_where_no_claim_names_one() -> None:
    found = default_figures(records({"width": (2, 4)}, {"a": 1.0, "b": math.nan}))
    assert list(found) == ["a"]  # of NaN alone nothing can be drawn


@pytest.mark.parametrize(
    ("levels", "color", "panels"),
    [
        ({}, None, 1),
        ({"width": (2,)}, None, 1),
        ({"width": (2, 4)}, "width", 1),
        ({"width": (2, 4), "target": ("x", "y", "z")}, "target", 2),
        ({"rate": tuple(range(9)), "width": (2, 4)}, "width", 1),
    ],
)
def test_the_factor_with_the_most_levels_has_colors(
    levels: dict[str, tuple[object, ...]], color: str | None, panels: int
) -> None:
    figure = default_figures(records(levels, {"a": 1.0}))["a"].figure
    assert len(figure.axes) == panels
    assert figure.axes[0].get_xlabel() == (color or "")


@pytest.mark.parametrize(("factor", "scale"), [(0.5, "linear"), (0.01, "log")])
def test_curves_over_decades_have_a_logarithmic_axis(factor: float, scale: str) -> None:
    found = default_figures(records({"width": (2, 4)}, {"a": 1.0}, loss=factor))
    assert found["curve loss"].figure.axes[0].get_yscale() == scale
