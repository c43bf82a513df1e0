"""Values of typed fields: read from text, checked from Python, and put into words.

The types are those that fields of experiments use: ``int``, ``float``, ``bool``,
``str``, ``Literal``, unions, tuples, and dataclasses; a number may carry its bound,
``Annotated[int, AtMost(1_000)]``. `nablab.settings.configuration` says how each is
written. Nothing is ever evaluated as Python. This module imports neither torch nor
numpy.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, Union

from nablab.errors import LONGEST, UsageError, unknown

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
NONE = ("none", "null")
LARGEST_INTEGER = 2**63 - 1  # NumPy and PyTorch count in 64 bits


@dataclasses.dataclass(frozen=True)
class AtMost:
    """The largest value of a number, written beside its type.

    Far above what anyone would run, so that a typing mistake is met as one, before
    anything of that size is made. Lower bounds that depend on other fields stay with an
    experiment's ``validate``.

    >>> parse("2e3", Annotated[int, AtMost(1_000)], "epochs")
    Traceback (most recent call last):
    nablab.settings.values.TooLarge: epochs=2e3 is too large: it must be at most 1,000.
    """

    limit: float


# What several experiments count. A training of 10^9 steps takes days on any machine.
Steps = Annotated[int, AtMost(10**9)]
Epochs = Annotated[int, AtMost(10**6)]
Samples = Annotated[int, AtMost(10**9)]


def fields_of(owner: type) -> dict[str, Any]:
    """The type of every field of a dataclass, by name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(owner)
        if field.init
    }


def keys_of(owner: type) -> list[str]:
    """Every key of a dataclass, with those of nested dataclasses."""
    keys = []
    for name, hint in fields_of(owner).items():
        nested = dataclasses_of(hint)
        keys.append(name)
        keys += [f"{name}.{inner}" for member in nested for inner in keys_of(member)]
    return list(dict.fromkeys(keys))


def type_of(owner: type, key: str) -> Any:
    """The type behind a key that may have dots."""
    name, _, rest = key.partition(".")
    fields = fields_of(owner)
    if name in fields and not rest:
        return fields[name]
    for member in dataclasses_of(fields.get(name)):
        if rest.partition(".")[0] in fields_of(member):
            return type_of(member, rest)
    raise unknown_key(owner, key)


def unknown_key(owner: type, key: str) -> UsageError:
    """The error for a key that no field has."""
    option = OPTIONS.get(key)
    remedy = f"'{key}' is an option of its own: {option}." if option else ""
    return unknown("key", key, keys_of(owner), remedy=remedy)


# Options of `nablab run` that are easily taken for keys.
OPTIONS = {
    "seeds": "--seeds N",
    "preset": "--preset NAME",
    "device": "--device cpu",
    "replicas": "--replicas auto",
    "jobs": "--jobs N",
    "store": "--store FOLDER",
    "fresh": "--fresh",
}


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, from strict to lax; any other type alone."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        order = [types.NoneType, bool, int, float]
        members = {member: bare(member) for member in typing.get_args(hint)}
        rank = {
            m: order.index(b) if b in order else 5 + (b is str)
            for m, b in members.items()
        }
        return tuple(sorted(members, key=lambda member: rank[member]))
    return (hint,)


def bare(hint: Any) -> Any:
    """A type without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _within_bounds(read: Callable[[], Any], hint: Any, key: str, given: Any) -> Any:
    """What is read for a type with bounds, if it is not beyond them."""
    try:
        value = read()
    except TooLarge:
        # too large for any field: the message names the bound of this one
        value = math.inf
    for bound in typing.get_args(hint)[1:]:
        if isinstance(bound, AtMost) and value > bound.limit:
            raise _too_large(key, given, bound.limit)
    return value


class TooLarge(UsageError):
    """A number beyond the bound of its field; another member of a union must not take
    it as text.
    """


def _too_large(key: str, given: Any, limit: float) -> TooLarge:
    return TooLarge(
        f"{key}={_shortened(str(given))} is too large: it must be at most {limit:,}."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses among the members of a type."""
    found: list[type] = [
        m
        for m in members_of(hint)
        if isinstance(m, type) and dataclasses.is_dataclass(m)
    ]
    return found


# --- from text --------------------------------------------------------------------------------


def parse(text: str, hint: Any, key: str) -> Any:
    """Read one value of the given type."""
    members = members_of(hint)
    if len(members) > 1:
        return _parse_union(text, hint, members, key)
    if typing.get_origin(hint) is Annotated:
        return _within_bounds(lambda: parse(text, bare(hint), key), hint, key, text)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _parse_literal(text, hint, key)
    if origin is tuple:
        return _parse_tuple(text, hint, key)
    if hint in _SCALARS:
        try:
            return _SCALARS[hint](text)
        except OverflowError:
            raise _too_large(key, text, LARGEST_INTEGER) from None
        except ValueError:
            raise _wrong(key, text, hint) from None
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
        except TooLarge:
            raise
        except UsageError:
            continue
    if classes and set(members) <= {*classes, types.NoneType}:
        return _parse_dataclass(text, classes, key)
    raise _wrong(key, text, hint)


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
    return _each(parts, hint, key, text, parse)


def _each(
    parts: Sequence[Any],
    hint: Any,
    key: str,
    given: Any,
    read: Callable[[Any, Any, str], Any],
) -> tuple[Any, ...]:
    """Read every part of a tuple with its own type; both texts and Python values come
    here.
    """
    inner = typing.get_args(hint)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(read(part, inner[0], key) for part in parts)
    if len(parts) != len(inner):
        raise _wrong(
            key, given, hint, why=f"it has {len(parts)} parts instead of {len(inner)}"
        )
    return tuple(read(part, kind, key) for part, kind in zip(parts, inner, strict=True))


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
    """Split at commas (or semicolons, for inner tuples without brackets) that no
    bracket encloses.
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


# --- from Python ------------------------------------------------------------------------------


def replace(instance: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Copy a dataclass with new values; keys with dots reach into nested dataclasses."""
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
    """Check a Python value against a type; lists become tuples, whole numbers may stand
    for floats.

    A text may stand for a tuple, as the command line writes it: ``"sinc"``,
    ``"sinc,x**2"``.
    """
    members = members_of(hint)
    if len(members) > 1:
        for member in members:
            try:
                return conform(value, member, key)
            except TooLarge:
                raise
            except UsageError:
                continue
        raise _wrong(key, value, hint)
    if typing.get_origin(hint) is Annotated:
        return _within_bounds(lambda: conform(value, bare(hint), key), hint, key, value)
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
            raise _wrong(key, value, hint)
        return _each(value, hint, key, value, conform)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return replace(hint(), value, f"{key}.")  # type: ignore[operator]
    return _conform_scalar(value, hint, key)


def _conform_scalar(value: Any, hint: Any, key: str) -> Any:
    truth = isinstance(value, bool)
    if hint is int and isinstance(value, numbers.Integral) and not truth:
        number = operator.index(value)
        if abs(number) > LARGEST_INTEGER:
            raise _too_large(key, "a number of so many digits", LARGEST_INTEGER)
        return number
    if hint is float and isinstance(value, numbers.Real) and not truth:
        try:
            decimal = float(value)
        except OverflowError:
            raise _wrong(key, "a number of so many digits", hint) from None
        if not math.isnan(decimal):
            return decimal
    if hint not in (int, float) and isinstance(value, hint):
        return value
    if hint is float and value in ("inf", "-inf"):
        return float(value)  # JSON lacks infinity: so the store spells it
    raise _wrong(key, value, hint)


# --- in words ---------------------------------------------------------------------------------

_PLAIN: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    types.NoneType: "none",
}
_PLURAL: dict[Any, str] = {
    int: "whole numbers",
    float: "numbers",
    bool: "true or false",
    str: "texts",
}


def in_words(hint: Any) -> str:
    """A type in plain words.

    >>> in_words(tuple[int, ...]), in_words(float | None)
    ('whole numbers, separated by commas', 'number or none')
    """
    members = members_of(hint)
    if len(members) > 1:
        return " or ".join(in_words(m) for m in (*members[1:], members[0]))
    hint = bare(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is Ellipsis:
        if typing.get_origin(inner[0]) is tuple:
            return f"groups, separated by semicolons, of {in_words(inner[0])}"
        return f"{_PLURAL.get(bare(inner[0]), in_words(inner[0]))}, separated by commas"
    if origin is tuple:
        return (
            f"{len(inner)} values, separated by commas: "
            f"{', '.join(map(in_words, inner))}"
        )
    return str(getattr(hint, "__name__", hint)).lower()


def choices_of(hint: Any) -> tuple[str, ...]:
    """The possible values, where they are a short list."""
    found: list[str] = []
    for member in members_of(hint):
        if typing.get_origin(member) is Literal:
            found += [str(choice) for choice in typing.get_args(member)]
        elif typing.get_origin(member) is tuple:
            found += [
                choice
                for part in typing.get_args(member)
                for choice in choices_of(part)
            ]
        elif member is bool:
            found += ["true", "false"]
        elif dataclasses.is_dataclass(member):
            found.append(member.__name__.lower())  # type: ignore[union-attr]
    return tuple(dict.fromkeys(found))


def in_text(value: Any) -> str:
    """A value as the command line writes it; `parse` reads it back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        nested = any(isinstance(part, (tuple, list)) for part in value)
        text = (";" if nested else ",").join(map(in_text, value))
        return f"({text})" if not text or (text[0] in "([" and not nested) else text
    if dataclasses.is_dataclass(value):
        return type(value).__name__.lower()
    return str(value)


def _wrong(key: str, value: Any, hint: Any, why: str = "") -> UsageError:
    text = _shortened(value if isinstance(value, str) else repr(value))
    shown = f"'{text}'" if isinstance(value, str) else text
    reason = f": {why}" if why else ""
    kinds = [bare(member) for member in members_of(hint)]
    example = next((e for kind, e in _EXAMPLES.items() if kind in kinds), "")
    hint_text = f" Example: {key}={example}." if example else ""
    return UsageError(
        f"{key}={shown} does not fit{reason}. '{key}' takes: "
        f"{in_words(hint)}.{hint_text}"
    )


_EXAMPLES: dict[Any, str] = {
    int: "20000",
    float: "1e-3",
    bool: "true",
    tuple[int, ...]: "1,10,1",
}
