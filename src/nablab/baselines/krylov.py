r"""Leading eigenpairs of a covariance, with a bound of what they miss.

LAPACK first turns the whole matrix into a tridiagonal one, at the pace of memory. A
block Krylov space (Musco and Musco 2015) of some hundred directions holds the leading
axes to all digits, and costs products of matrices alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GUARD = 32  # further pairs: the bound needs a gap below those that are kept
BLOCK = 64  # directions that are added at a time
GROUPS = 8  # of pairs that share a gap in the bound
# A space beyond this share of all coordinates is no cheaper than LAPACK.
LARGEST_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Pairs:
    """Approximate eigenpairs of a symmetric matrix C, the largest first.

    Attributes:
        values: float64 (m,).
        vectors: float64 (d, m), orthonormal columns.
        products: float64 (d, m): C times the vectors.
    """

    values: Tensor
    vectors: Tensor
    products: Tensor

    @classmethod
    def of(cls, vectors: Tensor, products: Tensor) -> Pairs:
        """Find the best pairs in a space (Rayleigh and Ritz).

        Args:
            vectors: float64 (d, m), a basis of it, orthonormal up to rounding.
            products: float64 (d, m): C times that.
        """
        from scipy.linalg import eigh

        inner, overlap = vectors.T @ products, vectors.T @ vectors
        values, turn = eigh(((inner + inner.T) / 2).numpy(), overlap.numpy())
        turned = torch.from_numpy(turn[:, ::-1].copy())
        largest = torch.from_numpy(values[::-1].copy())
        return cls(largest, vectors @ turned, products @ turned)

    def first(self, count: int) -> Pairs:
        """Return the largest."""
        return Pairs(
            self.values[:count], self.vectors[:, :count], self.products[:, :count]
        )

    def missed(self, count: int) -> float:
        r"""Bound how much larger the sum of the ``count`` true largest values can be.

        With residuals :math:`R = C V - V \Theta`, and if C has no value above
        :math:`\mu` outside of the space, the i-th value is at most that of
        :math:`\Theta + R^\top R / (\theta_i - \mu)`: what a Schur complement gives.
        :math:`\mu` is the last pair's value, which is why there are more pairs than
        ``count``.

        Returns:
            Infinity where no gap is left.
        """
        theta = self.values
        residuals = self.products - self.vectors * theta
        squares = residuals.T @ residuals
        bound = 0.0
        for places in torch.arange(count).chunk(GROUPS):
            gap = float(theta[places[-1]] - theta[-1])
            if gap <= 0:
                return float("inf")
            above = torch.linalg.eigvalsh(torch.diag(theta) + squares / gap).flip(0)
            bound += float((above[places] - theta[places]).sum())
        return max(0.0, bound)


def krylov_pairs(
    covariance: Tensor,
    count: int,
    *,
    tolerance: float,
    seed: int = 0,
) -> Pairs | None:
    """Find leading eigenpairs in a block Krylov space that grows until they are good.

    Args:
        covariance: float64 (d, d), symmetric, no negative eigenvalues.
        count: How many must be good.
        tolerance: Largest bound of what they miss, as a share of all that they leave.
        seed: Of the first directions.

    Returns:
        ``count + GUARD`` pairs; None if the space would have to grow too large.
    """
    size, wanted = len(covariance), count + GUARD
    limit = int(LARGEST_SHARE * size)
    total = float(covariance.trace())
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(size, BLOCK, generator=generator, dtype=torch.float64)
    block = torch.linalg.qr(start)[0]
    basis, products = block.new_empty(size, 0), block.new_empty(size, 0)
    grown = 2 * wanted  # before it, the pairs are not worth a look
    while basis.shape[1] + block.shape[1] <= limit:
        product = covariance @ block
        basis = torch.cat([basis, block], 1)
        products = torch.cat([products, product], 1)
        if basis.shape[1] >= grown:
            # A look costs as much as some products.
            grown = basis.shape[1] + 2 * BLOCK
            pairs = Pairs.of(basis, products).first(wanted)
            left = max(0.0, total - float(pairs.values[:count].sum()))
            if pairs.missed(count) <= tolerance * left + 1e-15 * total:
                return pairs
        block = product
        for _ in range(2):  # once leaves rounding errors that grow
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
    return None
