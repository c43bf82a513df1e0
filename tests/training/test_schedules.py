"""Each schedule against its namesake in torch.optim.lr_scheduler."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

from nablab.errors import UsageError
from nablab.training import Constant, Cosine, Exponential, Linear, StepDecay


def torch_multipliers(make, steps, learning_rate=0.3):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    multipliers = []
    with warnings.catch_warnings():
        # SequentialLR passes an epoch to the schedulers that it holds, which they call
        # deprecated.
        warnings.simplefilter("ignore")
        schedule = make(optimizer)
        for _ in range(steps):
            multipliers.append(optimizer.param_groups[0]["lr"] / learning_rate)
            optimizer.step()
            schedule.step()
    return multipliers


def with_warmup(make):
    def build(optimizer):
        warmup = torch_schedules.LinearLR(optimizer, start_factor=1 / 7, total_iters=7)
        return torch_schedules.SequentialLR(
            optimizer, [warmup, make(optimizer)], milestones=[7]
        )

    return build


CASES = {
    "constant": (Constant(), lambda o: torch_schedules.LambdaLR(o, lambda step: 1.0)),
    "step decay": (
        StepDecay(9, 0.3),
        lambda o: torch_schedules.StepLR(o, 9, gamma=0.3),
    ),
    "exponential": (
        Exponential(0.95),
        lambda o: torch_schedules.ExponentialLR(o, 0.95),
    ),
    "linear": (
        Linear(0.8, 0.1),
        lambda o: torch_schedules.LinearLR(
            o, start_factor=0.8, end_factor=0.1, total_iters=40
        ),
    ),
    "cosine": (
        Cosine(0.1),
        lambda o: torch_schedules.CosineAnnealingLR(o, T_max=40, eta_min=0.03),
    ),
    "cosine, warm-up": (
        Cosine(warmup_steps=7),
        with_warmup(lambda o: torch_schedules.CosineAnnealingLR(o, T_max=33)),
    ),
    "linear, warm-up": (
        Linear(warmup_steps=7),
        with_warmup(
            lambda o: torch_schedules.LinearLR(
                o, start_factor=1.0, end_factor=0.0, total_iters=33
            )
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch(name):
    schedule, make = CASES[name]
    multipliers = schedule.multipliers(40)
    assert multipliers.dtype == np.float64
    np.testing.assert_allclose(
        multipliers, torch_multipliers(make, 40), rtol=1e-12, atol=1e-12
    )


@given(steps=st.integers(2, 300), warmup=st.integers(0, 50), minimum=st.floats(0, 1))
def test_cosine_rises_to_one_then_falls_to_its_minimum(steps, warmup, minimum):
    warmup = min(warmup, steps - 1)
    multipliers = Cosine(minimum, warmup_steps=warmup).multipliers(steps)
    assert len(multipliers) == steps
    assert multipliers[warmup] == pytest.approx(1)
    assert (np.diff(multipliers[:warmup]) > 0).all()
    assert (np.diff(multipliers[warmup:]) <= 1e-15).all()
    assert (multipliers > 0).all() or minimum == 0
    assert multipliers[warmup:].min() >= minimum - 1e-15


@pytest.mark.parametrize("schedule", [Cosine(warmup_steps=5), Linear(warmup_steps=-1)])
def test_a_warm_up_must_fit(schedule):
    with pytest.raises(UsageError, match=r"from 0 to 4"):
        schedule.multipliers(5)


def test_step_decay_needs_a_positive_period():
    with pytest.raises(UsageError, match="every must be at least 1"):
        StepDecay(0)
