"""Maps: many dimensions drawn in two, and how much that distorts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FlatMap:
    """Points in the plane that stand for vectors.

    Attributes:
        points: float64 (N, 2).
        variance_share: Share of the vectors' variance that the plane shows.
        kept_neighbors: Share of the vectors whose nearest other vector is also nearest
            on the map.
    """

    points: Tensor
    variance_share: float
    kept_neighbors: float


def flat_map(vectors: Tensor) -> FlatMap:
    """Project vectors to the plane that shows most of their variance.

    These are the first two principal components.

    Args:
        vectors: Floats (N, D), three or more.

    Raises:
        UsageError: There are fewer than three vectors, or two dimensions.

    >>> flat = flat_map(torch.tensor([[0.0, 0, 7], [4, 0, 7], [0, 2, 7], [4, 2, 7]]))
    >>> flat.variance_share, flat.kept_neighbors
    (1.0, 1.0)
    """
    if vectors.ndim != 2 or min(vectors.shape[0], vectors.shape[1] + 1) < 3:
        raise UsageError(
            f"A map of vectors (N, D) of shape {tuple(vectors.shape)} is impossible: it "
            "needs three vectors or more, of two dimensions or more."
        )
    centered = vectors.double() - vectors.double().mean(dim=0)
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    points = centered @ directions[:2].T
    total = float(sizes.square().sum())
    near, near_on_map = _nearest(centered), _nearest(points)
    return FlatMap(
        points=points,
        variance_share=float(sizes[:2].square().sum()) / total if total else 1.0,
        kept_neighbors=float((near == near_on_map).double().mean()),
    )


def _nearest(points: Tensor) -> Tensor:
    """Return the place of the nearest other point of each: int64 (N,)."""
    distances = torch.cdist(points, points)
    return distances.fill_diagonal_(torch.inf).argmin(dim=1)
