"""The race for principal components: every side is scored against float64."""

from __future__ import annotations

import torch

from benchmarks import svd
from nablab import baselines


def test_all_sides_are_timed_and_scored() -> None:
    found = svd.measure(
        "digits@300",
        count=8,
        code=4,
        repeats=1,
        epochs=1,
        size=8,
        channels=1,
        say=lambda _: None,
    )
    first, second = found.tables
    names = [row[0] for row in first.rows]
    assert names[0] == svd.OURS
    assert names[-1] == svd.TORCH
    assert len(names) == 5
    for row in first.rows:
        if "randomized" not in row[0] and "auto" not in row[0]:
            assert abs(float(row[3])) < 1e-6, row
    assert [row[0] for row in second.rows] == [
        svd.PRECONDITIONED,
        svd.ALTERNATING,
        svd.ADAM,
    ]
    assert float(second.rows[1][2]) < 1e-10
    assert len(found.goals) == 4


def test_the_excess_is_that_of_the_axes() -> None:
    variances = torch.tensor([4.0, 2.0, 1.0, 1.0]).double()
    moments = baselines.Moments(torch.zeros(4).double(), torch.diag(variances))
    exact = baselines.principal_components(moments, 2)
    axes = torch.eye(4)[[0, 2]]
    assert abs(svd.excess(axes, moments, exact) - 0.5) < 1e-12  # 3 is lost, not 2
    assert svd.excess(torch.eye(4)[:2] * 3, moments, exact) == 0
