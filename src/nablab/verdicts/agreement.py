"""Kendall's tau of trials: bootstrap interval and permutation test, over many weightings at once."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from nablab.verdicts.resampling import (
    ROUNDING,
    Array,
    Contrast,
    Design,
    bca,
    bootstrap_counts,
    signs_of_pairs,
    tails,
)

Groups = npt.NDArray[np.intp]
Ranks = npt.NDArray[np.int16]


def contrast_tau(
    x: Array, y: Array, shift: float, design: Design, *, groups: Groups, blocked: bool
) -> Contrast:
    """Kendall's tau-b of two variables; infinities are welcome.

    The interval is a BCa bootstrap, and never tighter than complete agreement allows: var(tau) is at most
    2 (1 - tau^2) / n for n trials (Hoeffding 1948), so a score interval at tau = 1 starts at
    (1 - c) / (1 + c) with c = 2 z^2 / n. The test permutes ``y``; for a shift the permutation
    distribution is moved by it, which errs on the safe side as tau varies most near 0.

    Args:
        x: First variable, such as the level of a factor.
        y: Second variable.
        shift: Tau under the null hypothesis.
        design: Confidence, number of resamples and seed.
        groups: Group of every trial. Not blocked: trials are resampled within their group.
        blocked: The groups are blocks, such as seeds: they are resampled whole, and ``y`` is permuted
            within them.
    """
    signs_x, signs_y = signs_of_pairs(x), signs_of_pairs(y)
    tau = _Tau(signs_x, signs_y)
    effect = float(tau(np.ones((1, len(x))))[0])
    _, groups = np.unique(groups, return_inverse=True)
    replicates = tau(_weights_of_trials(groups, blocked, design))
    influences = _jackknife(tau, groups, blocked)
    z = float(ndtri((1 + design.confidence) / 2))
    units = int(groups.max()) + 1 if blocked else len(x)
    low, high = effect, effect
    if np.ptp(replicates) > ROUNDING:
        low, high = bca(replicates, effect, influences, z * math.sqrt(units / (units - 1)))
    # A block counts as one comparison, a single trial as half of one.
    c = z**2 / units * (1 if blocked else 2)
    tightest = tau.largest * (1 - c) / (1 + c)
    low, high = min(low, max(tightest, -tau.largest)), max(high, min(-tightest, tau.largest))
    if blocked:
        null = tau.numerators(x, _shuffled_within(y, groups, design))
    else:
        null = _null_numerators(tuple(x), tuple(np.sort(_ranks(y))), design.resamples, design.seed)
    null = null / tau.denominator if tau.denominator > 0 else np.zeros(len(null))
    above, below = tails(effect - shift, null, exact=False, scale=1.0)
    error = float(np.std(replicates))
    return Contrast(effect=effect, low=low, high=high, p_above=above, p_below=below, standard_error=error)


class _Tau:
    """Kendall's tau-b of weighted trials, for many weightings at once."""

    def __init__(self, signs_x: Array, signs_y: Array) -> None:
        self.agreement = signs_x * signs_y
        self.untied_x, self.untied_y = np.abs(signs_x), np.abs(signs_y)
        pairs_x, pairs_y = self.untied_x.sum(), self.untied_y.sum()
        self.denominator = float(np.sqrt(pairs_x * pairs_y))
        self.largest = float(min(pairs_x, pairs_y)) / self.denominator if self.denominator > 0 else 1.0

    def __call__(self, weights: Array) -> Array:
        def sums(matrix: Array) -> Array:
            return np.asarray(np.einsum("bi,bi->b", weights @ matrix, weights))

        pairs = np.sqrt(sums(self.untied_x) * sums(self.untied_y))
        return np.asarray(sums(self.agreement) / np.where(pairs > 0, pairs, 1.0))

    @staticmethod
    def numerators(x: Array, shuffled: Ranks) -> Array:
        """Concordant less discordant pairs (each counted twice) of ``x`` and every row of ``shuffled``."""
        total = np.zeros(len(shuffled))
        signs = signs_of_pairs(x).astype(np.float32)
        for i in range(len(x) - 1):
            first, later = shuffled[:, i : i + 1], shuffled[:, i + 1 :]
            order = (first > later).astype(np.int8) - (first < later).astype(np.int8)
            total += 2 * (order @ signs[i, i + 1 :])
        return total


def _jackknife(tau: _Tau, groups: Groups, blocked: bool) -> list[Array]:
    """Influence of every trial (or block) on tau, by group."""
    units = groups if blocked else np.arange(len(groups))
    left_out = tau((units != np.arange(units.max() + 1)[:, None]).astype(np.float64))
    parts = [left_out] if blocked else [left_out[groups == group] for group in range(groups.max() + 1)]
    return [part.mean() - part for part in parts]


def _weights_of_trials(groups: Groups, blocked: bool, design: Design) -> Array:
    """How often each trial stands in each resample."""
    if blocked:
        counts = bootstrap_counts(int(groups.max()) + 1, design.resamples, design.seed, 0)
        return counts[:, groups]
    weights = np.empty((design.resamples, len(groups)))
    for stream in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == stream)
        weights[:, members] = bootstrap_counts(len(members), design.resamples, design.seed, stream)
    return weights


def _ranks(values: Array) -> Ranks:
    """Dense ranks: enough for comparing, and quicker than floats."""
    return np.unique(values, return_inverse=True)[1].astype(np.int16)


def _shuffled_within(y: Array, groups: Groups, design: Design) -> Ranks:
    generator = np.random.default_rng([design.seed, 3])
    shuffled = np.tile(_ranks(y), (design.resamples, 1))
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        shuffled[:, members] = generator.permuted(shuffled[:, members], axis=1)
    return shuffled


@lru_cache(maxsize=64)
def _null_numerators(x: tuple[float, ...], ranks: tuple[int, ...], resamples: int, seed: int) -> Array:
    """The permutation distribution depends on the values, not on who holds them: claims share it."""
    tiled = np.tile(np.array(ranks, dtype=np.int16), (resamples, 1))
    shuffled = np.random.default_rng([seed, 2]).permuted(tiled, axis=1)
    return _Tau.numerators(np.array(x), shuffled)
