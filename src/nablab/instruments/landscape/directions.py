"""Directions through weight space: random, of a path, and through other models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from nablab.errors import UsageError, unknown
from nablab.instruments.base.objective import select_parameters
from nablab.instruments.landscape.trajectories import trajectory_pca

Normalization = Literal["filter", "layer", "none"]
Biases = Literal["zero", "layer"]
Floats = npt.NDArray[np.float64]


def random_directions(
    model: nn.Module,
    count: int = 2,
    *,
    normalization: Normalization = "filter",
    biases: Biases = "zero",
    parameters: str | Sequence[str] = "*",
    seed: int = 0,
) -> Floats:
    r"""Draw Gaussian directions, scaled to the weights of a model.

    A ReLU network computes the same function when one layer is doubled and the next one
    halved, but a step of unit length is then a smaller change of the one and a larger
    change of the other: planes of raw Gaussian directions cannot be compared. With
    "filter" every filter :math:`d_{ij}` of a direction gets the norm of the model's
    filter, :math:`d_{ij} \leftarrow d_{ij} \lVert\theta_{ij}\rVert / \lVert
    d_{ij}\rVert`, and such rescalings cancel. Directions are normal, not uniform on [0,
    1) as in one well-known tool, whose directions therefore all lie close to the
    diagonal (1, 1, ..., 1).

    Source: Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018,
    arXiv:1712.09913,
        section 4.

    Args:
        model: The model.
        count: How many directions. Two random directions in P dimensions are orthogonal
            up to about :math:`1/\sqrt P`; they are not made exactly so.
        normalization: ``"filter"`` (rows of a linear layer, output channels of a
            convolution), ``"layer"`` (every tensor as a whole) or ``"none"``.
        biases: What becomes of parameters of one axis or none, such as biases and those
            of batch norm: ``"zero"`` leaves them fixed, as the paper does; ``"layer"``
            moves them, scaled to their norm unless ``normalization="none"``.
        parameters: Names or glob patterns of the parameters that move.
        seed: The directions depend on nothing else: not on the device, the dtype or
            torch's global generator.

    Returns:
        float64 (count, P).

    Raises:
        UsageError: An unknown choice, or a direction that is zero.

    >>> directions = random_directions(nn.Linear(3, 2), seed=1)
    >>> directions.shape, directions[:, 6:].any()
    ((2, 8), np.False_)
    """
    for value, choices, kind in (
        (normalization, Normalization, "normalization"),
        (biases, Biases, "biases"),
    ):
        if value not in get_args(choices):
            raise unknown(kind, str(value), get_args(choices))
    names = select_parameters(model, parameters)
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        parts = []
        for name in names:
            weight = weights[name].detach().double().cpu()
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            parts.append(
                _scaled(
                    drawn, weight, normalization, biases, _is_transposed(model, name)
                ).flatten()
            )
        found.append(torch.cat(parts))
    directions = torch.stack(found).numpy()
    if not directions.any(axis=1).all():
        raise UsageError(
            "The directions are zero: the chosen parameters are all biases or the "
            "like, or all their filters are zero. Choose biases='layer', "
            "normalization='none' or other parameters."
        )
    return directions


def _scaled(
    drawn: Tensor, weight: Tensor, normalization: str, biases: str, transposed: bool
) -> Tensor:
    if weight.ndim < 2 and biases == "zero":
        return torch.zeros_like(drawn)
    if normalization == "none":
        return drawn
    axes = tuple(range(weight.ndim))
    if normalization == "filter" and weight.ndim > 1:
        axes = tuple(axis for axis in range(weight.ndim) if axis != int(transposed))
    return drawn * (_norm(weight, axes) / _norm(drawn, axes))


def _norm(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
    return norms


def _is_transposed(model: nn.Module, name: str) -> bool:
    """Return whether the output channels of a weight are its second axis."""
    owner, _, own = name.rpartition(".")
    return own == "weight" and isinstance(model.get_submodule(owner), _ConvTransposeNd)


def directions_through(
    center: npt.ArrayLike, others: Sequence[npt.ArrayLike]
) -> tuple[Floats, Floats]:
    """Return orthonormal directions from a point to others (Gram and Schmidt).

    Args:
        center: A point (P,).
        others: Further points (P,), no more than P.

    Returns:
        Directions, float64 (count, P), and coordinates of all points, the center first:
        (count + 1, count).

    Raises:
        UsageError: The points do not span as many dimensions: two are equal, or three
            on one line.

    >>> directions, coordinates = directions_through([0, 0, 0], [[2, 0, 0], [1, 3, 0]])
    >>> coordinates
    array([[0., 0.],
           [2., 0.],
           [1., 3.]])
    """
    start = np.asarray(center, dtype=np.float64)
    differences = np.stack(
        [np.asarray(other, dtype=np.float64) - start for other in others], axis=1
    )
    orthonormal, triangle = np.linalg.qr(differences)
    signs = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    orthonormal, triangle = orthonormal * signs, triangle * signs[:, None]
    lengths = np.linalg.norm(differences, axis=0)
    if np.any(np.diag(triangle) <= 1e-10 * max(lengths.max(), 1e-300)):
        raise UsageError(
            "The models lie on one line, or two of them are equal: they span no plane. "
            "Give three different models, or draw the line with interpolate."
        )
    return orthonormal.T, np.vstack([np.zeros(len(lengths)), triangle.T])


def principal_directions(
    points: Any, *, parameters: str | Sequence[str] = "*"
) -> tuple[Floats, Floats]:
    """Return the two directions of largest spread of a path around its end.

    See Li et al. 2018, section 7.

    Args:
        points: As for `trajectory_pca`.
        parameters: As for `trajectory_pca`.

    Returns:
        Directions, float64 (2, P), and the share of the squared distances from the last
        point that they explain.

    Raises:
        UsageError: The points span less than a plane.
    """
    found = trajectory_pca(points, parameters=parameters, components=2, center="last")
    return found.directions().T, found.explained_variance_ratio[:2]


def project(
    points: npt.ArrayLike, center: npt.ArrayLike, directions: Floats
) -> tuple[Floats, Floats]:
    """Return coordinates of points in a plane, and their distances from it.

    The directions need not be orthogonal.

    Args:
        points: (T, P).
        center: (P,), where the plane has the coordinates 0.
        directions: (2, P).

    Returns:
        float64 (T, 2) and (T,).
    """
    offsets = np.asarray(points, dtype=np.float64) - np.asarray(
        center, dtype=np.float64
    )
    gram = directions @ directions.T
    if np.linalg.det(gram) <= 1e-12 * math.prod(np.diag(gram)):
        raise UsageError("The two directions are parallel or zero: they span no plane.")
    coordinates = np.linalg.solve(gram, directions @ offsets.T).T
    distances: Floats = np.linalg.norm(offsets - coordinates @ directions, axis=1)
    return coordinates.astype(np.float64), distances
