"""Cutting a validation split off a set of labeled samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from nablab.errors import UsageError


class Labeled(Protocol):
    """A split of a data set in memory; a dataclass with the field ``split``."""

    @property
    def name(self) -> str:
        """The data set."""
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def take(self, indices: Tensor | Sequence[int]) -> Self:
        """Copy the samples at these places."""
        ...


Split = TypeVar("Split", bound=Labeled)


def hold_out(
    whole: Split, samples: int, *, seed: int, noun: str = "samples"
) -> tuple[Split, Split]:
    """Cut samples off that are drawn by a seed; both parts keep their order.

    Args:
        whole: What is cut.
        samples: How many to cut off.
        seed: Decides which.
        noun: What samples are called in the message.

    Returns:
        The rest, and the validation split.

    Raises:
        UsageError: There are fewer samples, or none would be left.
    """
    if not 0 < samples < len(whole):
        raise UsageError(
            f"{samples} {noun} cannot be held out of the {len(whole)} of {whole.name}: "
            f"choose from 1 to {len(whole) - 1}."
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    held_out: Any = whole.take(order[:samples].sort().values)
    return (
        whole.take(order[samples:].sort().values),
        dataclasses.replace(held_out, split="validation"),
    )
