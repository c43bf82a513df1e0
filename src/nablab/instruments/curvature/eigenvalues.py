r"""Extreme eigenvalues of the Hessian: thick-restart Lanczos (Wu and Simon 2000).

The search stops by the residual :math:`\|Hv - \lambda v\|` of every wanted pair, never
because a Ritz value has stopped to change: in a cluster it seems to stand still long
before it has arrived.

One Krylov sequence sees one vector of each eigenspace, so it cannot find a repeated
eigenvalue twice. After the search a new random vector starts a second sequence,
orthogonal to what was found. What it finds is added; when it finds nothing, its Ritz
values bound what can have been missed (`Eigenvalues.others`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from nablab.errors import UsageError, unknown
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.curvature.lanczos import Krylov, beyond_breakdown, unseen_beyond
from nablab.instruments.curvature.matrices import (
    Array,
    Curvature,
    Matrix,
    check_matrix,
    curvature,
    finite_norm,
    gradients_spent,
    notes_of,
    random_vector,
    roundoff_of,
    rows_that_fit,
    true_rows,
)
from nablab.instruments.curvature.stand_ins import SEARCH, by_products

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Which = Literal["largest", "smallest", "magnitude", "both"]

# The basis holds this many vectors beyond four for each wanted pair: ten outliers of a
# small network's Hessian then need no restart, and re-orthogonalization stays cheap
# beside the products.
SPARE_ROWS = 100
# The largest eigenvalue of a trained network, checked, seldom needs more.
FIRST_ROWS = 40
SMALLEST_SPARE = 8  # below this a restart keeps too little to get on
CHANCE = 1e-3  # that an eigenvalue beyond `others` was missed
# The check must bound the others to this share of the norm beyond the last value.
CHECK_SLACK = 0.01
# The check may take this share of the search's products, or CHECK_LEAST if that is
# more.
CHECK_SHARE = 0.5
CHECK_LEAST = 20


@dataclass(frozen=True, kw_only=True)
class Eigenvalues(Measurement):
    """Extreme eigenpairs of a symmetric matrix.

    Attributes:
        values: Eigenvalues (k,), best first: descending for ``"largest"`` and
            ``"both"``, ascending for ``"smallest"``, by descending absolute value for
            ``"magnitude"``.
        vectors: Unit eigenvectors (k, P), one a row.
        residuals: ``||A v - lambda v||`` (k,), measured with one more product for each
            pair. An eigenvalue lies within this distance of each value.
        norm: The largest absolute Ritz value: the size that residuals are compared
            with.
        tolerance: The largest residual of a converged pair, relative to `norm`.
        pair_converged: Whether each pair reached the tolerance (k,).
        converged: Whether all did.
        others: The interval that holds every eigenvalue that is not listed, with a
            probability of error of 0.1 % at either end; None without the check.
        certified: Whether `others` reaches at most 1 % of the norm further out than the
            values do.
        products: Products with the matrix.
        which: What was asked for.
    """

    values: Array
    vectors: Array
    residuals: Array
    norm: float
    tolerance: float
    pair_converged: np.ndarray[Any, np.dtype[np.bool_]]
    converged: bool
    others: tuple[float, float] | None
    certified: bool
    products: int
    which: Which

    def plot(self) -> Figure:
        """Plot the eigenvalues with their residuals, and where all others lie."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="#767676", linewidth=0.6)
        if self.others is not None:
            axes.axhspan(
                *self.others,
                color="#56b4e9",
                alpha=0.25,
                linewidth=0,
                label="all other eigenvalues",
            )
        place = np.arange(1, len(self.values) + 1)
        for done, color, label in (
            (self.pair_converged, "#0072b2", "eigenvalue ± residual"),
            (~self.pair_converged, "#d55e00", "not converged"),
        ):
            if done.any():
                axes.errorbar(
                    place[done],
                    self.values[done],
                    self.residuals[done],
                    fmt="o",
                    markersize=5,
                    color=color,
                    capsize=3,
                    label=label,
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="place in the list", ylabel="eigenvalue")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def _expected(
    size: Size,
    *,
    count: int = 1,
    which: str = "largest",
    certify: bool = True,
    **_: Any,
) -> Expected:
    wanted = min(size.parameters, 2 * count if which == "both" else count)
    # Measured: 31 products for the top ten of LeNet, 21 for the top two of a small
    # perceptron; 120 for the three most negative of LeNet, which lie close together at
    # the edge of the bulk.
    search = min(
        size.parameters, (15 + 3 * wanted) * (4 if which in ("smallest", "both") else 1)
    )
    products = (
        search + wanted + (max(CHECK_LEAST, CHECK_SHARE * search) / 2 if certify else 0)
    )
    return Expected(
        2.5 * products, size.parameters * min(size.parameters, 5 * wanted + SPARE_ROWS)
    )


@instrument(
    expected=_expected,
    rehearse=by_products(lambda: eigenvalues_of, spectrum=True, notes=(SEARCH,)),
)
def hessian_eigenvalues(
    model: torch.nn.Module,
    loss: Any,
    data: Any,
    *,
    count: int = 1,
    which: Which = "largest",
    operator: Curvature = "hessian",
    tolerance: float = 1e-4,
    max_products: int = 1000,
    certify: bool = True,
    parameters: Any = "*",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Eigenvalues:
    """Compute the extreme eigenvalues and eigenvectors of the mean loss's Hessian.

    Args:
        model: Any module, in the mode in which it is measured.
        loss: A name, ``loss(output, target)``, or a `Closure`.
        data: One batch, an iterable of batches, or a data set.
        count: How many pairs; for ``which="both"`` at each end.
        which: ``"largest"`` (the algebraically largest), ``"smallest"`` (the most
            negative), ``"magnitude"`` (the largest in absolute value), or ``"both"``
            ends.
        operator: ``"hessian"`` or ``"gauss-newton"``.
        tolerance: The residual at which a pair has converged, relative to the norm of
            the matrix.
        max_products: Stop after this many products, converged or not; one for each pair
            follows, to measure its residual.
        certify: Look for what the search cannot see. Where nothing is found this takes
            at most half as many products again, or 20 if that is more.
        parameters: Names or glob patterns of the parameters.
        dtype: The dtype to measure in; by default the parameters' own.
        batch_size: Cut batches to bound the memory.
        seed: Seed of the random starts.

    Raises:
        UsageError: More pairs than parameters, an impossible option, or too little
            memory.

    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.diag(torch.tensor([2.0, 1.0]))
    >>> found = hessian_eigenvalues(model, "mse", (inputs, torch.ones(2, 1)), count=2)
    >>> found.values.round(5).tolist(), found.converged
    ([4.0, 1.0], True)
    """
    matrix = curvature(
        model,
        loss,
        data,
        operator=operator,
        parameters=parameters,
        dtype=dtype,
        batch_size=batch_size,
    )
    return eigenvalues_of(
        matrix,
        count=count,
        which=which,
        tolerance=tolerance,
        max_products=max_products,
        certify=certify,
        seed=seed,
    )


def eigenvalues_of(
    matrix: Matrix,
    *,
    count: int = 1,
    which: Which = "largest",
    tolerance: float = 1e-4,
    max_products: int = 1000,
    certify: bool = True,
    seed: int = 0,
) -> Eigenvalues:
    """Compute extreme eigenpairs of a symmetric matrix from its products.

    See `hessian_eigenvalues`.

    Args:
        matrix: An operator of this package, a dense symmetric tensor, or anything with
            ``matrix @ vectors``, ``shape``, ``dtype`` and ``device``.
        count: See `hessian_eigenvalues`.
        which: See `hessian_eigenvalues`.
        tolerance: See `hessian_eigenvalues`.
        max_products: See `hessian_eigenvalues`.
        certify: See `hessian_eigenvalues`.
        seed: See `hessian_eigenvalues`.

    >>> found = eigenvalues_of(torch.diag(torch.arange(5.0)), count=2, which="smallest")
    >>> bool(abs(found.values - [0.0, 1.0]).max() < 1e-5)
    True
    """
    _check(matrix, count, which, tolerance, max_products)
    search = _Search(matrix, count, which, tolerance, max_products, seed)
    while search.converge() and certify and search.finds_more():
        pass
    return search.result()


class _Search:
    """The state of a search: the basis, what it wants, and what it has spent."""

    def __init__(
        self,
        matrix: Matrix,
        count: int,
        which: Which,
        tolerance: float,
        max_products: int,
        seed: int,
    ) -> None:
        self.matrix, self.count, self.which = matrix, count, which
        self.tolerance, self.max_products = tolerance, max_products
        self.needed = 2 * count if which == "both" else count
        self.capacity = _capacity(matrix, self.needed)
        self.generator = torch.Generator().manual_seed(seed)
        self.krylov = Krylov(
            random_vector(matrix, self.generator), self.capacity, FIRST_ROWS
        )
        self.products, self.norm = 0, 0.0
        self.lowest, self.highest = np.inf, -np.inf
        self.spent_before = gradients_spent(matrix)
        # The first search goes on to half the tolerance: what the check adds later must
        # fit beside it.
        self.goal = tolerance / 2
        self.others: tuple[float, float] | None = None
        self.certified = False

    def converge(self) -> bool:
        """Grow and restart the basis until every wanted pair has converged.

        It ends early if the products are used up.
        """
        while True:
            if self._is_due() and self._has_converged():
                return True
            if self.krylov.size == self.matrix.shape[0]:
                return True
            if self.products >= self.max_products:
                return False
            if self.krylov.full:
                self._restart()
            self._step()

    def finds_more(self) -> bool:
        """Start again beside the wanted vectors; return whether a pair was missed."""
        krylov = self.krylov
        if krylov.size == self.matrix.shape[0]:
            self._settle()
            return False
        self._lock()
        krylov.neglected, ended, steps = 0.0, 0, 0
        for _ in range(max(CHECK_LEAST, round(CHECK_SHARE * self.products))):
            if krylov.full or self.products >= self.max_products:
                break
            self._step()
            rest = krylov.projected[
                self.needed : krylov.size, self.needed : krylov.size
            ]
            found = torch.linalg.eigvalsh(torch.from_numpy(rest.copy()))
            low, high = float(found[0]), float(found[-1])
            if self._lies_outside(low, high, self.tolerance):
                self.goal = self.tolerance
                return True
            steps += 1
            self.others = self._bounds(low, high, steps, ended + (krylov.coupling == 0))
            self.certified = not self._lies_outside(*self.others, CHECK_SLACK)
            if self.certified:
                break
            # The next product starts a sequence from a new random vector.
            if krylov.coupling == 0:
                ended, steps = ended + 1, 0
        return False

    def _settle(self) -> None:
        """Certify the values: the basis is the whole space, so none was missed."""
        values = self._ritz()[0]
        rest = np.delete(values, _select(values, self.count, self.which))
        margin = roundoff_of(self.matrix, self.norm)
        self.others = (
            (float(rest.min()) - margin, float(rest.max()) + margin)
            if rest.size
            else None
        )
        self.certified = True

    def result(self) -> Eigenvalues:
        """Return the wanted pairs, each with its residual measured."""
        values, rotation, _ = self._ritz()
        wanted = _select(values, self.count, self.which)
        values, rotation = values[wanted], rotation[:, wanted]
        rows = torch.cat(
            [mixed for _, mixed in self.krylov.combinations(rotation)], dim=1
        )
        rows /= rows.norm(dim=1, keepdim=True)
        difference = self.matrix @ rows.T - rows.T * torch.from_numpy(values).to(rows)
        finite_norm(difference)
        residuals = difference.norm(dim=0).double().cpu().numpy()
        done = residuals <= self.tolerance * self.norm
        return Eigenvalues(
            values=values,
            vectors=rows.double().cpu().numpy(),
            residuals=residuals,
            norm=self.norm,
            tolerance=self.tolerance,
            pair_converged=done,
            converged=bool(done.all()) and len(values) == self.needed,
            others=self.others,
            certified=self.certified,
            products=self.products + len(values),
            which=self.which,
            gradients=gradients_spent(self.matrix) - self.spent_before,
            notes=notes_of(self.matrix) + self._notes(done, values),
        )

    # Steps

    def _step(self) -> None:
        krylov = self.krylov
        self.products += 1
        if (
            krylov.absorb(self.matrix @ krylov.newest) == 0
            and krylov.size < self.matrix.shape[0]
        ):
            krylov.inject(random_vector(self.matrix, self.generator))

    def _is_due(self) -> bool:
        """Return whether to solve the small eigenproblem now.

        Beside a product it costs nothing until the basis is large.
        """
        size = self.krylov.size
        return size >= self.needed and (
            size % (1 + size // 32) == 0 or self.krylov.full
        )

    def _has_converged(self) -> bool:
        values, _, residuals = self._ritz()
        wanted = _select(values, self.count, self.which)
        return bool((residuals[wanted] <= self.goal * self.norm).all())

    def _ritz(self) -> tuple[Array, Array, Array]:
        values, rotation, residuals = self.krylov.ritz()
        self.lowest = min(self.lowest, values[0])
        self.highest = max(self.highest, values[-1])
        self.norm = max(self.norm, abs(self.lowest), abs(self.highest))
        return values, rotation, residuals

    def _restart(self) -> None:
        values, rotation, _ = self._ritz()
        spare = (self.capacity - self.needed) // 2
        kept = _select(
            values, self.count + spare // (2 if self.which == "both" else 1), self.which
        )
        self.krylov.restart(values[kept], rotation[:, kept])

    def _lock(self) -> None:
        values, rotation, residuals = self._ritz()
        wanted = _select(values, self.count, self.which)
        fresh = random_vector(self.matrix, self.generator)
        self.krylov.lock(values[wanted], rotation[:, wanted], residuals[wanted], fresh)

    def _bounds(
        self, low: float, high: float, steps: int, ended: int
    ) -> tuple[float, float]:
        """Bound the other eigenvalues from the running and the ended sequences."""
        size = self.matrix.shape[0] - self.needed
        margin = roundoff_of(self.matrix, self.norm)
        # Beside one large eigenvalue the lowest Ritz value is not a lower bound yet, so
        # each end is bounded from the other: the largest is known, or it would have
        # been found.
        least, most = self._chebyshev(low, high, steps, size)
        if ended:
            reach = beyond_breakdown(self.krylov.neglected, ended, size, CHANCE)
            least, most = max(least, low - reach), min(most, high + reach)
        return least - margin, most + margin

    def _chebyshev(
        self, low: float, high: float, steps: int, size: int
    ) -> tuple[float, float]:
        """Bound what steps from one random start leave at both ends."""
        if self.which == "smallest":
            most = unseen_beyond(high, min(self.lowest, low), steps, size, CHANCE)
            return -unseen_beyond(
                -low, -max(self.highest, most), steps, size, CHANCE
            ), most
        least = -unseen_beyond(-low, -max(self.highest, high), steps, size, CHANCE)
        return least, unseen_beyond(high, min(self.lowest, least), steps, size, CHANCE)

    def _lies_outside(self, low: float, high: float, slack: float) -> bool:
        """Return whether the others' interval reaches beyond those listed.

        A share of the norm is allowed for.
        """
        listed = np.diag(self.krylov.projected)[: self.needed]
        slack = max(slack, self.tolerance) * self.norm
        if self.which == "magnitude":
            return max(-low, high) > float(np.abs(listed).min()) + slack
        least, most = np.sort(listed)[[-self.count, self.count - 1]]
        above, below = high > least + slack, low < most - slack
        return bool(
            {"largest": above, "smallest": below, "both": above or below}[self.which]
        )

    def _notes(
        self, done: np.ndarray[Any, np.dtype[np.bool_]], values: Array
    ) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        if not done.all() or len(values) < self.needed:
            notes += (
                f"Only {int(done.sum())} of {self.needed} pairs converged in "
                f"{self.products} products. Raise max_products, or "
                f"tolerance={self.tolerance:g}, or measure in float64.",
            )
        if self.others is not None and not self.certified:
            low, high = self.others
            notes += (
                f"Eigenvalues that are not listed lie between {low:.6g} and "
                f"{high:.6g}, with a probability of error of 0.1 % at either end; a "
                "repeated eigenvalue may have been missed up to these limits.",
            )
        if self.others is None and not self.certified:
            notes += (
                "Not checked for repeated eigenvalues, of which one Krylov "
                "sequence sees one copy.",
            )
        return notes


def _select(values: Array, count: int, which: Which) -> NDArray[np.intp]:
    """Return places of the wanted among ascending values, best first."""
    size = len(values)
    if which == "smallest":
        return np.arange(min(count, size))
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")[:count]
    if which == "both" and 2 * count < size:
        return np.concatenate(
            [np.arange(size - 1, size - 1 - count, -1), np.arange(count - 1, -1, -1)]
        )
    return np.arange(size - 1, -1, -1)[: 2 * count if which == "both" else count]


def _capacity(matrix: Matrix, needed: int) -> int:
    """Return the rows of the basis: as many as help and as fit."""
    size = int(matrix.shape[0])
    fit = rows_that_fit(matrix) - 2 * needed - 1  # result and products need their own
    if fit < min(size, needed + SMALLEST_SPARE):
        rows = true_rows(matrix)
        gigabytes = (3 * needed + SMALLEST_SPARE) * rows * matrix.dtype.itemsize / 1e9
        raise UsageError(
            f"{needed} eigenvectors of {rows:,} entries need {gigabytes:.3g} GB, more "
            "than half of the free memory. Ask for fewer, choose some parameters by "
            "parameters=, or measure in float32."
        )
    return min(size, fit, 4 * needed + SPARE_ROWS)


def _check(
    matrix: Matrix, count: int, which: Which, tolerance: float, max_products: int
) -> None:
    check_matrix(matrix)
    if which not in get_args(Which):
        raise unknown("choice of eigenvalues", which, get_args(Which))
    size, needed = matrix.shape[0], 2 * count if which == "both" else count
    if count < 1 or needed > size:
        each = " at each end" if which == "both" else ""
        raise UsageError(
            f"count={count}{each} is impossible: the matrix has {size} eigenvalues, "
            f"one for each chosen parameter. Give 1 to {size // 2 if each else size}."
        )
    least = 10 * torch.finfo(matrix.dtype).eps
    if not least <= tolerance < 1:
        finer = ", or measure with dtype=torch.float64"
        remedy = "" if matrix.dtype == torch.float64 else finer
        raise UsageError(
            f"tolerance={tolerance:g} is impossible in {matrix.dtype}: give "
            f"{least:.1e} to 1{remedy}."
        )
    if max_products < needed:
        raise UsageError(
            f"max_products={max_products} is too few for {needed} pairs: give more, "
            "such as 1000."
        )
