"""What instruments of curvature cost, from true products and a cheap matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.instruments.base.footprints import Footprint, footprint
from nablab.instruments.base.rehearsals import (
    Call,
    Cost,
    Prepared,
    Rehearsal,
    on_stand_in,
    placeholder,
    stand_in_rows,
)
from nablab.instruments.curvature.lanczos import Krylov
from nablab.instruments.curvature.matrices import Array, curvature, random_vector
from nablab.instruments.curvature.operators import Operator

SEARCH = (
    "How many products a search for eigenvalues takes is known only when it ends. The "
    "estimate is for a matrix with the spectrum that a few true products show."
)
# Of fewer rows, vectors would stay in the cache where the true ones do not.
FEWEST_ROWS = 100_000
BLOCK_VECTORS = 3  # vectors in a block that is timed beside a single one
# Steps of Lanczos on the true matrix, where its spectrum decides how long a search
# takes. On small networks, fresh and trained, the predicted number of products was 0.7
# to 2.5 times that of the search with 8 steps, and 0.8 to 1.8 times with 12, most often
# within 1.3.
STEPS = 10
# A node that stands apart holds at most this many eigenvalues: a random vector sees one
# as any of these.
MOST_PER_NODE = 3
# The density of random matrices falls to its ends as a square root (Wigner's
# semicircle).
EDGE = 2 / 3


class StandInMatrix:
    """A diagonal matrix in the place of a large one, with fewer rows.

    Attributes:
        rows: Its rows.
        shape: (rows, rows).
        dtype: As the true one's.
        device: As the true one's.
        cached: As the true one's.
        stands_for: Rows of the true one.
        products: What true products take.
    """

    def __init__(
        self, true: Operator, products: Products, spectrum: Array | None = None
    ) -> None:
        self.stands_for = true.shape[0]
        self.rows = stand_in_rows(self.stands_for, FEWEST_ROWS)
        self.shape = (self.rows, self.rows)
        self.dtype, self.device = true.dtype, true.device
        self.cached = bool(getattr(true, "cached", False))
        self.products = products
        self._widths: list[int] = []
        values = np.linspace(-1, 1, self.rows) if spectrum is None else spectrum
        self._diagonal = torch.from_numpy(values).to(true.device, true.dtype)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with a vector or block, holding the true one's memory."""
        self._widths.append(1 if vectors.ndim == 1 else vectors.shape[1])
        held = placeholder(
            self.products.bytes * self.rows / self.stands_for, self.device
        )
        rows = vectors if vectors.ndim == 1 else vectors.T
        product = rows * self._diagonal
        del held
        return product if vectors.ndim == 1 else product.T

    def begin(self) -> None:
        """See `StandIn`."""
        self._widths = []

    def true_cost(self) -> tuple[float, float]:
        """See `StandIn`."""
        blocks, columns = len(self._widths), sum(self._widths)
        first, block, column = self.products.seconds
        seconds = first + blocks * block + columns * column
        first, block, column = self.products.gradients
        return first + blocks * block + columns * column, seconds


@dataclass(frozen=True)
class Products:
    """What products with a matrix take.

    Attributes:
        seconds: Once, for each block of vectors, and for each vector.
        gradients: The same in gradient evaluations.
        bytes: Held during a product beside its result.
        kept: Bytes that are kept from the first product on.
    """

    seconds: tuple[float, float, float]
    gradients: tuple[float, float, float]
    bytes: int
    kept: int

    @classmethod
    def of(cls, matrix: Operator) -> Products:
        """Time a product with one vector and one with a few."""
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(
            BLOCK_VECTORS, matrix.shape[0], generator=generator, dtype=matrix.dtype
        )
        vectors = vectors.to(matrix.device).T
        result = matrix.shape[0] * matrix.dtype.itemsize
        one, spent_on_one = _product(matrix, vectors[:, 0])
        few, spent_on_few = _product(matrix, vectors)
        return cls(
            seconds=_parted(matrix, one.seconds, few.seconds),
            gradients=_parted(matrix, spent_on_one, spent_on_few),
            bytes=max(0, few.peak - BLOCK_VECTORS * result),
            kept=max(0, one.kept - result),
        )


def _product(matrix: Operator, vectors: Tensor) -> tuple[Footprint, float]:
    spent: list[float] = []

    def work() -> Tensor:
        before = matrix.objective.spent
        product = matrix @ vectors
        spent.append(matrix.objective.spent - before)
        return product

    taken = footprint(work, matrix.device)
    return taken, spent[0]  # of the first run, which may build graphs for all others


def _parted(matrix: Operator, one: float, few: float) -> tuple[float, float, float]:
    """Return the fixed cost, the cost by block and that by vector.

    They follow from one vector's and a few vectors' products.
    """
    # The first product built the graphs, for all others.
    if getattr(matrix, "cached", False):
        each = few / BLOCK_VECTORS
        return max(0.0, one - each), 0.0, each
    each = max(0.0, (few - one) / (BLOCK_VECTORS - 1))
    return 0.0, max(0.0, one - each), each


def spectrum_like(matrix: Operator, rows: int) -> Array:
    """Return eigenvalues (rows,) distributed about as those of a matrix.

    A few steps of Lanczos give nodes and weights of the spectrum's density as a random
    vector sees it (see `spectral_density`). A node stands for its share of the
    eigenvalues: the few of a node that stands apart are one, the others lie about it,
    and thin out towards the ends of the spectrum.
    """
    krylov = Krylov(
        random_vector(matrix, torch.Generator().manual_seed(0)), min(STEPS, rows)
    )
    while not krylov.full and krylov.absorb(matrix @ krylov.newest):
        pass
    nodes, rotation, _ = krylov.ritz()
    counts = np.round(rotation[0] ** 2 * rows).astype(int)
    counts[counts <= MOST_PER_NODE] = 1
    counts[counts.argmax()] += rows - counts.sum()
    middles = (nodes[1:] + nodes[:-1]) / 2
    lows, highs = np.append(nodes[0], middles), np.append(middles, nodes[-1])
    found = []
    for place, (node, count) in enumerate(zip(nodes, counts, strict=True)):
        shares = (np.arange(count) + 0.5) / count
        width = highs[place] - lows[place]
        if count == 1:
            found.append(np.array([node]))
        elif place == 0:
            found.append(lows[place] + width * shares**EDGE)
        elif place == len(nodes) - 1:
            found.append(highs[place] - width * shares**EDGE)
        else:
            found.append(lows[place] + width * shares)
    return np.concatenate(found)


def by_products(
    find: Callable[[], Callable[..., Any]],
    *,
    spectrum: bool = False,
    notes: tuple[str, ...] = (),
) -> Rehearsal:
    """Make the rehearsal of an instrument of curvature.

    Args:
        find: Gives the function of any matrix that the instrument calls, such as
            `trace_of`.
        spectrum: Whether the number of products depends on the spectrum.
        notes: See `Cost`.
    """

    def predict(call: Call) -> Cost:
        made: list[Operator] = []

        def prepare() -> Operator:
            made.clear()
            made.append(
                curvature(
                    call.model,
                    call.loss,
                    call.sets.data(),
                    **call.options_of(curvature),
                )
            )
            return made[0]

        taken = footprint(prepare, call.device)
        matrix = made[0]
        spent = matrix.objective.spent
        products = Products.of(matrix)
        values = (
            spectrum_like(matrix, stand_in_rows(matrix.shape[0], FEWEST_ROWS))
            if spectrum
            else None
        )
        stand_in = StandInMatrix(matrix, products, values)
        measure = find()
        options = call.options_of(measure)
        prepared = Prepared(taken, spent, taken.kept + products.kept)
        found = on_stand_in(
            call, prepared, stand_in, lambda matrix: measure(matrix, **options)
        )
        return dataclasses.replace(found, notes=notes)

    return Rehearsal(predict)
