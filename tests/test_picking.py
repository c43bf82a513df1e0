"""Conditions are found by their levels; what singles none out is a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nablab.contract import Condition
from nablab.errors import UsageError
from nablab.runs.picking import pick_condition

CONDITIONS = [
    Condition(target="sinc, or so", width=2, norm=True),
    Condition(target="sinc, or so", width=4, norm=False),
    Condition(target="a=b", width=4, norm=False),
    Condition(target="a=b", rate=0.001),
    Condition(target="a=b", rate=0.001, width=8),
]


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("width=2", 0),
        ("target=sinc, or so, width=4", 1),
        ("target=a=b,norm=false", 2),
        ("rate=1e-3, width=8", 4),
        ({"width": 2, "norm": True}, 0),
        # the whole of it, though another one has the same and more
        ({"target": "a=b", "rate": 0.001}, 3),
        (CONDITIONS[4], 4),
        ("norm=TRUE", 0),
        ("width=2.0", 0),
    ],
)
def test_levels_find_a_condition(wanted: Mapping[str, Any] | str, place: int) -> None:
    assert pick_condition(CONDITIONS, wanted) == CONDITIONS[place]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("", r"Which condition\? 5 fit: target=sinc, or so, width=2, norm=True; "),
        (
            "width=4",
            r"2 fit: target=sinc, or so, width=4, norm=False; target=a=b, width=4, no",
        ),
        ("wdith=4", "no factor 'wdith'. Did you mean 'width'"),
        ("width=3", "no level of 'width' '3'.*Choices: 2, 4, 8"),
        ("width=2, norm=false", "no level of 'norm' 'false'.*Choices: True"),
        (
            "deep",
            "'deep' is not a level. Write factor=level; factors: target, width, "
            "norm, rate",
        ),
        ({"width": 99}, "no level of 'width' '99'"),
    ],
)
def test_what_singles_none_out_is_said(
    wanted: Mapping[str, Any] | str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pick_condition(CONDITIONS, wanted)


def test_of_many_conditions_a_dozen_is_listed() -> None:
    with pytest.raises(UsageError, match=r"30 fit.*; and 18 more. Give"):
        pick_condition([Condition(width=width) for width in range(30)], "")
