"""The small drawings: what stands where corresponds to the numbers, whatever the kind
of claim.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablab.contract import Claim, Published, Records
from nablab.report import forest
from nablab.report.forest import HALF, MIDDLE, WIDTH, Places, drawing, places
from nablab.verdicts import Axis, Verdict, judge
from tests.report.conftest import fake_verdict
from tests.verdicts.simulation import records_of
from tests.verdicts.test_judging import HIGH, LOW, MIXED, less
from tests.verdicts.test_judging import MIDDLE as BETWEEN

AXIS = Axis(line=-0.2, side=-1, line_text="0.200 lower", zero_text="equal")


def drawn(
    effect: float, low: float, high: float, **changes: Any
) -> tuple[Places, Axis]:
    axis = replace(AXIS, **changes)
    return places(
        fake_verdict(effect=effect, interval=(low, high), axis=axis), axis
    ), axis


def test_positions_are_proportional_to_distances_from_the_line() -> None:
    at, _ = drawn(-0.6, -1.2, -0.4)
    # The claim is of less, so lower values lie to the right; the farthest end is half
    # the width away.
    assert at.high == pytest.approx(MIDDLE + HALF)
    assert at.effect == pytest.approx(MIDDLE + 0.4 * HALF)
    assert at.low == pytest.approx(MIDDLE + 0.2 * HALF)
    assert at.zero == pytest.approx(MIDDLE - 0.2 * HALF)
    assert at.published is None


@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.sampled_from([-1, 1]),
)
def test_the_side_of_the_line_is_the_side_of_the_numbers(
    one: float, two: float, three: float, line: float, side: int
) -> None:
    low, effect, high = sorted((one, two, three))
    at, axis = drawn(effect, low, high, line=line, side=side)
    for x, value in ((at.effect, effect), (at.zero, 0.0)):
        assert (x > MIDDLE) <= (axis.side * value > axis.side * line)
        assert (x < MIDDLE) <= (axis.side * value < axis.side * line)
    assert at.low is not None
    assert at.high is not None
    assert 0 <= at.low <= at.effect <= at.high <= WIDTH


@pytest.mark.parametrize(
    "claim",
    [
        less(),
        less(smallest_effect=0.5),
        less(scale="log10", smallest_effect=0.1),
        less(scale="ranks"),
        Claim.greater("error", "a", "b", by="model"),
        Claim.equal("error", by="model", margin=0.5),
    ],
)
@pytest.mark.parametrize(
    ("a", "b"), [(LOW, HIGH), (HIGH, LOW), (MIXED, BETWEEN), (LOW, LOW[::-1])]
)
def test_the_bar_tells_the_outcome(
    claim: Claim, a: list[float], b: list[float]
) -> None:
    (verdict,) = judge([claim], Records(records_of({"a": a, "b": b})))
    assert verdict.axis is not None
    at = places(verdict, verdict.axis)
    if verdict.outcome == "supported":
        assert (at.low or 0.0) > MIDDLE
    elif verdict.outcome == "refuted":
        assert at.high is not None
        assert at.high < MIDDLE
    elif (
        at.low is not None
        and at.high is not None
        and (verdict.p_adjusted or 1.0) < 0.05
    ):
        assert at.low <= MIDDLE <= at.high


@pytest.mark.parametrize(
    ("claim", "side"),
    [
        (Claim.at_most("error", 3.0), 1),
        (Claim.at_least("error", 3.0), -1),
        (Claim.at_most("error", 3.0, scale="log10"), 1),
    ],
)
def test_a_bound_stands_in_the_middle_and_names_itself(claim: Claim, side: int) -> None:
    claim = replace(claim, published=Published(2.0, "a course", of="metric"))
    (verdict,) = judge([claim], Records(records_of({"a": LOW})))
    assert verdict.axis is not None
    at = places(verdict, verdict.axis)
    assert (at.effect - MIDDLE) * side > 0
    assert at.published is not None
    # 2 lies between the bound of 3 and the mean of about 1.
    assert abs(at.published - MIDDLE) < abs(at.effect - MIDDLE)
    assert ">3.00</text>" in drawing(verdict, "one")


def test_the_published_effect_stands_on_the_axis_of_the_effect() -> None:
    claim = less(published=Published(-3.05, "a course"))
    (verdict,) = judge([claim], Records(records_of({"a": LOW, "b": HIGH})))
    assert verdict.axis is not None
    at = places(verdict, verdict.axis)
    assert at.published == pytest.approx(at.effect)
    level = replace(claim, published=Published(1.0, "a course", of="metric"))
    (verdict,) = judge([level], Records(records_of({"a": LOW, "b": HIGH})))
    assert verdict.axis is not None
    # a level has no place on an axis of differences
    assert verdict.axis.published is None


def test_what_is_far_out_is_cut_at_the_edge_and_gets_an_arrow() -> None:
    at, axis = drawn(-0.6, -math.inf, -0.4, published=5.0)
    assert at.cut == {"high", "published"}
    assert at.high == pytest.approx(MIDDLE + HALF)
    assert at.published == pytest.approx(MIDDLE - HALF)
    verdict = fake_verdict(effect=-0.6, interval=(-math.inf, -0.4), axis=axis)
    assert 'class="beyond"' in drawing(verdict, "one")


def test_the_svg_holds_the_positions(records: Records) -> None:
    verdict = fake_verdict(
        effect=-0.6, interval=(-1.2, -0.4), axis=replace(AXIS, published=-0.8)
    )
    at = places(verdict, AXIS)
    svg = drawing(verdict, "forest-1")
    assert f'<circle class="dot" cx="{at.effect:.1f}"' in svg
    assert f'<line class="bar" x1="{at.low:.1f}" x2="{at.high:.1f}"' in svg
    assert f'<line class="zero" x1="{at.zero:.1f}"' in svg
    assert f'<path class="published" d="M{MIDDLE + 0.6 * HALF:.1f} ' in svg
    assert re.search(
        r'role="img" aria-labelledby="forest-1"><title id="forest-1">[^<]+</title>', svg
    )
    assert "0.200 lower" in svg


def test_labels_of_line_and_nil_do_not_touch() -> None:
    near = fake_verdict(effect=-6.0, interval=(-9.0, -3.0), axis=AXIS)
    assert len(re.findall("<text", drawing(near, "one"))) == 1
    far = fake_verdict(effect=-0.21, interval=(-0.3, -0.2), axis=AXIS)
    assert len(re.findall("<text", drawing(far, "one"))) == 2


def test_nothing_measured_is_not_drawn_and_words_are_escaped() -> None:
    assert drawing(fake_verdict(), "one") == ""
    assert drawing(fake_verdict(effect=None, axis=AXIS), "one") == ""
    hostile = fake_verdict(effect_text="<script>", axis=replace(AXIS, line_text="<b>"))
    assert "<script>" not in drawing(hostile, "one")
    assert "<b>" not in drawing(hostile, "one")


def test_a_single_value_on_the_line_is_drawn_in_the_middle() -> None:
    axis = replace(AXIS, line=0.0)
    verdict: Verdict = fake_verdict(effect=0.0, interval=None, axis=axis)
    at = forest.places(verdict, axis)
    assert (at.effect, at.zero, at.low) == (MIDDLE, MIDDLE, None)
