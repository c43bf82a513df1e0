"""Values of fields for property tests, made from what the fields say of themselves."""

from __future__ import annotations

import typing
from typing import Any, Literal

import annotated_types  # noqa: F401 (hypothesis looks for bounds only where it is imported)
from hypothesis import strategies as st

from nablab.settings.bounds import LARGEST_INTEGER
from nablab.settings.hints import bare, members_of
from nablab.settings.kinds import Kind


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that fit the type: numbers within bounds, texts that a kind takes."""
    members = members_of(hint)
    if len(members) > 1:
        return st.one_of([values_of(member) for member in members])
    kinds = [part for part in typing.get_args(hint) if isinstance(part, Kind)]
    if kinds:
        return st.sampled_from(kinds[0].examples) if kinds[0].examples else st.nothing()
    plain = bare(hint)
    if typing.get_origin(plain) is Literal:
        return st.sampled_from(typing.get_args(plain))
    if typing.get_origin(plain) is tuple:
        inner = typing.get_args(plain)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return st.lists(values_of(inner[0]), max_size=3).map(tuple)
        return st.tuples(*map(values_of, inner))
    if plain is str:
        # A comma in a list's text would be two entries.
        return st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True)
    if plain is float:
        # Hypothesis reads the bounds. A field never takes NaN.
        return st.from_type(hint).filter(lambda value: value == value)
    if plain is int:
        return st.from_type(hint).filter(lambda value: abs(value) <= LARGEST_INTEGER)
    return st.from_type(hint)
