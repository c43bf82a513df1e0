"""Instruments that end early, by an error or Ctrl-C, leave all as it was."""

from __future__ import annotations

import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from tests.instruments.battery.case import Case, make
from tests.instruments.battery.instruments import INSTRUMENTS
from tests.instruments.battery.models import MODELS
from tests.instruments.battery.purity import State

# Forms that keep something an interrupted instrument could leave behind.
FORMS = (
    "shared by alias",
    "LSTM",
    "weight norm, hook",
    "convolution, batch norm",
    "features kept",
    "checkpointed",
)
FAST_FORM, FAST_PASS = "shared by alias", 2
TIMED_FORMS = ("shared by alias", "LSTM", "weight norm, hook")
TIMED = (
    "gradient_norm",
    "loss_plane",
    "sharpness, keskar",
    "hessian_matrix",
    "interpolate",
    "input_sensitivity",
)
IN_FAST, IN_ALL = 10, 100  # interrupts of a form


class Broken(Exception):
    """An error that no instrument knows."""


def fail() -> None:
    raise Broken("the user's code failed")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def cells() -> list[Any]:
    found = []
    for instrument in INSTRUMENTS:
        for form in FORMS:
            for number in (1, 2, 5):
                fast = form == FAST_FORM and number == FAST_PASS
                marks = () if fast else (pytest.mark.slow,)
                found.append(pytest.param(instrument, form, number, marks=marks))
    return found


@pytest.mark.parametrize("what", [fail, interrupt])
@pytest.mark.parametrize(("instrument", "form", "number"), cells())
def test_a_forward_pass_that_ends_early_changes_nothing(
    instrument: str, form: str, number: int, what: Callable[[], None]
) -> None:
    case = make(MODELS[form])
    happen_at_pass(case.model, number, what)
    before = State(case)
    with ending_early():
        INSTRUMENTS[instrument].measure(case)
    changed = before.differences(case)
    assert not changed, "\n".join(changed)


def happen_at_pass(model: nn.Module, number: int, what: Callable[[], None]) -> None:
    """Let something happen once, at the end of this forward pass."""
    passes = iter(range(1, 1_000_000))

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if next(passes) == number:
            what()

    model.register_forward_hook(hook)


@contextmanager
def ending_early() -> Iterator[None]:
    """Let an instrument that is stopped end with the error itself, or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Broken, KeyboardInterrupt, UsageError):
            yield


@pytest.mark.parametrize("form", TIMED_FORMS)
def test_ctrl_c_at_a_random_moment_changes_nothing(form: str) -> None:
    interrupt_often(form, IN_FAST)


@pytest.mark.slow
@pytest.mark.parametrize("form", TIMED_FORMS)
def test_ctrl_c_at_any_moment_changes_nothing(form: str) -> None:
    interrupt_often(form, IN_ALL)


def interrupt_often(form: str, times: int) -> None:
    """Interrupt instruments in turn, at moments drawn from the time they take."""
    draw = random.Random(f"{form} {times}")
    durations = {instrument: duration_of(instrument, form) for instrument in TIMED}
    struck, broken = 0, []
    for turn in range(times):
        instrument = TIMED[turn % len(TIMED)]
        case = make(MODELS[form])
        before = State(case)
        struck += interrupted_after(
            draw.uniform(0, durations[instrument]), instrument, case
        )
        broken += [
            f"{instrument}, turn {turn}: {line}" for line in before.differences(case)
        ]
    assert not broken, "\n".join(broken)
    assert struck >= times // 3, (
        f"only {struck} of {times} interrupts came while something was measured"
    )


def duration_of(instrument: str, form: str) -> float:
    """Seconds of an uninterrupted call, the second one: the first one warms up."""
    seconds = 0.0
    for _ in range(2):
        case = make(MODELS[form])
        begin = time.perf_counter()
        with ending_early():
            INSTRUMENTS[instrument].measure(case)
        seconds = time.perf_counter() - begin
    return seconds


def interrupted_after(seconds: float, instrument: str, case: Case) -> bool:
    """Measure with a Ctrl-C after some seconds; return whether it ended the call."""
    kept = signal.signal(signal.SIGALRM, lambda number, frame: interrupt())
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-4))
            INSTRUMENTS[instrument].measure(case)
    except KeyboardInterrupt:
        return True
    except UsageError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert torch.equal(state, torch.get_rng_state())
    return False
