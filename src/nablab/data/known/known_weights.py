"""Weights of trained networks that have a name."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nablab.data.known.known_set import KnownSet
from nablab.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "train"
"""The one split of weights."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights(KnownSet):
    """Weights that are fetched; their ``samples`` are numbers.

    Attributes:
        trained_on: The data set whose classes the network was trained to tell apart.
    """

    kind: ClassVar[str] = "network weights"

    trained_on: str

    def decode(self, name: str, content: bytes | bytearray) -> dict[str, Tensor]:
        """Decode a file that `torch.save` wrote; tensors alone are read.

        Args:
            name: Of the file, for messages.
            content: What it holds.

        Raises:
            DataError: The bytes are no tensors by name.
        """
        import torch

        try:
            found = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
            return {str(key): tensor.contiguous() for key, tensor in found.items()}
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            AttributeError,
        ) as error:
            raise DataError(f"{name} holds something else than weights.") from error
