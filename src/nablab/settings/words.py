"""Types and values in words, and as the command line writes them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from nablab.errors import UsageError
from nablab.settings.bounds import bounds_in_words, shortened
from nablab.settings.hints import bare, members_of

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
_EXAMPLES: dict[Any, str] = {
    int: "20000",
    float: "1e-3",
    bool: "true",
    tuple[int, ...]: "1,10,1",
}


def in_words(hint: Any) -> str:
    """Name a type in plain words.

    >>> in_words(tuple[int, ...]), in_words(float | None)
    ('whole numbers, separated by commas', 'number or none')
    """
    members = members_of(hint)
    if len(members) > 1:
        return " or ".join(in_words(m) for m in (*members[1:], members[0]))
    if kind := _kind_in_words(hint):
        return kind
    bounds, hint = bounds_in_words(hint), bare(hint)
    if hint in _PLAIN:
        return f"{_PLAIN[hint]} {bounds}".rstrip()
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is Ellipsis:
        if typing.get_origin(inner[0]) is tuple:
            return f"groups, separated by semicolons, of {in_words(inner[0])}"
        return f"{_plural(inner[0])}, separated by commas"
    if origin is tuple:
        return (
            f"{len(inner)} values, separated by commas: "
            f"{', '.join(map(in_words, inner))}"
        )
    return str(getattr(hint, "__name__", hint)).lower()


def _plural(hint: Any) -> str:
    """Name several values of a type in words."""
    plain = _kind_in_words(hint, "plural") or _PLURAL.get(bare(hint))
    return f"{plain} {bounds_in_words(hint)}".rstrip() if plain else in_words(hint)


def _kind_in_words(hint: Any, words: Literal["words", "plural"] = "words") -> str:
    """Say what a text means, where its type says it; see `nablab.settings.kinds`."""
    found = [
        getattr(part, words)
        for part in typing.get_args(hint)[1:]
        if hasattr(part, words)
    ]
    return str(found[0]) if found else ""


def choices_of(hint: Any) -> tuple[str, ...]:
    """List the possible values, where they are few."""
    found: list[str] = []
    for member in map(bare, members_of(hint)):
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
    """Write a value as the command line does; `parse` reads it back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        nested = any(isinstance(part, (tuple, list)) for part in value)
        text = (";" if nested else ",").join(map(in_text, value))
        return f"({text})" if not text or (text[0] in "([" and not nested) else text
    if dataclasses.is_dataclass(value):
        return type(value).__name__.lower()
    return str(value)


def wrong(key: str, value: Any, hint: Any, why: str = "") -> UsageError:
    """Build the error for a value that a field does not take."""
    text = shortened(value if isinstance(value, str) else repr(value))
    shown = f"'{text}'" if isinstance(value, str) else text
    reason = f": {why}" if why else ""
    kinds = [bare(member) for member in members_of(hint)]
    example = next((e for kind, e in _EXAMPLES.items() if kind in kinds), "")
    hint_text = f" Example: {key}={example}." if example else ""
    return UsageError(
        f"{key}={shown} does not fit{reason}. '{key}' takes: "
        f"{in_words(hint)}.{hint_text}"
    )


def each(
    parts: Sequence[Any],
    hint: Any,
    key: str,
    given: Any,
    read: Callable[[Any, Any, str], Any],
) -> tuple[Any, ...]:
    """Read every part of a tuple with its own type.

    Both texts and Python values come here.
    """
    inner = typing.get_args(hint)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(read(part, inner[0], key) for part in parts)
    if len(parts) != len(inner):
        raise wrong(
            key, given, hint, why=f"it has {len(parts)} parts instead of {len(inner)}"
        )
    return tuple(read(part, kind, key) for part, kind in zip(parts, inner, strict=True))
