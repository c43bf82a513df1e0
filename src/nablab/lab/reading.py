"""Reads JSON files of the store into dataclasses, and says what does not fit.

A message names the file, the field and the reason.

A file of the store may have been cut off, edited, copied from elsewhere or written by
another program. So nothing in it is trusted before its bytes, its checksum, its
fields, their types and their bounds have been checked. JSON that passes has no number
beyond its bounds, no text that cannot be written again, and little depth.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import stat
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from nablab.errors import StoreError
from nablab.lab import files

# the largest file here, a trial with many metrics, has a few hundred kilobytes
MOST_BYTES = 64 * 2**20
MOST_DEPTH = 32  # of nested settings; those of nablab's experiments reach 5
MAPPING = typing.get_origin(Mapping[str, Any])
SHOWN = 60  # characters of a value that a message repeats

T = TypeVar("T")


class Damaged(StoreError):
    """A file of the store is not what nablab wrote.

    The text names it and says what to do.
    """


class Misfit(ValueError):
    """A value is not what its field takes.

    The text says which field and why, without the file.
    """


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest number that a field takes, for ``Annotated``."""

    low: float
    high: float = math.inf


class Spelled:
    """Marks a number that may be NaN or infinite, for ``Annotated``.

    JSON holds such values as text.
    """


def read(path: Path, kind: type[T]) -> T | None:
    """Read a JSON file as a dataclass, or return None if there is no such file.

    Args:
        path: The file.
        kind: A dataclass; its class attribute ``remedy`` says what to do when the file
            is damaged.

    Raises:
        Damaged: It cannot be read or does not fit.
    """
    try:
        value = read_object(path)
        return None if value is None else fit(unsealed(value), kind)
    except Misfit as error:
        raise damaged(path, error, kind) from error


def damaged(path: Path, reason: object, kind: type) -> Damaged:
    """Make the error for a damaged file.

    It names the file, what is wrong with it, and the remedy that its kind knows.
    """
    return Damaged(
        f"{path} is damaged: {reason}. {getattr(kind, 'remedy', '')}".rstrip()
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file as it is, with its checksum.

    Returns:
        The object; None if there is no such file.

    Raises:
        Misfit: It cannot be read, or holds something else.
    """
    content = read_bytes(path, most=MOST_BYTES)
    if content is None:
        return None
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant)
    except Misfit:
        raise
    except UnicodeDecodeError:
        raise Misfit("its text is not UTF-8") from None
    except RecursionError:
        raise Misfit("it is nested too deeply") from None
    except ValueError:
        raise Misfit(
            "it is empty" if not content.strip() else "it is not complete JSON"
        ) from None
    if not isinstance(value, dict):
        raise Misfit(f"it holds {_shown(value)} instead of fields in braces")
    _check_sound(value)
    return value


def read_bytes(path: Path, *, most: float = math.inf) -> bytes | None:
    """Read a regular file; None if there is nothing of that name.

    Raises:
        Misfit: It cannot be read, is larger than ``most``, or is not a regular file.
    """
    try:
        # A pipe in place of the file must not make us wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise Misfit("it is a link to a file that does not exist") from None
        return None
    except OSError as error:
        raise Misfit(f"it cannot be read: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Misfit(
                "it is "
                f"{'a folder' if stat.S_ISDIR(facts.st_mode) else 'not a regular file'}"
            )
        if facts.st_size > most:
            raise Misfit(
                f"it has {facts.st_size:,} bytes, more than any file of its kind"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Misfit(f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without their checksum, which must be right if there is one.

    Files of earlier versions have none.

    Raises:
        Misfit: The checksum is wrong.
    """
    body = {name: part for name, part in value.items() if name != files.SEAL}
    if files.SEAL in value and value[files.SEAL] != files.seal(body):
        raise Misfit(
            "its checksum is wrong, so something changed it after it was written"
        )
    return body


def fit(value: Any, hint: Any, field: str = "") -> Any:
    """Turn a JSON value into what a type hint says, or say which field does not fit.

    Lists become tuples, objects dataclasses; fields that a dataclass does not know are
    left out, as a newer version may have written them.

    >>> fit([1, 2], tuple[typing.Annotated[int, Bounds(0)], ...], "seeds")
    (1, 2)

    Raises:
        Misfit: It does not fit.
    """
    if hint is Any:
        return value
    hint, origin, inner, marks = _taken_apart(hint)
    if origin in (Union, types.UnionType):
        return value if type(value) in inner else _fit_union(value, inner, field)
    if origin is Literal:
        return _required(
            value, value in inner if isinstance(value, str) else False, hint, field
        )
    if origin is tuple:
        _required(value, isinstance(value, list), hint, field)
        return tuple(
            fit(part, inner[0], f"{field}[{place}]") for place, part in enumerate(value)
        )
    if origin is MAPPING:
        _required(value, isinstance(value, dict), hint, field)
        return {
            name: fit(part, inner[1], f"{field}.{name}") for name, part in value.items()
        }
    if dataclasses.is_dataclass(hint):
        _required(value, isinstance(value, dict), hint, field)
        return _fit_fields(value, hint, field)
    if hint is float:
        return _fit_number(value, marks, field)
    _required(value, type(value) is hint, hint, field)
    return _within(value, marks, hint, field)


@functools.cache
def _taken_apart(hint: Any) -> tuple[Any, Any, tuple[Any, ...], tuple[Any, ...]]:
    """Take a type hint apart.

    Returns:
        The type without its marks, its origin, what is in its brackets, and its marks.
    """
    marks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *rest = typing.get_args(hint)
        marks = tuple(rest)
    return hint, typing.get_origin(hint), typing.get_args(hint), marks


def _fit_union(value: Any, members: tuple[Any, ...], field: str) -> Any:
    reasons = []
    for member in members:
        try:
            return fit(value, member, field)
        except Misfit as error:
            reasons.append((member, error))
    others = [error for member, error in reasons if member is not types.NoneType]
    if len(others) == 1:
        raise others[0]
    raise Misfit(
        f"'{field}' is {_shown(value)}; it must be text, a number, true or false"
    )


def _fit_fields(value: Mapping[str, Any], kind: Any, field: str) -> Any:
    prefix = f"{field}." if field else ""
    hints, found = _hints(kind), {}
    for one in dataclasses.fields(kind):
        if one.name in value:
            found[one.name] = fit(
                value[one.name], hints[one.name], f"{prefix}{one.name}"
            )
        elif (
            one.default is dataclasses.MISSING
            and one.default_factory is dataclasses.MISSING
        ):
            raise Misfit(f"'{prefix}{one.name}' is missing")
    return kind(**found)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _fit_number(value: Any, marks: tuple[Any, ...], field: str) -> float:
    if Spelled in marks and value in ("nan", "inf", "-inf"):
        return float(value)
    _required(
        value,
        isinstance(value, (int, float)) and not isinstance(value, bool),
        float,
        field,
    )
    try:
        return float(_within(value, marks, float, field))
    except OverflowError:
        raise Misfit(f"'{field}' is {_shown(value)}, too large for a number") from None


def _within(value: Any, marks: tuple[Any, ...], hint: Any, field: str) -> Any:
    for mark in marks:
        if isinstance(mark, Bounds) and not mark.low <= value <= mark.high:
            high = f" to {mark.high:,.10g}" if math.isfinite(mark.high) else " on"
            raise Misfit(
                f"'{field}' is {_shown(value)}; it must be {_WORDS[hint]} from "
                f"{mark.low:,.10g}{high}"
            )
    return value


def _required(value: Any, fits: bool, hint: Any, field: str) -> Any:
    if fits:
        return value
    words = (
        _WORDS.get(hint) or _WORDS.get(typing.get_origin(hint)) or "fields in braces"
    )
    if typing.get_origin(hint) is Literal:
        words = f"one of {', '.join(typing.get_args(hint))}"
    raise Misfit(f"'{field}' is {_shown(value)}; it must be {words}")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
    tuple: "a list",
}


def _check_sound(value: Any) -> None:
    """Refuse values that could not be written again as they are.

    These are deep nesting, numbers beyond floating point, and text that is not Unicode.
    """
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise Misfit("it is nested too deeply")
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for inner in part.values()]
            waiting += [(name, depth + 1) for name in part]
        elif isinstance(part, list):
            waiting += [(inner, depth + 1) for inner in part]
        elif isinstance(part, float) and not math.isfinite(part):
            raise Misfit("it holds a number too large for floating point")
        elif isinstance(part, str) and not _is_unicode(part):
            raise Misfit(f"it holds text that is not Unicode: {_shown(part)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise Misfit(f"it holds {name}, which is not JSON")


def _shown(value: Any) -> str:
    """Write a value for a message: in JSON's spelling, on one line, short."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
