"""Values of typed fields, read from text. Nothing is ever evaluated as Python."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from nablab.errors import UsageError, unknown
from nablab.settings.bounds import (
    LARGEST_INTEGER,
    OutOfBounds,
    too_large,
    within_bounds,
)
from nablab.settings.hints import bare, dataclasses_of, fields_of, members_of
from nablab.settings.words import each, wrong

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
NONE = ("none", "null")


def parse(text: str, hint: Any, key: str) -> Any:
    """Read one value of the given type."""
    members = members_of(hint)
    if len(members) > 1:
        return _parse_union(text, hint, members, key)
    if typing.get_origin(hint) is Annotated:
        return within_bounds(lambda: parse(text, bare(hint), key), hint, key, text)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _parse_literal(text, hint, key)
    if origin is tuple:
        return _parse_tuple(text, hint, key)
    if hint in _SCALARS:
        try:
            return _SCALARS[hint](text)
        except OverflowError:
            raise too_large(key, text, LARGEST_INTEGER) from None
        except ValueError:
            raise wrong(key, text, hint) from None
    if dataclasses.is_dataclass(hint):
        return _parse_dataclass(text, dataclasses_of(hint), key)
    raise TypeError(
        f"field '{key}' has a type that the command line cannot express: {hint}"
    )


def _parse_union(text: str, hint: Any, members: tuple[Any, ...], key: str) -> Any:
    classes = dataclasses_of(hint)
    for member in members:
        if member in classes:
            continue
        try:
            return parse(text, member, key)
        except OutOfBounds:
            raise
        except UsageError:
            continue
    if classes and set(members) <= {*classes, types.NoneType}:
        return _parse_dataclass(text, classes, key)
    raise wrong(key, text, hint)


def _parse_dataclass(text: str, classes: list[type], key: str) -> Any:
    for member in classes:
        if member.__name__.lower() == text.lower():
            return member()
    inner = [f"{key}.{name}" for member in classes for name in fields_of(member)]
    raise unknown(
        f"value of '{key}'",
        text,
        [member.__name__.lower() for member in classes],
        remedy=f"Its parts are set by {', '.join(dict.fromkeys(inner))}.",
    )


def _parse_literal(text: str, hint: Any, key: str) -> Any:
    choices = {str(choice).lower(): choice for choice in typing.get_args(hint)}
    if text.lower() not in choices:
        raise unknown(
            f"value of '{key}'", text, [str(c) for c in typing.get_args(hint)]
        )
    return choices[text.lower()]


def _parse_tuple(text: str, hint: Any, key: str) -> tuple[Any, ...]:
    inner = typing.get_args(hint)
    nested = any(typing.get_origin(member) is tuple for member in inner)
    parts = _split(_unwrap(text, nested=nested), nested=nested)
    return each(parts, hint, key, text, parse)


def _unwrap(text: str, *, nested: bool) -> str:
    """Remove one pair of brackets that encloses everything.

    In a tuple of tuples, ``[1,10,1]`` alone is one inner tuple and keeps its brackets.
    """
    if len(text) < 2 or text[0] + text[-1] not in ("()", "[]"):
        return text
    depth = [0]
    for character in text:
        depth.append(depth[-1] + (character in "([") - (character in ")]"))
    encloses = min(depth[1:-1]) > 0
    inside = text[1:-1].strip()
    if not encloses or (nested and inside and inside[0] not in "(["):
        return text
    return inside


def _split(text: str, *, nested: bool) -> list[str]:
    """Split at commas that no bracket encloses.

    Inner tuples without brackets are separated by semicolons.
    """
    if not text:
        return []
    separator = ";" if nested and not text.startswith(("(", "[")) else ","
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if not parts[-1].strip():
        parts.pop()  # a trailing comma
    return [part.strip() for part in parts]


def _parse_int(text: str) -> int:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not number.is_finite():
        raise ValueError(text)
    # Compared before it is written out: "1e999999999" must not build a number of a
    # billion digits.
    if number.copy_abs() > LARGEST_INTEGER:
        raise OverflowError(text)
    if number != number.to_integral_value():
        raise ValueError(text)
    return int(number)


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isnan(number):
        raise ValueError(text)
    return number


def _parse_bool(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ValueError(text)
    return text.lower() in TRUE


def _parse_none(text: str) -> None:
    if text.lower() not in NONE:
        raise ValueError(text)


_SCALARS: dict[Any, Any] = {
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
    str: str,
    types.NoneType: _parse_none,
}
