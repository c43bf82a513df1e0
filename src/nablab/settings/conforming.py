"""Values of typed fields, from Python or JSON, held against their types."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from nablab.errors import UsageError, unknown
from nablab.settings.bounds import (
    LARGEST_INTEGER,
    OutOfBounds,
    too_large,
    within_bounds,
)
from nablab.settings.hints import bare, fields_of, members_of, unknown_key
from nablab.settings.reading import parse
from nablab.settings.words import each, in_text, wrong


def replace(instance: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Copy a dataclass with new values; keys with dots reach into nested ones."""
    fields = fields_of(type(instance))
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, dot, rest = key.partition(".")
        if name not in fields:
            raise unknown_key(type(instance), key)
        if dot:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = conform(value, fields[name], prefix + name)
    for name, inner in nested.items():
        current = changes.get(name, getattr(instance, name))
        if not dataclasses.is_dataclass(current):
            raise UsageError(
                f"'{prefix}{name}' is {in_text(current)}, so "
                f"'{prefix}{name}.{next(iter(inner))}' cannot be set."
            )
        changes[name] = replace(current, inner, f"{prefix}{name}.")
    return dataclasses.replace(instance, **changes)


def conform(value: Any, hint: Any, key: str) -> Any:
    """Check a Python value against a type.

    Lists become tuples, whole numbers may stand for floats.

    A text may stand for a tuple, as the command line writes it: ``"sinc"``,
    ``"sinc,x**2"``.
    """
    members = members_of(hint)
    if len(members) > 1:
        for member in members:
            try:
                return conform(value, member, key)
            except OutOfBounds:
                raise
            except UsageError:
                continue
        raise wrong(key, value, hint)
    if typing.get_origin(hint) is Annotated:
        return within_bounds(lambda: conform(value, bare(hint), key), hint, key, value)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if not any(
            value == c and type(value) is type(c) for c in typing.get_args(hint)
        ):
            raise unknown(
                f"value of '{key}'", str(value), [str(c) for c in typing.get_args(hint)]
            )
        return value
    if origin is tuple:
        if isinstance(value, str):
            return parse(value, hint, key)
        if not isinstance(value, (tuple, list)):
            raise wrong(key, value, hint)
        return each(value, hint, key, value, conform)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return replace(hint(), value, f"{key}.")  # type: ignore[operator]
    return _conform_scalar(value, hint, key)


def _conform_scalar(value: Any, hint: Any, key: str) -> Any:
    truth = isinstance(value, bool)
    if hint is int and isinstance(value, numbers.Integral) and not truth:
        number = operator.index(value)
        if abs(number) > LARGEST_INTEGER:
            # Python refuses to write out a number of thousands of digits.
            digits = "-(a very long number)" if number < 0 else "a very long number"
            raise too_large(key, digits, LARGEST_INTEGER)
        return number
    if hint is float and isinstance(value, numbers.Real) and not truth:
        try:
            decimal = float(value)
        except OverflowError:
            raise wrong(key, "a very long number", hint) from None
        if not math.isnan(decimal):
            return decimal
    if hint not in (int, float) and isinstance(value, hint):
        return value
    if hint is float and value in ("inf", "-inf"):
        return float(value)  # JSON lacks infinity: so the store spells it
    raise wrong(key, value, hint)
