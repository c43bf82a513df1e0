"""The best of a subset: against all subsets, one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablab.statistics.selection import best_of_subset


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_it_is_the_mean_over_all_subsets(
    scores: list[int], draw: st.DataObject
) -> None:
    size = draw.draw(st.integers(1, len(scores)))
    values = np.arange(len(scores)) ** 2.0
    # `max` takes the first of equal ones, as argmax does
    best = [
        max(subset, key=lambda place: scores[place])
        for subset in combinations(range(len(scores)), size)
    ]
    found = best_of_subset(np.array(scores, dtype=float), values, size)
    assert found == pytest.approx(values[best].mean())


def test_the_whole_grid_has_its_best_and_one_point_its_mean() -> None:
    scores, values = np.array([0.1, 0.9, 0.4]), np.array([3.0, 5.0, 10.0])
    assert best_of_subset(scores, values, 3) == 5
    assert best_of_subset(scores, values, 1) == pytest.approx(6)
    with pytest.raises(ValueError, match="subset of 4 of 3"):
        best_of_subset(scores, values, 4)
