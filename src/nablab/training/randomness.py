"""The states of PyTorch's own generators, which layers such as dropout draw from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of the CPU's generator and of an accelerator's."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_generator_states(states: Sequence[Tensor], device: torch.device) -> None:
    """Go on from what `generator_states` gave."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


def seeded_generator_states(seed: int, device: torch.device) -> list[Tensor]:
    """Return the states that ``torch.manual_seed(seed)`` gives.

    The generators are left as they were.
    """
    before = generator_states(device)
    torch.manual_seed(seed)
    states = generator_states(device)
    set_generator_states(before, device)
    return states


def reseed(seed: int, device: torch.device) -> None:
    """Let the default generators start from ``seed``.

    A tenth of the time of ``torch.manual_seed``.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Leave the default generators as they were, whatever is drawn inside."""
    before = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(before, device)
