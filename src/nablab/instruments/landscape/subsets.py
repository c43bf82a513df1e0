"""Random subsets of data, cut so that their values come with standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from nablab.errors import UsageError
from nablab.instruments.base.batches import Batches, count_samples, part_of, take

# A t interval with 19 degrees of freedom is 7 % wider than with infinitely many.
PIECES = 20


def random_subset(batches: Batches, size: int, seed: int) -> tuple[list[Any], float]:
    """Draw samples without replacement, as at least `PIECES` batches if possible.

    Args:
        batches: The data.
        size: Samples to draw, at least 2.
        seed: Decides which, on every device alike.

    Returns:
        The batches, and the factor sqrt(1 - n/N) of a standard error that is due to
        drawing n of N without replacement.

    Raises:
        UsageError: Fewer than two samples or more than there are.
    """
    lengths = [count_samples(batch) for batch in batches.items]
    total = sum(lengths)
    if not 2 <= size < total:
        raise UsageError(
            f"subset={size} is impossible: the data have {total} samples, and a subset "
            f"has from 2 to {total - 1}. Leave it out to measure on all of them."
        )
    drawn = (
        torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:size]
        .sort()
        .values
    )
    found: list[Any] = []
    for batch, (start, stop) in zip(
        batches.items, pairwise(np.cumsum([0, *lengths]).tolist()), strict=True
    ):
        own = drawn[(drawn >= start) & (drawn < stop)] - start
        if len(own):
            # Shuffled, so that no piece is made of neighbors, which data sets often
            # keep sorted by class.
            own = own[
                torch.randperm(
                    len(own), generator=torch.Generator().manual_seed(seed + 1)
                )
            ]
            count = max(1, min(len(own), round(PIECES * len(own) / size)))
            found += pieces(take(batch, own), len(own), count)
    if len(found) < 2:
        found = list(pieces(found[0], size, 2))
    return found, float(np.sqrt(1 - size / total))


def pieces(batch: Any, length: int, count: int) -> Iterator[Any]:
    """Cut a batch of ``length`` samples into ``count`` nearly equal parts."""
    edges = np.linspace(0, length, count + 1).round().astype(int).tolist()
    for start, stop in pairwise(edges):
        yield part_of(batch, start, stop)
