"""How far apart two classes lie, and points that lie as far apart as wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def separable_points(
    count: int, dimensions: int, margin: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw points in the unit ball with a gap between two classes.

    A plane through the origin parts them, and none is closer to it than ``margin``:
    points that are closer are drawn again.

    Args:
        count: N.
        dimensions: d.
        margin: Half of the gap, above 0 and below 1.
        rng: Where the numbers come from.

    Returns:
        Points (N, d), and classes (N,) of +1 and -1.
    """
    normal = rng.normal(size=dimensions)
    normal /= np.linalg.norm(normal)
    points = np.zeros((0, dimensions))
    while len(points) < count:
        directions = rng.normal(size=(4 * count, dimensions))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        radii = rng.random((4 * count, 1)) ** (1 / dimensions)
        drawn = radii * directions
        points = np.vstack([points, drawn[np.abs(drawn @ normal) >= margin]])
    points = points[:count]
    return points, np.sign(points @ normal)


def maximum_margin(points: Array, classes: Array) -> float:
    r"""Return the largest margin that a plane through the origin can have.

    :math:`\max_{\|w\|=1} \min_i y_i w \cdot x_i`, the distance of the origin from the
    convex hull of the points :math:`y_i x_i`. It is a least-distance problem, which
    non-negative least squares solves exactly (Lawson and Hanson 1974, chapter 23).

    Args:
        points: (N, d).
        classes: (N,), +1 and -1.

    Returns:
        The margin; 0 if no such plane parts the classes.
    """
    from scipy.optimize import nnls

    # Minimize |w| subject to y_i w x_i >= 1. With E = [(y x)^T; 1^T] and
    # f = (0, ..., 0, 1), the residual r = E u - f of the best u >= 0 gives
    # w = -r[:d] / r[d].
    signed = classes[:, None] * points
    system = np.vstack([signed.T, np.ones(len(points))])
    target = np.zeros(points.shape[1] + 1)
    target[-1] = 1.0
    solution, residual = nnls(system, target, maxiter=50 * len(points))
    if residual < 1e-10:  # the origin is inside the hull
        return 0.0
    excess = system @ solution - target
    weights = -excess[:-1] / excess[-1]
    return float((signed @ weights).min() / np.linalg.norm(weights))
