"""Numbers with bounds: what they take, what they refuse and how, and their words."""

from __future__ import annotations

import math
from typing import Annotated, Any

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablab.errors import UsageError
from nablab.settings import Epochs, Factor, NotNegative, Positive, Share, Steps
from nablab.settings.bounds import OutOfBounds, bounds_in_words
from nablab.settings.conforming import conform
from nablab.settings.limits import Ge, Gt, Le, Lt
from nablab.settings.reading import parse
from nablab.settings.words import in_words

REFUSED = [
    ("0", Positive, "x=0 is impossible: it must be above 0 and finite."),
    ("-1", Positive, "x=-1 is impossible: it must be above 0 and finite."),
    ("inf", Positive, "x=inf is impossible: it must be above 0 and finite."),
    ("-1", NotNegative, "x=-1 is impossible: it must be 0 or more and finite."),
    ("0", Steps, "x=0 is impossible: it must be above 0."),
    ("1e10", Steps, "x=1e10 is too large: it must be at most 1,000,000,000."),
    ("2e6", Epochs, "x=2e6 is too large: it must be at most 1,000,000."),
    ("-0.1", Share, "x=-0.1 is impossible: it must be from 0 to 1."),
    ("1.1", Share, "x=1.1 is too large: it must be at most 1."),
    ("0", Factor, "x=0 is impossible: it must be above 0 and at most 1."),
    ("-1e30", Steps, "x=-1e30 is impossible: it must be above 0."),
    (
        "-1e30",
        Annotated[int, Le(9)],
        "x=-1e30 is too small: it must be at least -9,223,372,036,854,775,807.",
    ),
    ("5", Annotated[int, Ge(6)], "x=5 is impossible: it must be 6 or more."),
    ("9", Annotated[int, Lt(9)], "x=9 is impossible: it must be below 9."),
    ("0.5,2", tuple[Share, ...], "x=2 is too large: it must be at most 1."),
    ("0", Steps | None, "x=0 is impossible: it must be above 0."),
    # Another member of a union must not take what the number's bound refuses.
    ("0", Steps | str, "x=0 is impossible: it must be above 0."),
]


@pytest.mark.parametrize(("text", "hint", "message"), REFUSED)
def test_a_number_out_of_bounds_is_refused(text: str, hint: Any, message: str) -> None:
    with pytest.raises(OutOfBounds) as refused:
        parse(text, hint, "x")
    assert str(refused.value) == message


@pytest.mark.parametrize("hint", [Positive, NotNegative, Share, Steps])
def test_python_values_meet_the_same_bounds(hint: Any) -> None:
    for value in (-1, -math.inf):
        with pytest.raises(UsageError):
            conform(value, hint, "x")
    assert conform(1, hint, "x") == 1


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("0", Share, 0.0),
        ("1", Share, 1.0),
        ("0", NotNegative, 0.0),
        ("1e9", Steps, 10**9),
        ("1", Factor, 1.0),
        ("none", Steps | None, None),
        ("many", Steps | str, "many"),
    ],
)
def test_numbers_on_the_bound_are_taken(text: str, hint: Any, value: Any) -> None:
    assert parse(text, hint, "x") == value
    assert conform(value, hint, "x") == value


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Positive, "number above 0"),
        (Steps, "whole number above 0"),
        (Share, "number from 0 to 1"),
        (Annotated[int, Gt(1), Le(512)], "whole number above 1 and at most 512"),
        (tuple[Share, ...], "numbers from 0 to 1, separated by commas"),
        (Steps | None, "whole number above 0 or none"),
        (
            tuple[tuple[Steps, ...], ...],
            "groups, separated by semicolons, of whole "
            "numbers above 0, separated by commas",
        ),
    ],
)
def test_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


def test_a_bound_that_only_guards_is_not_told() -> None:
    assert bounds_in_words(Epochs) == "above 0"
    assert bounds_in_words(Annotated[int, Le(512)]) == "at most 512"


@pytest.mark.parametrize(
    ("foreign", "words", "refused"),
    [
        (annotated_types.Gt(0), "above 0", 0),
        (annotated_types.Ge(2), "2 or more", 1),
        (annotated_types.Lt(9), "below 9", 9),
        (annotated_types.Le(9), "at most 9", 10),
        (annotated_types.Interval(ge=0, lt=1), "0 or more and below 1", 1),
    ],
)
def test_bounds_of_annotated_types_are_the_same(
    foreign: Any, words: str, refused: float
) -> None:
    hint = Annotated[float, foreign]
    assert bounds_in_words(hint) == words
    with pytest.raises(OutOfBounds):
        conform(refused, hint, "x")


@given(st.from_type(Annotated[int, Gt(2), Le(5)]))
def test_hypothesis_makes_values_within_the_bounds(value: int) -> None:
    assert 2 < value <= 5
