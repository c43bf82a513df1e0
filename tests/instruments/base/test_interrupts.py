"""Ctrl-C at any moment leaves model, generators and switches as they were."""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from nablab.instruments import Objective, gradient_norm
from nablab.instruments.base import interrupts
from nablab.instruments.base.surroundings import Generators


def model_and_data() -> tuple[nn.Sequential, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    return model, (torch.randn(12, 4), torch.randint(0, 3, (12,)))


def test_an_interrupt_in_the_forward_pass() -> None:
    model, data = model_and_data()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    states = Generators()
    handle = model[1].register_forward_hook(
        lambda *_: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        gradient_norm(model, "cross_entropy", data, dtype=torch.float64)
    handle.remove()
    assert {
        name: id(parameter) for name, parameter in model.named_parameters()
    } == before
    assert not Generators().differences(states)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_ctrl_c_waits_for_the_end_of_the_pass_and_the_second_does_not() -> (
    None
):
    model, data = model_and_data()
    reached: list[str] = []

    def press(name: str) -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(name)

    handles = [
        model[0].register_forward_hook(lambda *_: press("first")),
        model[1].register_forward_hook(lambda *_: press("second")),
    ]
    ids = [id(parameter) for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        gradient_norm(model, "cross_entropy", data)
    assert reached == ["first"]
    assert [id(parameter) for parameter in model.parameters()] == ids
    handles[1].remove()
    with pytest.raises(KeyboardInterrupt):
        gradient_norm(model, "cross_entropy", data)
    assert reached == ["first", "first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    handles[0].remove()
    gradient_norm(model, "cross_entropy", data)  # nothing is held any more


def test_an_interrupt_where_python_swallows_exceptions_ends_the_measurement() -> None:
    class Pressed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    model, data = model_and_data()
    handle = model[1].register_forward_hook(lambda *_: Pressed() and None)
    with pytest.raises(KeyboardInterrupt):
        gradient_norm(model, "cross_entropy", data)
    handle.remove()


@pytest.mark.parametrize("count", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_interrupts_at_random_moments(count: int) -> None:
    model, data = model_and_data()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    chosen, interrupted = random.Random(0), 0
    for _ in range(count):
        timer = threading.Timer(
            chosen.uniform(0.0, 0.02),
            lambda: signal.pthread_kill(threading.main_thread().ident, 2),
        )
        try:
            timer.start()
            for _ in range(1000):
                Objective(model, "cross_entropy", data).gradient()
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert {
            name: id(parameter) for name, parameter in model.named_parameters()
        } == before
        assert model[0].weight.dtype == torch.float32
    assert interrupted == count
    assert not interrupts._open
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_only_takes_note_lets_the_measurement_go_on() -> None:
    model, data = model_and_data()
    expected = Objective(model, "cross_entropy", data).gradient()
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    handle = model[1].register_forward_hook(
        lambda *_: signal.raise_signal(signal.SIGINT)
    )
    try:
        found = Objective(model, "cross_entropy", data).gradient()
    finally:
        handle.remove()
        signal.signal(signal.SIGINT, before)
    assert seen
    assert torch.equal(found, expected)


def _measure_for_long(model: nn.Module, data: object) -> None:
    for _ in range(1000):
        Objective(model, "cross_entropy", data).gradient()


def test_another_signal_that_raises_is_met_as_well() -> None:
    class Late(Exception):
        pass

    def ring(*_: object) -> None:
        raise Late

    model, data = model_and_data()
    ids = [id(parameter) for parameter in model.parameters()]

    # Set in here: on a busy machine it may ring before `pytest.raises` is entered.
    def measure_until(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _measure_for_long(model, data)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for k in range(20):
            with pytest.raises(Late):
                measure_until(0.001 + 0.0007 * k)
            assert [id(parameter) for parameter in model.parameters()] == ids
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_reading_shuffled_data_draws_from_no_generator_of_the_users() -> None:
    model, (x, y) = model_and_data()

    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return x[index] + float(np.random.randn() + random.random()), y[index]  # noqa: NPY002

    own = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        Noisy(), batch_size=4, shuffle=True, generator=own
    )
    plain = torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True)
    for data in (loader, plain, Noisy()):
        before, state = Generators(), own.get_state()
        gradient_norm(model, "cross_entropy", data)
        assert not Generators().differences(before)
        assert torch.equal(own.get_state(), state)
