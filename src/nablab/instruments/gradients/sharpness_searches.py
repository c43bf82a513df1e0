"""Searches for the highest loss in a neighborhood of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from nablab.instruments.base.objective import Objective

Norm = Literal["linf", "l2"]

# The search sees the loss times this over the mean slope across the box, so that the
# first step reaches the bound in most coordinates. Ten iterations on small tanh
# networks then found what a hundred did, or more; with 1, or in the weights' own units,
# up to 3 % less; with the loss as it is, in box units, 75 % less.
STEEPNESS = 10.0
AT_BOUND = 1e-6  # relative distance at which a coordinate counts as lying on the bound
CRITICAL = (
    "The gradient is exactly 0 at the model's point: the search started from a random "
    "point of the neighborhood instead."
)


class _Rise:
    """Minus the scaled loss of coordinates in [-1, 1]; notes the largest loss."""

    def __init__(
        self, objective: Objective, displacement: Callable[[Tensor], Tensor], pull: Any
    ) -> None:
        self._objective, self._displacement, self._pull = objective, displacement, pull
        self._point = objective.point.double()
        self.best, self.where, self.factor = -math.inf, np.zeros(0), 1.0
        self.values: list[float] = []

    def __call__(self, coordinates: Any) -> tuple[float, Any]:
        step = self._displacement(torch.from_numpy(coordinates).to(self._point))
        point = (self._point + step).to(self._objective.dtype)
        value, gradient = self._objective.loss_and_gradient(point)
        if value > self.best:
            self.best, self.where = value, coordinates.copy()
        return -self.factor * value, -self.factor * self._pull(
            gradient.double()
        ).cpu().numpy()

    def after_step(self, _: Any) -> None:
        self.values.append(self.best)


def search_box(
    objective: Objective,
    radius: float,
    iterations: int,
    subspace: int | None,
    generator: torch.Generator,
) -> tuple[list[float], int, float]:
    """Search Keskar's box by L-BFGS-B, in all coordinates or in a random subspace.

    Returns:
        The highest loss after each iteration, the number of iterations, and the share
        of coordinates at the bound.
    """
    point = objective.point.double()
    if subspace is None:
        bound = radius * (point.abs() + 1)
        rise = _Rise(objective, lambda y: bound * y, lambda gradient: bound * gradient)
        size = len(point)
    else:
        size = min(subspace, len(point))
        normal = torch.randn(len(point), size, generator=generator, dtype=torch.float64)
        # The basis is orthonormal, so the pseudo-inverse is the transpose.
        basis = torch.linalg.qr(normal)[0].to(point)
        bound = radius * ((basis.T @ point).abs() + 1)
        rise = _Rise(
            objective,
            lambda y: basis @ (bound * y),
            lambda gradient: bound * (basis.T @ gradient),
        )
    start = np.zeros(size)
    slope = rise(start)[1]
    if not slope.any():
        objective.notes += (CRITICAL,)
        start = (
            torch.rand(size, generator=generator, dtype=torch.float64).numpy() * 2 - 1
        )
        slope = rise(start)[1]
    rise.factor = STEEPNESS / max(float(np.abs(slope).mean()), 1e-300)
    # No tolerance ends the search early: gradients near a minimum are below scipy's
    # default, which would report a sharpness of 0.
    options: Any = {"maxiter": iterations, "ftol": 0.0, "gtol": 0.0}
    bounds = [(-1.0, 1.0)] * size
    # SciPy's stubs do not know a function that returns its gradient, too.
    search: Any = minimize
    found = search(
        rise,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        callback=rise.after_step,
        options=options,
    )
    share = float(np.mean(np.abs(rise.where) >= 1 - AT_BOUND))
    return [*rise.values[:-1], rise.best], int(found.nit), share


def search_ball(
    objective: Objective,
    radius: float,
    iterations: int,
    norm: Norm,
    generator: torch.Generator,
) -> tuple[list[float], int, float]:
    """Search the adaptive ball by Auto-PGD (Croce and Hein 2020).

    Its coordinates are z / |x|, and the step is halved where progress stalls.

    Returns:
        The highest loss after each iteration, the number of iterations, and the share
        of the radius that was used.
    """
    point = objective.point.double()
    scale = point.abs()

    def evaluate(coordinates: Tensor) -> tuple[float, Tensor]:
        moved = (point + scale * coordinates).to(objective.dtype)
        found, gradient = objective.loss_and_gradient(moved)
        return found, scale * gradient.double()

    def ascend(place: Tensor, slope: Tensor, step: float) -> Tensor:
        direction = (
            slope.sign() if norm == "linf" else slope / slope.norm().clamp_min(1e-300)
        )
        return _project(place + step * direction, radius, norm)

    here = torch.zeros_like(point)
    now, slope = evaluate(here)
    if not bool(slope.any()):
        objective.notes += (CRITICAL,)
        here = (
            torch.rand(len(point), generator=generator, dtype=torch.float64).to(point)
            * 2
            - 1
        )
        here = _project(radius * here, radius, norm)
        now, slope = evaluate(here)
    best, best_place, best_slope = now, here, slope
    previous, step, rises = here, 2 * radius, 0
    values: list[float] = []
    checkpoints, last_best, halved = _checkpoints(iterations), best, False
    for iteration in range(1, iterations + 1):
        target = ascend(here, slope, step)
        momentum = 0.75 if iteration > 1 else 1.0
        following = _project(
            here + momentum * (target - here) + (1 - momentum) * (here - previous),
            radius,
            norm,
        )
        previous, here, before = here, following, now
        now, slope = evaluate(here)
        rises += now > before
        if now > best:
            best, best_place, best_slope = now, here, slope
        values.append(best)
        if iteration in checkpoints:
            length = checkpoints[iteration]
            stalled = rises < 0.75 * length or (not halved and best == last_best)
            halved, last_best, rises = stalled, best, 0
            if stalled:
                step = step / 2
                here = best_place
                previous = best_place
                slope = best_slope
                now = best
    used = (
        float(best_place.abs().max() if norm == "linf" else best_place.norm()) / radius
    )
    return values, iterations, used


def _checkpoints(iterations: int) -> dict[int, int]:
    """Return where Auto-PGD looks back, and the steps since (its section 3)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    places = sorted({math.ceil(share * iterations) for share in shares[1:]})
    return {
        place: place - before
        for before, place in zip([0, *places], places, strict=False)
    }


def _project(coordinates: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return coordinates.clamp(-radius, radius)
    shrunk: Tensor = coordinates * (radius / coordinates.norm().clamp_min(radius))
    return shrunk
