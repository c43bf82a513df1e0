"""Data sets of labeled texts that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from nablab.data.known.known_set import EmbeddedSet, KnownSet

if TYPE_CHECKING:
    from nablab.data.text.text_set import TextSet


@dataclass(frozen=True, kw_only=True)
class KnownTexts(KnownSet):
    """Labeled texts that are fetched.

    Attributes:
        notes: What a report should tell of the texts of a file, by the file's name.
    """

    kind: ClassVar[str] = "texts"

    notes: Mapping[str, str] = field(default_factory=dict)

    def decode(self, name: str, content: bytes) -> tuple[list[str], list[int]]:
        """Decode the file of one split.

        Args:
            name: Of the file: a canonical one, or that of an edition.
            content: What it holds.

        Returns:
            N texts and N labels from 0.

        Raises:
            DataError: The bytes are not in the form that the set has.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode()")


@dataclass(frozen=True, kw_only=True)
class EmbeddedTexts(EmbeddedSet):
    """Labeled texts that come with a package."""

    kind: ClassVar[str] = "texts"

    def load(self, split: str) -> TextSet:
        """Return one split of it."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")
