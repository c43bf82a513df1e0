"""Samplers give every sample its turn, and are functions of the seed and the batch's
number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nablab import training
from nablab.errors import UsageError
from nablab.training import Alternating, Bucketed, Folds, Shuffled
from nablab.training.batches import Batches
from nablab.training.samplers import Sampler


def epoch_of(sampler: Sampler, seed: int, epoch: int) -> list[torch.Tensor]:
    first = epoch * sampler.batches_per_epoch
    return [
        sampler.indices(seed, first + place)
        for place in range(sampler.batches_per_epoch)
    ]


@given(st.integers(1, 60), st.integers(1, 70))
def test_shuffled_gives_each_sample_once_an_epoch(samples: int, size: int) -> None:
    sampler = Shuffled(samples, size)
    for epoch in (0, 3):
        batches = epoch_of(sampler, 5, epoch)
        assert sorted(torch.cat(batches).tolist()) == list(range(samples))
        assert {len(batch) for batch in batches[:-1]} <= {size}


def test_shuffled_is_the_order_of_the_engines_for_one_tensor() -> None:
    sampler, batches = Shuffled(23, 5), Batches(23, 5, [8, 9], torch.device("cpu"))
    for first, last, indices in batches.between(0, 2 * batches.steps_per_epoch):
        assert indices is not None
        for step in range(first, last):
            for k, seed in enumerate([8, 9]):
                assert torch.equal(
                    sampler.indices(seed, step), indices[step - first, k]
                )


def test_all_samples_at_each_step_stay_in_their_order() -> None:
    assert torch.equal(Shuffled(4, None).indices(1, 7), torch.arange(4))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_bucketed_gives_each_sample_once_an_epoch(
    lengths: list[int], size: int, pool: int
) -> None:
    sampler = Bucketed(torch.tensor(lengths), size, batches_per_pool=pool)
    for epoch in (0, 2):
        batches = epoch_of(sampler, 4, epoch)
        assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_bucketed_pads_less_and_shuffles() -> None:
    lengths = torch.randint(
        5, 400, (2_000,), generator=torch.Generator().manual_seed(0)
    )

    def padded(sampler: Sampler) -> float:
        return sum(
            float(lengths[b].max() * len(b) - lengths[b].sum())
            for b in epoch_of(sampler, 1, 0)
        )

    bucketed = Bucketed(lengths, 32)
    assert padded(bucketed) < 0.15 * padded(Shuffled(2_000, 32))
    first, second = (torch.cat(epoch_of(bucketed, 1, epoch)) for epoch in (0, 1))
    assert not torch.equal(first, second)
    longest = torch.tensor(
        [float(lengths[batch].max()) for batch in epoch_of(bucketed, 1, 0)]
    )
    # batches are in no order of length
    assert 0.4 < float((longest.diff() > 0).float().mean()) < 0.6


@given(st.integers(4, 50), st.integers(2, 4))
def test_folds_are_apart_and_every_trial_takes_equally_many_steps(
    samples: int, folds: int
) -> None:
    held_out = {100 + fold: fold for fold in range(folds)}
    sampler = Folds(samples, folds, held_out, 3, seed=9)
    left = [set(sampler.validation(seed).tolist()) for seed in held_out]
    assert set.union(*left) == set(range(samples))
    assert sum(map(len, left)) == samples
    for seed in held_out:
        seen = torch.cat(epoch_of(sampler, seed, 0)).tolist()
        assert len(seen) == len(set(seen)) == samples - max(map(len, left))
        assert not set(seen) & left[seed - 100]


def test_folds_leave_out_several_parts_in_one_order_for_all() -> None:
    held_out = {5: (0, 2), 6: (1, 3), 7: (4, 0)}
    sampler = Folds(23, 5, held_out, 4, seed=3, order=8)
    order = Shuffled(23 - 5 - 5, 4)
    for seed, left_out in held_out.items():
        away = torch.cat([sampler.part(fold) for fold in left_out])
        assert torch.equal(sampler.validation(seed), away)
        assert not set(sampler.training(seed).tolist()) & set(away.tolist())
        for batch in range(2 * sampler.batches_per_epoch):
            # the same places for all, whatever stands there
            chosen = sampler.training(seed)[order.indices(8, batch)]
            assert torch.equal(sampler.indices(seed, batch), chosen)


@pytest.mark.parametrize("replicas", ["batched", "sequential"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_supervised_learns_from_a_samplers_batches(replicas: str, loss: Any) -> None:
    """A replica that leaves out a fold is trained as on the other folds alone."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=draw, dtype=torch.float64)
    y = x[:, :3] if loss == "mse" else x[:, :3].argmax(1)
    learner = training.Supervised(lambda: torch.nn.Linear(4, 3).double(), loss)
    held_out = {fold: fold for fold in range(3)}
    sampler = Folds(30, 3, held_out, 6, seed=3, order=8)
    recipe = training.Recipe(epochs=2, sampler=sampler)
    seeds = [0, 1, 2, 1]  # two points of a grid may see the same batches
    rates = training.SGD(learning_rate=[0.1, 0.1, 0.1, 0.5])
    found = training.train(
        learner,
        (x, y),
        dataclasses.replace(recipe, optimizer=rates),
        seeds=seeds,
        starts=[9] * 4,
        replicas=replicas,
    )
    assert found.steps_per_epoch == 4
    for replica, seed in enumerate(seeds):
        kept = sampler.training(seed)
        alone = training.train(
            learner,
            (x[kept], y[kept]),
            training.Recipe(
                epochs=2,
                batch_size=6,
                optimizer=training.SGD(learning_rate=rates.learning_rate_of(replica)),
            ),
            seeds=[8],
            starts=[9],
            replicas="sequential",
        )
        weight = found.parameters()["weight"][replica]
        torch.testing.assert_close(weight, alone.parameters()["weight"][0])


def test_bad_samplers_are_refused() -> None:
    with pytest.raises(UsageError, match="are left out"):
        Folds(9, 3, {1: (0, 1, 2)}, None, seed=0)
    with pytest.raises(UsageError, match="at least 1"):
        Bucketed(torch.ones(3), 0)
    with pytest.raises(UsageError, match="folds of 3 samples"):
        Folds(3, 4, {}, None, seed=0)


@given(st.integers(1, 40), st.integers(1, 50))
def test_alternating_shows_every_sample_in_both_versions_in_two_epochs(
    samples: int, size: int
) -> None:
    sampler = Alternating(samples, size)
    epochs = [torch.cat(epoch_of(sampler, 5, epoch)) for epoch in range(4)]
    for epoch in epochs:
        assert sorted((epoch % samples).tolist()) == list(range(samples))
    for first in (0, 1, 2):
        both = torch.cat(epochs[first : first + 2])
        assert sorted(both.tolist()) == list(range(2 * samples))
    other = torch.cat(epoch_of(Shuffled(samples, size), 5, 0))
    assert torch.equal(epochs[0] % samples, other)


def test_alternating_draws_which_version_comes_first() -> None:
    sampler = Alternating(4_000, 4_000)
    second = sampler.indices(0, 0) >= 4_000
    assert 1_850 < int(second.sum()) < 2_150  # 4.7 standard deviations
    assert not torch.equal(second, sampler.indices(1, 0) >= 4_000)
    with pytest.raises(UsageError, match="at least 1, got 0 and 3"):
        Alternating(0, 3)
