"""Kendall's tau of a trend and of a correlation: interval and permutation test.

What is permuted and resampled are whole units, never single trials that share
something: the levels of a trend stay where they are and the seeds are resampled; of a
correlation whole seeds and whole levels of every factor change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from nablab.statistics.resampling import (
    Array,
    Contrast,
    Design,
    bootstrap_counts,
    signs_of_pairs,
    tails,
)
from nablab.statistics.small_samples import score_interval, spread_without_effect, ways

Groups = npt.NDArray[np.intp]


def contrast_trend(
    levels: Array,
    values: Array,
    seeds: Groups,
    shift: float,
    design: Design,
    *,
    paired: bool,
) -> Contrast:
    """Test Kendall's tau-b of ``values`` along ``levels``; infinities are welcome.

    Paired, whole seeds are resampled, and values are permuted within a seed. Unpaired,
    trials are resampled within their level and permuted freely. For a shift the
    permutation distribution is moved by it, which errs on the safe side as tau varies
    most near 0.

    Args:
        levels: The factor's level of every trial.
        values: The metric of every trial; one per level and seed.
        seeds: The seed of every trial.
        shift: Tau under the null hypothesis.
        design: Confidence, number of resamples and seed.
        paired: Whether trials of one seed are compared with each other only.
    """
    groups = _numbered(seeds if paired else levels)
    if paired:
        null = _Tau.numerators(levels, _shuffled_within(values, groups, design))
        units = int(groups.max()) + 1
    else:
        null = _null_numerators(
            tuple(levels), tuple(np.sort(_ranks(values))), design.resamples, design.seed
        )
        units = len(levels)
    weights = (
        _weights_of_seeds(groups, design) if paired else _weights_within(groups, design)
    )
    return _contrast(levels, values, shift, design, weights, (null, False), units)


def contrast_correlation(
    x: Array, y: Array, cells: Cells, shift: float, design: Design, *, paired: bool
) -> Contrast:
    """Test Kendall's tau-b of two metrics over trials that share seeds and conditions.

    Trials of one seed share its luck, and trials of one condition share what it is:
    eight networks with five seeds each are not forty independent trials. If ``x`` and
    ``y`` have nothing to do with each other, whole seeds of ``y``, and whole levels of
    each factor, can change places without a trace; the test compares tau with all such
    exchanges. Paired, only levels change places, so what a seed does to both metrics is
    no evidence. The bootstrap resamples whole seeds and whole conditions (Owen 2007,
    "The pigeonhole bootstrap").

    Args:
        x: First metric of every trial.
        y: Second metric.
        cells: Which seed and which condition every trial belongs to.
        shift: Tau under the null hypothesis.
        design: Confidence, number of resamples and seed.
        paired: Whether seeds stay where they are.
    """
    table_x, table_y = (np.full(cells.shape, np.nan) for _ in "xy")
    table_x[cells.conditions, cells.seeds], table_y[cells.conditions, cells.seeds] = (
        x,
        y,
    )
    rows, columns, exact = _exchanges(
        cells.factors, 1 if paired else cells.shape[1], design
    )
    if paired:
        columns = np.broadcast_to(
            np.arange(cells.shape[1]), (len(rows), cells.shape[1])
        )
    ranked = _ranks(table_y.ravel()).reshape(cells.shape)
    shuffled = ranked[rows[:, :, None], columns[:, None, :]].reshape(len(rows), -1)
    null = _Tau.numerators(table_x.ravel(), shuffled)
    counts = [
        bootstrap_counts(size, design.resamples, design.seed, stream)[:, places]
        for stream, (size, places) in enumerate(
            zip(cells.shape, (cells.conditions, cells.seeds), strict=True)
        )
        if size > 1
    ]
    weights = np.prod(counts, axis=0)
    return _contrast(x, y, shift, design, weights, (null, exact), max(cells.shape))


@dataclass(frozen=True)
class Cells:
    """Where trials stand in a table of conditions by seeds.

    Attributes:
        conditions: The row of every trial, from 0.
        seeds: The column of every trial, from 0.
        factors: Number of levels of each factor, if the rows are all their combinations
            in order; else the number of rows alone.
    """

    conditions: Groups
    seeds: Groups
    factors: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return int(self.conditions.max()) + 1, int(self.seeds.max()) + 1

    def ways(self, seeds: int) -> float:
        """Count the ways in which levels and this number of seeds can change places."""
        return ways(self.factors, seeds)


def _contrast(
    x: Array,
    y: Array,
    shift: float,
    design: Design,
    weights: Array,
    null: tuple[Array, bool],
    units: int,
) -> Contrast:
    """Estimate tau with its interval and its test.

    The interval's spread is that of the bootstrap, but no less than that of the test's
    arrangements: a bootstrap of few values can have no spread at all, and the interval
    and the test speak of one thing.
    """
    tau = _Tau(signs_of_pairs(x), signs_of_pairs(y))
    effect = float(tau(np.ones((1, len(x))))[0])
    numerators, exact = null
    arranged = (
        numerators / tau.denominator
        if tau.denominator > 0
        else np.zeros(len(numerators))
    )
    above, below = tails(effect - shift, arranged, exact, scale=1.0)
    # Shifted data are none of the arrangements, so nothing else keeps p from being 0.
    above, below = max(above, 1 / len(arranged)), max(below, 1 / len(arranged))
    largest = tau.largest
    room = max(0.0, largest**2 - effect**2)
    without = float(np.mean(arranged**2)) / largest**2
    resampled = float(np.var(tau(weights))) / room if room > 1e-9 else 0.0
    # A bootstrap of n units is too narrow by this factor; the arrangements' spread is
    # not an estimate.
    resampled *= units / (units - 1)
    variance = max(without, resampled)
    # all values of every seed are tied, so neither shows how tau could have come out
    if variance == 0:
        variance = spread_without_effect(max(2, len(x)))
    z = float(ndtri((1 + design.confidence) / 2))
    low, high = score_interval(effect, largest, z**2 * variance)
    error = math.sqrt(variance * max(room, 0.1 * largest**2))
    return Contrast(
        effect=effect,
        low=low,
        high=high,
        p_above=above,
        p_below=below,
        standard_error=error,
    )


class _Tau:
    """Kendall's tau-b of weighted trials, for many weightings at once."""

    def __init__(self, signs_x: Array, signs_y: Array) -> None:
        self.agreement = signs_x * signs_y
        self.untied_x, self.untied_y = np.abs(signs_x), np.abs(signs_y)
        pairs_x, pairs_y = self.untied_x.sum(), self.untied_y.sum()
        self.denominator = float(np.sqrt(pairs_x * pairs_y))
        self.largest = (
            float(min(pairs_x, pairs_y)) / self.denominator
            if self.denominator > 0
            else 1.0
        )

    def __call__(self, weights: Array) -> Array:
        def sums(matrix: Array) -> Array:
            return np.asarray(np.einsum("bi,bi->b", weights @ matrix, weights))

        pairs = np.sqrt(sums(self.untied_x) * sums(self.untied_y))
        return np.asarray(sums(self.agreement) / np.where(pairs > 0, pairs, 1.0))

    @staticmethod
    def numerators(x: Array, shuffled: npt.NDArray[np.float32]) -> Array:
        """Count concordant less discordant pairs, each twice, of ``x`` and every row.

        A pair with a NaN is neither.
        """
        total = np.zeros(len(shuffled))
        signs = signs_of_pairs(x).astype(np.float32)
        for i in range(len(x) - 1):
            if not signs[i, i + 1 :].any():
                continue
            first, later = shuffled[:, i : i + 1], shuffled[:, i + 1 :]
            order = (first > later).astype(np.int8) - (first < later).astype(np.int8)
            # not `@`: some BLAS kernels in single precision raise a false "invalid
            # value" warning on a product this small
            total += 2 * np.einsum("bi,i->b", order, signs[i, i + 1 :])
        return total


def _numbered(labels: npt.NDArray[np.generic]) -> Groups:
    """Give equal labels equal numbers, from 0."""
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def _ranks(values: Array) -> npt.NDArray[np.float32]:
    """Compute dense ranks, which single precision holds exactly; NaN stays NaN."""
    known = ~np.isnan(values)
    ranks = np.full(len(values), np.nan, dtype=np.float32)
    ranks[known] = np.unique(values[known], return_inverse=True)[1]
    return ranks


def _exchanges(
    factors: Sequence[int], seeds: int, design: Design
) -> tuple[Groups, Groups, bool]:
    """Return orders of the rows and of the columns.

    All if at most ``resamples``, else random ones.

    Returns:
        Rows, shape (arrangements, product of ``factors``); columns, (arrangements,
        ``seeds``); and whether these are all there are.
    """
    sizes = [*factors, seeds]
    exact = sum(math.lgamma(size + 1) for size in sizes) <= math.log(
        design.resamples + 0.5
    )
    if exact:
        dealt = list(product(*(list(permutations(range(size))) for size in sizes)))
        orders = [np.array([deal[i] for deal in dealt]) for i in range(len(sizes))]
    else:
        generator = np.random.default_rng([design.seed, 5, *sizes])
        orders = [
            np.argsort(
                generator.random((design.resamples, size)), axis=1, kind="stable"
            )
            for size in sizes
        ]
    rows = orders[0]
    for order in orders[1:-1]:
        rows = (rows[:, :, None] * order.shape[1] + order[:, None, :]).reshape(
            len(rows), -1
        )
    return rows, orders[-1], exact


def _weights_of_seeds(seeds: Groups, design: Design) -> Array:
    """Count how often each trial stands in each resample of whole seeds."""
    return bootstrap_counts(int(seeds.max()) + 1, design.resamples, design.seed, 0)[
        :, seeds
    ]


def _weights_within(levels: Groups, design: Design) -> Array:
    """Count how often each trial stands in each resample within the levels."""
    weights = np.empty((design.resamples, len(levels)))
    for stream in range(int(levels.max()) + 1):
        members = np.flatnonzero(levels == stream)
        weights[:, members] = bootstrap_counts(
            len(members), design.resamples, design.seed, stream
        )
    return weights


def _shuffled_within(
    y: Array, groups: Groups, design: Design
) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng([design.seed, 3])
    shuffled = np.tile(_ranks(y), (design.resamples, 1))
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        shuffled[:, members] = generator.permuted(shuffled[:, members], axis=1)
    return shuffled


@lru_cache(maxsize=64)
def _null_numerators(
    x: tuple[float, ...], ranks: tuple[float, ...], resamples: int, seed: int
) -> Array:
    """Compute the permutation distribution once for all claims that share it.

    It depends on the values, not on who holds them.
    """
    tiled = np.tile(np.array(ranks, dtype=np.float32), (resamples, 1))
    shuffled = np.random.default_rng([seed, 2]).permuted(tiled, axis=1)
    return _Tau.numerators(np.array(x), shuffled)
