"""Corrupted labels: shares, distribution, nesting and bad inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nablab.data import by_truth, corrupt
from nablab.errors import UsageError


def true_labels(count: int = 40_000, classes: int = 10) -> torch.Tensor:
    return torch.arange(count) % classes


def test_share_0_changes_nothing() -> None:
    labels, redrawn = corrupt(true_labels(), 0.0, classes=10, seed=3)
    assert torch.equal(labels, true_labels())
    assert not redrawn.any()


def test_share_1_redraws_every_label_uniformly_whatever_the_true_one() -> None:
    truth = true_labels()
    labels, redrawn = corrupt(truth, 1.0, classes=10, seed=3)
    assert redrawn.all()
    counts = torch.zeros(10, 10).index_put(
        (truth, labels), torch.ones(len(truth)), accumulate=True
    )
    # 100 cells that expect 400 each: chi-squared with 90 degrees of freedom (rows are
    # fixed).
    chi_squared = float(((counts - 400) ** 2 / 400).sum())
    assert 50 < chi_squared < 140  # quantiles 0.0003 and 0.9994


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_is_that_of_redrawn_labels_and_a_tenth_of_them_stay(
    share: float,
) -> None:
    truth = true_labels()
    labels, redrawn = corrupt(truth, share, classes=10, seed=1)
    assert redrawn.double().mean().item() == pytest.approx(
        share, abs=4 * (share * (1 - share) / 4e4) ** 0.5
    )
    wrong = (labels != truth).double().mean().item()
    assert wrong == pytest.approx(0.9 * share, abs=0.011)
    assert torch.equal(labels[~redrawn], truth[~redrawn])


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_shares_of_one_seed_are_nested(one: float, other: float, seed: int) -> None:
    small, large = sorted((one, other))
    few, fewer = corrupt(true_labels(200), small, classes=10, seed=seed)
    many, more = corrupt(true_labels(200), large, classes=10, seed=seed)
    assert bool((~fewer | more).all())
    assert torch.equal(few[fewer], many[fewer])


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (corrupt(true_labels(), 0.5, classes=10, seed=7) for _ in range(2))
    other = corrupt(true_labels(), 0.5, classes=10, seed=8)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.redrawn, second.redrawn)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_neither_input_nor_dtype_is_changed() -> None:
    truth = true_labels(100)
    kept = truth.clone()
    labels, redrawn = corrupt(truth, 1.0, classes=10, seed=0)
    assert torch.equal(truth, kept)
    assert (labels.dtype, redrawn.dtype) == (torch.int64, torch.bool)
    assert (
        corrupt(truth.to(torch.uint8), 0.5, classes=10, seed=0).labels.dtype
        == torch.int64
    )
    assert np.array_equal(corrupt(truth[:0], 0.5, classes=10, seed=0).labels, [])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(
        UsageError, match=r"must be from 0 to 1, got (-0\.1|1\.5|nan)\."
    ):
        corrupt(true_labels(), share, classes=10, seed=0)


def test_labels_that_are_none() -> None:
    with pytest.raises(UsageError, match=r"from 0 to 8 for 9 classes, got 0 to 9"):
        corrupt(true_labels(), 0.5, classes=9, seed=0)
    with pytest.raises(UsageError, match=r"got -1 to 9"):
        corrupt(true_labels() - (true_labels() == 0).long(), 0.5, classes=10, seed=0)
    with pytest.raises(
        UsageError, match=r"whole numbers in one dimension, got torch\.float32"
    ):
        corrupt(true_labels().float(), 0.5, classes=10, seed=0)
    with pytest.raises(UsageError, match=r"shape \(4, 10\)"):
        corrupt(true_labels(40).reshape(4, 10), 0.5, classes=10, seed=0)
    with pytest.raises(UsageError, match=r"classes must be at least 1"):
        corrupt(true_labels(), 0.5, classes=0, seed=0)


def test_parts_by_truth_hold_each_label_once() -> None:
    truth = true_labels(500)
    labels = torch.stack(
        [corrupt(truth, 0.6, classes=10, seed=seed).labels for seed in (0, 1)]
    )
    parts = by_truth(labels, truth)
    assert all(part.shape == (2, 500) for part in parts.values())
    assert torch.equal((parts["unchanged"] == -100), (parts["changed"] != -100))
    assert torch.equal((parts["changed"] == -100), (parts["truth_of_changed"] == -100))
    assert torch.equal(
        torch.where(parts["changed"] == -100, parts["unchanged"], parts["changed"]),
        labels,
    )
    wrong = labels != truth
    assert torch.equal(parts["truth_of_changed"][wrong], truth.expand(2, -1)[wrong])
    assert bool((parts["unchanged"] == -100).eq(wrong).all())


def test_what_is_in_no_part_is_counted_nowhere() -> None:
    from nablab.training.engine import NOT_COUNTED

    parts = by_truth(torch.tensor([1, 0]), torch.tensor([0, 0]))
    assert int(parts["unchanged"].min()) == int(parts["changed"].min()) == NOT_COUNTED
