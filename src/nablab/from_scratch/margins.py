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
    they are uniform in what the gap leaves of the ball.

    Args:
        count: N.
        dimensions: d.
        margin: Half of the gap, above 0 and below 1.
        rng: Where the numbers come from.

    Returns:
        Points (N, d), and classes (N,) of +1 and -1.

    Raises:
        ValueError: The gap leaves less of the ball than a float can hold.
    """
    from scipy.special import betaincc, betainccinv

    normal = rng.normal(size=dimensions)
    normal /= np.linalg.norm(normal)
    # A point's squared distance from the plane has a beta distribution, here cut off
    # at the margin. To draw points and drop those in the gap would never end in high
    # dimensions, where nearly all of the ball lies close to the plane.
    shape = 1 / 2, (dimensions + 1) / 2
    left = betaincc(*shape, margin**2)
    if left < np.finfo(float).tiny:
        raise ValueError(
            f"In {dimensions} dimensions a margin of {margin} leaves nothing of the "
            "ball: take a smaller one, or fewer dimensions."
        )
    distances = np.sqrt(betainccinv(*shape, left * (1 - rng.random(count))))
    # the rounding of the inverse must not put a point into the gap
    distances = np.clip(distances, margin, 1)
    classes = rng.choice([-1.0, 1.0], size=count)
    points = (classes * distances)[:, None] * normal
    if dimensions > 1:
        along = rng.normal(size=(count, dimensions))
        along -= (along @ normal)[:, None] * normal
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        radii = rng.random(count) ** (1 / (dimensions - 1))
        points += (radii * np.sqrt(1 - distances**2))[:, None] * along
    return points, classes


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
