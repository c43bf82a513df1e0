r"""Lanczos' method with full re-orthogonalization, from products with a matrix.

After :math:`m` products the orthonormal rows of :math:`Q` (m, P) span what they have
seen, and the small matrix :math:`T = Q A Q^\top` has the Ritz values as eigenvalues.
Without re-orthogonalization rounding lets the rows lose their orthogonality as soon as
one Ritz value converges, and copies of it ("ghosts") follow (Paige 1972). Here every
new vector goes through classical Gram-Schmidt twice against all earlier ones, which
keeps them orthogonal to working precision (Giraud, Langou, Rozloznik, van den Eshof
2005), and the coefficients so found fill the whole of T: a restart with chosen Ritz
vectors needs no formula of its own (Wu and Simon 2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from nablab.instruments.curvature.matrices import Array, finite_norm

# A new vector below this many roundoffs of the largest product holds no direction of
# its own.
BREAKDOWN = 10.0
# A restart mixes this many parameters at a time, so that it needs no second basis.
COLUMNS = 1 << 16


class Krylov:
    r"""An orthonormal basis that grows by one product at a time.

    Rows obey :math:`A Q^\top = Q^\top T + b\, q_{m+1} e_m^\top` up to rounding: the
    residual of Ritz vector :math:`Q^\top s` is :math:`b\,|s_m|`, without another
    product.

    The caller multiplies: ``krylov.absorb(matrix @ krylov.newest)``. When the product
    leaves nothing new (`coupling` is 0: the basis spans an invariant subspace) the
    caller stops or goes on with `inject`.

    Args:
        start: The first vector (P,), of any length.
        capacity: Products that fit.
        first: Memory for this many is taken at once, and for all of them where a
            further one comes; None takes it for all at once.

    Attributes:
        vectors: The basis (rows, P) in the dtype of the start; rows up to and including
            `size` are filled.
        projected: T (capacity, capacity), float64.
        size: Rows that have been multiplied, m.
        coupling: b, or 0 at a breakdown.
        scale: The largest norm of a product so far.
        neglected: The largest coupling that was taken as 0.
        defects: For each row what its residual holds beyond the coupling (0 unless
            `lock` was called).
    """

    def __init__(self, start: Tensor, capacity: int, first: int | None = None) -> None:
        rows = 1 + (capacity if first is None else min(first, capacity))
        self.vectors = torch.empty(
            rows, start.numel(), dtype=start.dtype, device=start.device
        )
        self.projected = np.zeros((capacity, capacity))
        self.defects = np.zeros(capacity)
        self.size, self.coupling, self.scale, self.neglected = 0, 0.0, 0.0, 0.0
        self.vectors[0] = start / start.norm()

    @property
    def newest(self) -> Tensor:
        """The basis vector (P,) that waits for its product."""
        return self.vectors[self.size]

    @property
    def full(self) -> bool:
        """Whether no further product fits."""
        return self.size == len(self.projected)

    def absorb(self, image: Tensor) -> float:
        """Take the product of the matrix with `newest`; return the next coupling."""
        self.scale = max(self.scale, finite_norm(image))
        self.size += 1
        rest, coefficients = self._orthogonalize(image)
        column = coefficients.double().cpu().numpy()
        last = self.size - 1
        self.projected[: self.size, last] = self.projected[last, : self.size] = column
        self.coupling = float(rest.norm())
        roundoff = torch.finfo(rest.dtype).eps
        if (
            self.size == rest.numel()
            or self.coupling <= BREAKDOWN * roundoff * self.scale
        ):
            self.neglected, self.coupling = max(self.neglected, self.coupling), 0.0
        else:
            self._append(rest / self.coupling)
        return self.coupling

    def inject(self, vector: Tensor) -> None:
        """Go on with the part of ``vector`` that is orthogonal to the basis."""
        rest, _ = self._orthogonalize(vector / vector.norm())
        self._append(rest / rest.norm())
        self.coupling = 0.0

    def ritz(self) -> tuple[Array, Array, Array]:
        """Return Ritz values, coefficients and residual norms.

        Values (m,) are ascending, coefficients in the basis (m, m) are by column, norms
        are (m,).
        """
        # By PyTorch, for its setting of threads: NumPy's own threads wait on each other
        # on a busy machine.
        small = torch.from_numpy(self.projected[: self.size, : self.size].copy())
        values, rotation = (part.numpy() for part in torch.linalg.eigh(small))
        # Locked rows' residuals point anywhere, so they add up as independent errors
        # do.
        locked = np.sqrt((rotation.T**2) @ self.defects[: self.size] ** 2)
        return values, rotation, np.hypot(self.coupling * np.abs(rotation[-1]), locked)

    def restart(self, values: Array, rotation: Array) -> None:
        """Keep the Ritz vectors with coefficients (m, k), and the newest vector."""
        kept = rotation.shape[1]
        defects = np.sqrt((rotation.T**2) @ self.defects[: self.size] ** 2)
        waiting = self.newest.clone()
        for columns, mixed in self.combinations(rotation):
            self.vectors[:kept, columns] = mixed
        self.vectors[kept] = waiting
        self.projected[:] = 0
        self.projected[range(kept), range(kept)] = values
        self.defects[:] = 0
        self.defects[:kept] = defects
        self.size = kept

    def lock(
        self, values: Array, rotation: Array, residuals: Array, fresh: Tensor
    ) -> None:
        """Keep Ritz vectors and go on from a new vector, orthogonal to them."""
        self.restart(values, rotation)
        self.defects[: self.size] = residuals
        self.inject(fresh)

    def combinations(self, rotation: Array) -> Iterator[tuple[slice, Tensor]]:
        """Yield combinations of the basis with coefficients (m, k).

        They come as pieces (k, columns) with their place.
        """
        mix = torch.from_numpy(rotation.T.copy()).to(self.vectors)
        for start in range(0, self.vectors.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            yield columns, mix @ self.vectors[: self.size, columns]

    def _append(self, vector: Tensor) -> None:
        """Make a unit vector the newest one."""
        if self.size == len(self.vectors):
            every = self.vectors.new_empty(len(self.projected) + 1, vector.numel())
            every[: self.size] = self.vectors
            self.vectors = every
        self.vectors[self.size] = vector

    def _orthogonalize(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        basis = self.vectors[: self.size]
        first = basis @ vector
        rest = torch.addmv(vector, basis.T, first, alpha=-1)
        second = basis @ rest
        return torch.addmv(rest, basis.T, second, alpha=-1), first + second


def beyond_breakdown(
    neglected: float, sequences: int, size: int, chance: float
) -> float:
    r"""Bound the distance of all eigenvalues from the Ritz values of ended runs.

    The bound fails with a stated probability at most.

    A Krylov sequence ends where its coupling :math:`\beta` is no more than rounding: in
    float32, beside a large eigenvalue, that is long before it has seen everything. With
    :math:`c` the component of an eigenvector in its start, some Ritz value lies within
    :math:`\beta / |c|` of the eigenvalue. The chance of a component below :math:`c` is
    at most :math:`\sqrt{2 P c^2 / \pi}` for each random start, and all of them must
    have one.

    Args:
        neglected: The largest coupling at which a sequence ended.
        sequences: How many ended, at least 1.
        size: Dimensions in which the starts were drawn.
        chance: The chance that is accepted.

    >>> beyond_breakdown(1e-6, 1, 157, 1e-3)
    0.009997...
    """
    component = math.pow(chance, 1 / sequences) * math.sqrt(math.pi / (2 * size))
    return neglected / component


def unseen_beyond(
    highest: float, lowest: float, steps: int, size: int, chance: float
) -> float:
    r"""Return a level above all eigenvalues, up to a stated probability of error.

    The start of Lanczos' method was random.

    Let :math:`\mu` be the highest Ritz value after ``steps`` products from a start that
    is uniform on the sphere of ``size`` dimensions. An eigenvalue :math:`\lambda > \mu`
    whose eigenvector has the component :math:`c` in the start would have lifted the
    Rayleigh quotient of the Chebyshev polynomial of the span above :math:`\mu` unless

    .. math::
        c^2 \le \frac{\mu - a}{(\lambda - \mu)\,
            T_{s-1}\!\left(1 + 2\frac{\lambda - \mu}{\mu - a}\right)^2},

    and the chance of so small a component is at most :math:`\sqrt{2 P c^2 / \pi}`. The
    bound is that of Kaniel and Saad, turned around as Kuczynski and Wozniakowski (1992)
    do, with the measured gap in place of the worst.

    Args:
        highest: The highest Ritz value of the run.
        lowest: A lower bound of the spectrum (in practice the lowest Ritz value seen).
        steps: Products of the run, at least 1.
        size: Dimensions in which the start was drawn.
        chance: The chance that is accepted.

    >>> unseen_beyond(1.0, 0.0, 30, 1000, 1e-3) < 1.1
    True
    """
    width = highest - lowest
    if width <= 0:
        return highest

    def excess(logarithm: float) -> float:
        gap = math.exp(logarithm)
        angle = (steps - 1) * math.acosh(1 + 2 * gap)
        chebyshev = angle + math.log1p(math.exp(-2 * angle)) - math.log(2)
        return 0.5 * math.log(2 * size / (math.pi * gap)) - chebyshev - math.log(chance)

    low, high = math.log(1e-14), math.log(2 * size / chance**2 + 1)
    return (
        highest + width * math.exp(brentq(excess, low, high))
        if excess(low) > 0
        else highest
    )
