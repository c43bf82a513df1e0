"""What choosing the best of several candidates does to the score that chose it."""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def best_of_subset(scores: FloatArray, values: FloatArray, size: int) -> float:
    r"""Compute the mean of ``values`` at the best of ``size`` candidates.

    The candidates are drawn without replacement, and the one with the highest score is
    taken: of equal scores the first. No drawing is needed: the candidate with i worse
    ones is the best of :math:`\binom{i}{m - 1}` of the :math:`\binom{n}{m}` subsets of
    m.

    Args:
        scores: What decides, (n,).
        values: What is wanted of the chosen one, (n,); the scores themselves for the
            expected highest score.
        size: m, from 1 to n.

    Raises:
        ValueError: There is no subset of this size.

    >>> scores = np.array([0.2, 0.8, 0.5])
    >>> round(best_of_subset(scores, scores, 1), 3)
    0.5
    >>> round(best_of_subset(scores, scores, 2), 3), best_of_subset(scores, scores, 3)
    (0.7, 0.8)
    """
    count = len(scores)
    if not 1 <= size <= count:
        raise ValueError(f"there is no subset of {size} of {count} candidates")
    # Rising scores; of equal ones the first is the best, so it comes last.
    rising = np.lexsort((-np.arange(count), scores))
    subsets = [comb(worse, size - 1) for worse in range(count)]
    shares = np.array([own / comb(count, size) for own in subsets])
    return float(shares @ np.asarray(values, dtype=np.float64)[rising])
