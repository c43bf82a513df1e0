"""Seeds, initial weights and the order of samples."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nablab.training import build_replicas, derive, generator
from nablab.training.batches import Batches


def test_derived_seeds_never_change():
    """Written down once: a change would silently change every published number."""
    assert derive() == 0xE3B0C44298FC1C14 >> 1, "SHA-256 of nothing, a public constant"
    assert derive("weights", 0) == 8327438491520930819
    assert derive("deep-vs-shallow", 3, "labels", 0.5) == 7868792915375490976


def test_derived_seeds_are_the_same_in_another_process():
    code = "from nablab.training import derive; print(derive('a', 1, 2.5))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(other.stdout) == derive("a", 1, 2.5)


parts = st.lists(
    st.one_of(st.text(max_size=5), st.integers(), st.floats(allow_nan=False)),
    max_size=4,
)


@given(parts, parts)
def test_different_parts_give_different_seeds(one, other):
    assert 0 <= derive(*one) < 2**63
    same = [(type(p), str(p)) for p in one] == [(type(p), str(p)) for p in other]
    assert (derive(*one) == derive(*other)) == same


def test_parts_are_not_just_joined():
    assert derive("ab", "c") != derive("a", "bc")
    assert len({derive(1), derive(1.0), derive("1")}) == 3


@pytest.mark.parametrize("part", [True, None, b"x"])
def test_other_types_are_refused(part):
    with pytest.raises(TypeError, match="seeds derive from"):
        derive(part)


def test_weights_are_those_of_pytorch_and_ignore_the_neighbours():
    def build():
        return nn.Linear(3, 2)

    before = torch.get_rng_state()
    modules = build_replicas(build, [11, 5, derive("x")])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(build().weight, modules[1].weight)
    assert torch.equal(build_replicas(build, [5])[0].weight, modules[1].weight)


def test_the_global_generator_survives_a_build_that_fails():
    def fail():
        torch.rand(3)
        raise ValueError("no network")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="no network"):
        build_replicas(fail, [1])
    assert torch.equal(torch.get_rng_state(), before)


def collect(batches, edges):
    """Every step's indices as a list of (K, size) tensors, asked for in pieces."""
    found = []
    for start, end in itertools.pairwise(edges):
        for first, last, indices in batches.between(start, end):
            assert first == len(found)
            assert last - first == len(indices)
            found.extend(indices)
    return found


@given(
    samples=st.integers(2, 30),
    size=st.integers(1, 29),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_each_epoch_sees_each_sample_once_however_the_steps_are_cut(
    samples, size, cuts
):
    size = min(size, samples - 1)
    device = torch.device("cpu")
    whole = collect(Batches(samples, size, [3, 4], device), [0, 40])
    pieces = collect(Batches(samples, size, [3, 4], device), sorted({0, 40, *cuts}))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))

    per_epoch = Batches(samples, size, [3, 4], device).steps_per_epoch
    assert per_epoch == int(np.ceil(samples / size))
    for start in range(0, 40 - per_epoch + 1, per_epoch):
        epoch = torch.cat(whole[start : start + per_epoch], dim=1)
        assert torch.equal(
            epoch.sort(dim=1).values, torch.arange(samples).expand(2, -1)
        )


def test_orders_come_from_the_seed_and_the_epoch():
    whole = collect(Batches(10, 10 - 1, [3, 4], torch.device("cpu")), [0, 4])
    expected = torch.randperm(10, generator=generator(derive(4, "order", 1)))
    assert torch.equal(torch.cat([whole[2][1], whole[3][1]]), expected)


@pytest.mark.parametrize("size", [None, 10, 99])
def test_the_full_batch_needs_no_indices(size):
    batches = Batches(10, size, [0], torch.device("cpu"))
    assert batches.full
    assert batches.steps_per_epoch == 1
    assert list(batches.between(2, 7)) == [(2, 7, None)]
