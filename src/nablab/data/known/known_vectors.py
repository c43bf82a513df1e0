"""Word vectors that have a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nablab.data.known.known_set import KnownSet

if TYPE_CHECKING:
    from torch import Tensor

VECTORS = "train"
"""The one split of word vectors."""


@dataclass(frozen=True, kw_only=True)
class KnownVectors(KnownSet):
    """Word vectors that are fetched."""

    kind: ClassVar[str] = "word vectors"

    def decode(
        self, name: str, content: bytes | bytearray, most: int | None
    ) -> tuple[tuple[str, ...], Tensor]:
        """Decode their file.

        Args:
            name: Of the file: the canonical one, or that of an edition.
            content: What it holds.
            most: How many words to decode; None for all.

        Returns:
            V words, and float32 (V, D).

        Raises:
            DataError: The bytes are not in the form that the file has.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode()")
