"""The types of fields: which a dataclass has, and what they are made of."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any, Union

from nablab.errors import UsageError, unknown


def fields_of(owner: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass, by name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(owner)
        if field.init
    }


def keys_of(owner: type) -> list[str]:
    """List every key of a dataclass, with those of nested dataclasses."""
    keys = []
    for name, hint in fields_of(owner).items():
        nested = dataclasses_of(hint)
        keys.append(name)
        keys += [f"{name}.{inner}" for member in nested for inner in keys_of(member)]
    return list(dict.fromkeys(keys))


def type_of(owner: type, key: str) -> Any:
    """Return the type behind a key that may have dots."""
    name, _, rest = key.partition(".")
    fields = fields_of(owner)
    if name in fields and not rest:
        return fields[name]
    for member in dataclasses_of(fields.get(name)):
        if rest.partition(".")[0] in fields_of(member):
            return type_of(member, rest)
    raise unknown_key(owner, key)


def unknown_key(owner: type, key: str) -> UsageError:
    """Build the error for a key that no field has."""
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
    """List the members of a union, from strict to lax; any other type alone."""
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
    """Return a type without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def dataclasses_of(hint: Any) -> list[type]:
    """List the dataclasses among the members of a type."""
    found: list[type] = [
        m
        for m in members_of(hint)
        if isinstance(m, type) and dataclasses.is_dataclass(m)
    ]
    return found
