r"""Methods that drive the gradients of K networks to zero together.

Every step lowers the gradient's norm, so none can run away: L-BFGS on
:math:`\frac12\|g\|^2`, whose gradient is :math:`Hg`; Newton's method with MINRES;
Levenberg-Marquardt with the exact Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.curvature.hessian_matrix import symmetrized
from nablab.instruments.curvature.hessian_methods import Way, choose_way, hessian_blocks
from nablab.instruments.curvature.inertia import in_threads
from nablab.instruments.curvature.minres import minres

MEMORY = 20  # pairs that L-BFGS keeps
SUFFICIENT = 1e-4  # Armijo's constant (Nocedal and Wright 2006, section 3.1)
HALVINGS = 30
# Iterations that must lower ||g|| to `WORTHWHILE` of it. Less patience gives
# Levenberg-Marquardt up in the valley of Rosenbrock's function, which it crosses by 5 %
# in 20 iterations and then solves.
PATIENCE = 20
WORTHWHILE = 0.99
INNER_PRODUCTS = 300  # of MINRES per Newton step
# Levenberg-Marquardt's steps along a bent valley are short and many.
LONG_PATIENCE = 50
FIRST_DAMPING = 1e-3  # of Levenberg-Marquardt, as a share of ||H||^2
# An iteration tries dampings, twice as much each time, up to 10^12 of the first.
TRIALS = 40
# This share of the step serves the second derivative along it (Transtrum and Sethna
# 2012).
DIFFERENCE = 0.1
# A correction of more than half of this share of the step is not trusted (there, too).
MOST_BENT = 0.75
# Damping of saddle-free Newton as shares of ||H||^2: the best is found by trying, for a
# loss costs a hundredth of the Hessian.
DAMPINGS = tuple(10.0 ** (-2 * k) for k in range(13))
POLISHING = 30  # iterations of Levenberg-Marquardt after saddle-free Newton


@dataclass
class Search:
    """Where the networks are.

    Attributes:
        objective: All K networks.
        tolerance: A network is done when its gradient's norm is at most this.
        points: (K, P).
        gradients: (K, P) at `points`.
        active: Numbers (k,) of the networks that are still moved.
        stalled: bool (K,): the method found no more step.
        history: Norms (K,) after each iteration; NaN for networks that are not moved
            any more.
        began: Length of the history when the method began.
        chosen: How Hessians are computed, once one was.
    """

    objective: ReplicaObjective
    tolerance: float
    points: Tensor
    gradients: Tensor
    active: Tensor
    stalled: Tensor
    history: list[Tensor] = field(default_factory=list)
    began: int = 0
    chosen: Way | None = None

    @classmethod
    def start(cls, objective: ReplicaObjective, tolerance: float) -> Search:
        """Start all networks where they are.

        Those without a finite gradient, and those at zero, stay.
        """
        points = objective.points.clone()
        gradients = objective.gradients(points)
        search = cls(
            objective,
            tolerance,
            points,
            gradients,
            active=torch.arange(len(points), device=points.device),
            stalled=torch.zeros(len(points), dtype=torch.bool, device=points.device),
        )
        search.history.append(search.norms())
        search.active = search.active[search.norms().isfinite()]
        search.leave()
        return search

    def norms(self) -> Tensor:
        """Return the gradients' norms (K,)."""
        norms: Tensor = self.gradients.norm(dim=1)
        return norms

    def way(self) -> Way:
        """Choose how Hessians are computed, at the first call, and note why."""
        if self.chosen is None:
            self.chosen = choose_way(self.objective, "auto")
        return self.chosen

    def part(self) -> ReplicaObjective:
        """Return the objective of the active networks; add its `spent` with `pay`."""
        return self.objective.subset(self.active)

    def pay(self, part: ReplicaObjective) -> None:
        """Count what a part of the networks cost."""
        self.objective.spent += part.spent
        part.spent = 0.0

    def record(self, before: Tensor, patience: int = PATIENCE) -> None:
        """Note the norms after an iteration; drop networks that are done or stall.

        Args:
            before: The norms (K,) before the iteration.
            patience: Iterations that must lower the norms to `WORTHWHILE` of them.
        """
        norms = self.norms()
        moved = _is_in(self.active, self.stalled)
        self.history.append(torch.where(moved, norms, torch.nan))
        self.stalled |= moved & (norms >= before)
        if len(self.history) - self.began > patience:
            past = self.history[-1 - patience]
            # This is never true where the past is NaN.
            self.stalled |= moved & (norms > WORTHWHILE * past)
        self.leave()

    def again(self) -> None:
        """Activate all networks that are not done, also those given up earlier."""
        norms = self.norms()
        self.stalled[:] = False
        self.active = ((norms > self.tolerance) & norms.isfinite()).nonzero().flatten()
        self.began = len(self.history)

    def leave(self) -> None:
        """Move no further networks that are at zero or stalled."""
        keep = (self.norms()[self.active] > self.tolerance) & ~self.stalled[self.active]
        self.active = self.active[keep]


def gradient_norm_descent(search: Search, iterations: int) -> None:
    r"""Minimize :math:`\frac12\|g\|^2` by L-BFGS (Liu and Nocedal 1989).

    Steps are halved until Armijo's rule holds.
    """
    if not len(search.active):
        return
    part = search.part()
    _, slopes = part.gradients_and_products(search.points[search.active], lambda g: g)
    search.pay(part)
    every = torch.zeros_like(search.points)
    every[search.active] = slopes
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        if not len(search.active):
            return
        active, before = search.active, search.norms()
        own = [(s[active], y[active]) for s, y in pairs]
        direction = -_inverse_hessian_times(own, every[active])
        if not pairs:
            direction = direction * _first_length(search, every[active])
        uphill = (direction * every[active]).sum(1) >= 0
        direction[uphill] = -every[active][uphill]
        old_points, old_slopes = search.points.clone(), every.clone()
        _descend(search, direction, every)
        pairs = [
            *pairs[-MEMORY + 1 :],
            (search.points - old_points, every - old_slopes),
        ]
        search.record(before)


def newton_minres(search: Search, iterations: int) -> None:
    r"""Solve :math:`g = 0` by Newton's method with steps by MINRES.

    The line search is on :math:`\|g\|^2`.

    Roosta, Liu, Xu and Mahoney, "Newton-MR: inexact Newton method with minimum residual
    sub-problem solver" (EURO Journal on Computational Optimization 2022). MINRES needs
    no positive definite Hessian, and each of its iterates is a direction in which the
    gradient's norm falls.
    """
    for _ in range(iterations):
        if not len(search.active):
            return
        active, before = search.active, search.norms()
        part, points = search.part(), search.points[active]
        gradients = search.gradients[active]
        # Loose far from the solution, tight near it (Eisenstat and Walker 1996): fast
        # local convergence.
        start = search.history[0][active]
        forcing = (gradients.norm(dim=1) / start).sqrt().clamp(1e-8, 1e-2)

        def product(
            v: Tensor, part: ReplicaObjective = part, points: Tensor = points
        ) -> Tensor:
            return part.products(points, v)

        most = min(INNER_PRODUCTS, 2 * search.objective.base.size)
        steps = minres(product, -gradients, forcing, most)
        slopes = torch.zeros_like(search.points)
        slopes[active] = part.products(points, gradients)
        search.pay(part)
        _descend(search, steps, slopes, needs_slopes=False)
        search.record(before)


def levenberg_marquardt(search: Search, iterations: int) -> None:
    r"""Take steps :math:`-(H^2 + \mu I)^{-1} H g` with the exact Hessian.

    They are bent by geodesic acceleration.

    The plain method (Levenberg 1944, Marquardt 1963) creeps along the curved valleys of
    :math:`\|g\|`. Half of :math:`-(H^2 + \mu I)^{-1} H g_{vv}`, with the second
    derivative of g along the step v from one more gradient, follows their bends
    (Transtrum and Sethna, "Improvements to the Levenberg-Marquardt algorithm for
    nonlinear least-squares minimization", arXiv:1201.5885, 2012). As they advise, the
    damping is raised slowly and lowered fast: the best step of each iteration leads
    into flat regions sooner.
    """
    if not len(search.active):
        return
    way = search.way()
    damping = torch.full_like(search.norms(), FIRST_DAMPING)
    for _ in range(iterations):
        if not len(search.active):
            return
        before, part, numbers = search.norms(), search.part(), search.active
        for rows, raw in hessian_blocks(part, way, points=search.points[numbers]):
            rows, values, vectors = eigenpairs(rows, symmetrized(raw)[0])
            _bent_step(search, numbers[rows], values, vectors, damping)
        search.pay(part)
        search.record(before, patience=LONG_PATIENCE)


def saddle_free_newton(search: Search, iterations: int) -> None:
    r"""Take steps :math:`-(|H| + \nu I)^{-1} g` down the loss.

    Each uses the best of many dampings.

    :math:`|H|` has the absolute values of the eigenvalues, so saddles repel (Dauphin et
    al., "Identifying and attacking the saddle point problem in high-dimensional
    non-convex optimization", 2014). The last digits of the gradient, which the rounding
    of the loss hides, are left to Levenberg-Marquardt.
    """
    if not len(search.active):
        return
    way = search.way()
    for _ in range(iterations):
        if not len(search.active):
            break
        part, numbers = search.part(), search.active
        moved = torch.zeros_like(search.stalled)
        for rows, raw in hessian_blocks(part, way, points=search.points[numbers]):
            rows, values, vectors = eigenpairs(rows, symmetrized(raw)[0])
            moved[numbers[rows]] = _step_down(search, numbers[rows], values, vectors)
        search.pay(part)
        search.history.append(
            torch.where(_is_in(numbers, moved), search.norms(), torch.nan)
        )
        search.stalled |= ~moved
        search.leave()
    search.again()
    levenberg_marquardt(search, POLISHING)


METHODS: Mapping[str, Callable[[Search, int], None]] = {
    "newton-minres": newton_minres,
    "levenberg-marquardt": levenberg_marquardt,
    "gradient-norm": gradient_norm_descent,
    "saddle-free-newton": saddle_free_newton,
}


def eigenpairs(rows: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which matrices (k, P, P) are finite, and their eigenpairs.

    These are the rows (k,), the eigenvalues and the eigenvectors.

    A network whose Hessian is not finite takes no step, and so is stalled.
    """
    finite = matrices.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        rows, matrices = rows[finite.to(rows.device)], matrices[finite]
    found = in_threads(torch.linalg.eigh, matrices)
    if not found:
        return rows, matrices.new_empty(0, matrices.shape[1]), matrices
    return (
        rows,
        torch.stack([pair[0] for pair in found]),
        torch.stack([pair[1] for pair in found]),
    )


def _descend(
    search: Search, directions: Tensor, slopes: Tensor, *, needs_slopes: bool = True
) -> None:
    r"""Move active networks, halving steps until :math:`\frac12\|g\|^2` falls enough.

    Args:
        search: Changed in place.
        directions: (k, P), of the active networks.
        slopes: :math:`Hg` (K, P) of all; those of moved networks are renewed.
        needs_slopes: Whether the new ones are needed.
    """
    waiting, directions, length = search.active, directions, 1.0
    values = search.norms().square() / 2
    descent = torch.zeros_like(values)
    descent[waiting] = (directions * slopes[waiting]).sum(1)
    rows = torch.arange(len(waiting), device=waiting.device)
    for _ in range(HALVINGS):
        part = search.objective.subset(waiting)
        trial = search.points[waiting] + length * directions[rows]
        if needs_slopes:
            gradients, products = part.gradients_and_products(trial, lambda g: g)
        else:
            gradients = products = part.gradients(trial)
        search.pay(part)
        new = gradients.square().sum(1) / 2
        good = new <= values[waiting] + SUFFICIENT * length * descent[waiting]
        good &= (new < values[waiting]) & products.isfinite().all(1)
        moved = waiting[good]
        search.points[moved], search.gradients[moved] = trial[good], gradients[good]
        if needs_slopes:
            slopes[moved] = products[good]
        waiting, rows, length = waiting[~good], rows[~good], length / 2
        if not len(waiting):
            return


def _inverse_hessian_times(
    pairs: list[tuple[Tensor, Tensor]], vectors: Tensor
) -> Tensor:
    """Apply the two-loop recursion (Nocedal and Wright 2006, algorithm 7.4).

    Only pairs with curvature count.
    """
    kept = []
    for s, y in pairs:
        curvature = (s * y).sum(1)
        usable = curvature > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        kept.append((s, y, torch.where(usable, 1 / curvature, 0.0)))
    result = vectors.clone()
    shares = []
    for s, y, inverse in reversed(kept):
        share = inverse * (s * result).sum(1)
        result = result - share[:, None] * y
        shares.append(share)
    scale = torch.ones(len(vectors), dtype=vectors.dtype, device=vectors.device)
    for _, y, inverse in kept:
        scale = torch.where(inverse > 0, 1 / (inverse * y.square().sum(1)), scale)
    result = result * scale[:, None]
    for (s, y, inverse), share in zip(kept, reversed(shares), strict=True):
        result = result + s * (share - inverse * (y * result).sum(1))[:, None]
    return result


def _first_length(search: Search, slopes: Tensor) -> Tensor:
    """Return the best step (k, 1) along ``-Hg`` if the gradient were linear."""
    part = search.part()
    bent = part.products(search.points[search.active], slopes)
    search.pay(part)
    return (slopes.square().sum(1) / bent.square().sum(1).clamp_min(1e-300)).clamp(
        max=1e6
    )[:, None]


def _bent_step(
    search: Search, numbers: Tensor, values: Tensor, vectors: Tensor, damping: Tensor
) -> None:
    """Take a step, with more damping (K,) until the gradient's norm falls."""
    rows = torch.arange(len(numbers), device=numbers.device)
    for _ in range(TRIALS):
        chosen = numbers[rows]
        part = search.objective.subset(chosen)
        point = search.points[chosen]
        start = search.gradients[chosen]
        own, basis = values[rows], vectors[rows]
        scale = own.abs().amax(dim=1, keepdim=True)
        weights = -own / (
            own.square() + damping[chosen, None] * scale.square()
        ).clamp_min(1e-300)
        velocity = _product(basis, weights, start)
        ahead = part.gradients(point + DIFFERENCE * velocity)
        bend = (
            2
            / DIFFERENCE
            * ((ahead - start) / DIFFERENCE - _product(basis, own, velocity))
        )
        acceleration = _product(basis, weights, bend)
        # NaN makes this false.
        small = 2 * acceleration.norm(dim=1) <= MOST_BENT * velocity.norm(dim=1)
        trial = point + velocity + torch.where(small[:, None], acceleration / 2, 0.0)
        gradients = part.gradients(trial)
        search.pay(part)
        better = gradients.norm(dim=1) < start.norm(dim=1)  # false for NaN
        search.points[chosen[better]] = trial[better]
        search.gradients[chosen[better]] = gradients[better]
        damping[chosen] = (damping[chosen] * torch.where(better, 0.2, 2.0)).clamp_min(
            1e-20
        )
        rows = rows[~better]
        if not len(rows):
            return


def _product(vectors: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return matrices, given by eigenpairs, times a vector each: (k, P)."""
    return (vectors @ (values * (vectors.mT @ right[..., None])[..., 0])[..., None])[
        ..., 0
    ]


def _step_down(
    search: Search, numbers: Tensor, values: Tensor, vectors: Tensor
) -> Tensor:
    """Take one saddle-free Newton step; return which networks moved, (k,) bool."""
    part = search.objective.subset(numbers)
    points = search.points[numbers]
    gradients = search.gradients[numbers]
    within = (vectors.mT @ gradients[..., None])[..., 0]
    start = part.losses(points)
    lowest, best = start.clone(), points.clone()
    sizes = values.abs()
    for damping in DAMPINGS:
        weights = 1 / (
            sizes + math.sqrt(damping) * sizes.amax(dim=1, keepdim=True)
        ).clamp_min(1e-300)
        trial = points - (vectors @ (weights * within)[..., None])[..., 0]
        losses = part.losses(trial)
        better = losses < lowest  # never true for NaN
        lowest = torch.where(better, losses, lowest)
        best[better] = trial[better]
    new = part.gradients(best)
    search.pay(part)
    moved = (lowest < start) & new.isfinite().all(dim=1)
    search.points[numbers[moved]] = best[moved]
    search.gradients[numbers[moved]] = new[moved]
    return moved


def _is_in(numbers: Tensor, like: Tensor) -> Tensor:
    inside = torch.zeros_like(like)
    inside[numbers] = True
    return inside


def spectral_norms(
    objective: ReplicaObjective, points: Tensor, seed: int, products: int = 40
) -> Tensor:
    """Return lower bounds (K,) of the Hessians' spectral norms.

    The power method brings them within a few percent.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(points.shape[1], generator=generator, dtype=torch.float64).to(
        points
    )
    vectors = (vector / vector.norm()).expand_as(points)
    norms = points.new_zeros(len(points))
    for _ in range(products):
        vectors = objective.products(points, vectors)
        norms = vectors.norm(dim=1)
        vectors = vectors / norms.clamp_min(math.ulp(0.0) * 2**60)[:, None]
    return norms
