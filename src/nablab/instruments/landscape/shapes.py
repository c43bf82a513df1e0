"""What the shape of a measured line or plane is, as one number."""

from __future__ import annotations

import numpy as np

from nablab.instruments.landscape.interpolation import Interpolation
from nablab.instruments.landscape.planes import LossPlane


def largest_rise(line: Interpolation) -> float:
    """Return the loss's highest climb above its lowest so far, alpha from 0 to 1.

    It is in units of the loss at the start.
    """
    losses = line.losses[(line.alphas >= 0) & (line.alphas <= 1)]
    return float((losses - np.minimum.accumulate(losses)).max() / losses[0])


def nonconvex_share(plane: LossPlane) -> float:
    """Return the share of inner grid points that curve down.

    The curvature is clearly negative in some direction of the plane.

    Second differences give the 2 x 2 Hessian of the plane; clear means a tenth of its
    largest curvature, as Li et al. 2018 color their maps by the ratio of the two.
    """
    f = plane.losses
    a = plane.alphas[1] - plane.alphas[0]
    b = plane.betas[1] - plane.betas[0]
    xx = (f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]) / a**2
    yy = (f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]) / b**2
    xy = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / (4 * a * b)
    middle, radius = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return float(np.mean(middle - radius < -0.1 * np.abs(middle + radius)))


def relative_interval(plane: LossPlane) -> float:
    """Return half the 95 % interval over the loss, the median of the plane.

    It is 0 where all data count.
    """
    if not plane.standard_errors:
        return 0.0
    low, high = plane.interval()
    return float(np.median((high - low) / 2 / plane.losses))
