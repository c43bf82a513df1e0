"""Kinds of fields: what a text means beyond being one, and what a list must be.

A kind stands beside the type, ``Annotated[str, Images()]``, and is named where it
belongs: `nablab.data.fields` has data sets and functions, `nablab.models.fields`
networks. From it follow, without a method of the experiment: the check before a run,
what ``nablab show`` says, which data a run reads, and which files of the user's its
results depend on.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nablab.errors import UsageError
from nablab.settings.conforming import conform
from nablab.settings.hints import bare, fields_of, members_of

YOURS = "yours"
"""What conditions and reports call the user's own network."""


class Kind:
    """What the text of a field means. A kind has no state.

    Attributes:
        words: What the field takes, in a few words.
        plural: The same of several.
        examples: Texts that it takes on every machine, for tests.
    """

    words: ClassVar[str] = "text"
    plural: ClassVar[str] = "texts"
    examples: ClassVar[tuple[str, ...]] = ()

    def check(self, text: str) -> None:
        """Raise `UsageError` for a text that means nothing; no data are read."""

    def data_sets(self, text: str) -> tuple[str, ...]:
        """Name the data sets that a run with this text reads."""
        return ()

    def source(self, text: str) -> str:
        """Return a hash of the user's files behind the text; empty if there is none."""
        return ""


@dataclass(frozen=True)
class Distinct:
    """A list whose entries differ.

    Attributes:
        least: How many entries there must be.
    """

    least: int = 1

    def check(self, values: tuple[Any, ...], key: str) -> None:
        """Raise `UsageError` for a list that is too short or names something twice."""
        if len(values) < self.least:
            raise UsageError(f"{key} is too short: give {self.least} or more.")
        most = Counter(values).most_common(1)
        if most and most[0][1] > 1:
            raise UsageError(f"{key} names {most[0][0]} twice: give each one once.")


@dataclass(frozen=True)
class Rising(Distinct):
    """A list of numbers in rising order."""

    def check(self, values: tuple[Any, ...], key: str) -> None:
        """Raise `UsageError` for a list that is too short or does not rise."""
        if len(values) < self.least or list(values) != sorted(set(values)):
            raise UsageError(
                f"{key}={','.join(map(str, values))} is impossible: it must be "
                f"{self.least} or more numbers, each larger than the one before."
            )


def check_fields(owner: Any) -> None:
    """Check every field of a dataclass by its type.

    Raises:
        UsageError: A value is out of bounds or means nothing.
    """
    for name, hint in fields_of(type(owner)).items():
        value = getattr(owner, name)
        conform(value, hint, name)
        for part in typing.get_args(hint)[1:] if _is_annotated(hint) else ():
            if isinstance(part, Distinct):
                part.check(value, name)
        for kind, text in kinds_of(hint, value):
            kind.check(text)


def data_sets_of(owner: Any) -> tuple[str, ...]:
    """Name the data sets that the fields of a dataclass name."""
    found = [name for kind, text in _all_kinds(owner) for name in kind.data_sets(text)]
    return tuple(dict.fromkeys(found))


def sources_of(owner: Any) -> Mapping[str, str]:
    """Return, by field, a hash of the user's files that it names."""
    return {
        name: kind.source(text)
        for name, hint in fields_of(type(owner)).items()
        for kind, text in kinds_of(hint, getattr(owner, name))
        if kind.source(text)
    }


def kinds_of(hint: Any, value: Any) -> Iterator[tuple[Kind, str]]:
    """Yield the kind of every text in a value."""
    if isinstance(value, str):
        for member in members_of(hint):
            kinds = typing.get_args(member)[1:] if _is_annotated(member) else ()
            yield from ((kind, value) for kind in kinds if isinstance(kind, Kind))
    elif isinstance(value, tuple):
        inner = typing.get_args(bare(hint))
        for place, part in enumerate(value):
            repeated = len(inner) == 2 and inner[1] is Ellipsis
            yield from kinds_of(inner[0 if repeated else place], part)


def _all_kinds(owner: Any) -> Iterator[tuple[Kind, str]]:
    for name, hint in fields_of(type(owner)).items():
        yield from kinds_of(hint, getattr(owner, name))


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated
