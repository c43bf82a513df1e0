"""PyTorch's generators and the building of networks from seeds.

`nablab.seeding.derive` makes the seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nablab.seeding import derive as derive  # known under this module's name, too


def generator(seed: int) -> torch.Generator:
    """Make a CPU generator that starts from ``seed``."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Built:
    """A network, and the states in which building it left the global generators.

    Attributes:
        module: The network.
        states: A hash of each state, by the name of the library; empty where a network
            before this one tells as much.
    """

    module: nn.Module
    states: Mapping[str, int]

    def generators_equal(self, other: Built) -> list[str]:
        """Name the libraries whose generators stand where they stood for the other."""
        return [
            name for name, state in self.states.items() if state == other.states[name]
        ]


def built(build: Callable[[], nn.Module], seeds: Sequence[int]) -> list[Built]:
    """Call ``build`` once per seed, with all global generators seeded and put back.

    PyTorch's as by ``torch.manual_seed(seed)``; those of NumPy and of Python's `random`
    by a seed derived from it, since networks of users draw weights from these, too.
    """
    networks = []
    with _own_generators():
        for place, seed in enumerate(seeds):
            torch.default_generator.manual_seed(seed)
            # Their global generators are the point: a user's layers may draw from them.
            np.random.seed(derive(seed, "numpy") % 2**32)  # noqa: NPY002
            random.seed(derive(seed, "random"))
            module = build()
            # States are compared between the first network and the first of another
            # seed. Hashing them for each takes a twentieth of a short training.
            told = place > 0 and (seed == seeds[0] or set(seeds[1:place]) - {seeds[0]})
            networks.append(Built(module, {} if told else _generator_states()))
    return networks


def build_replicas(
    build: Callable[[], nn.Module], seeds: Sequence[int]
) -> list[nn.Module]:
    """Call ``build`` once per seed, each time as if after ``torch.manual_seed(seed)``.

    The weights are those that PyTorch gives for the seed, whatever the other seeds are;
    the global generators are left as they were.

    Args:
        build: Makes one untrained network.
        seeds: One per network.
    """
    return [network.module for network in built(build, seeds)]


@contextmanager
def _own_generators() -> Iterator[None]:
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


def _generator_states() -> dict[str, int]:
    """Return what tells two states of each library's generator apart.

    A hash, as there may be many networks.
    """
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    position = numpy_state["state"]
    return {
        "PyTorch": hash(torch.get_rng_state().numpy().tobytes()),
        "NumPy": hash(
            (position["key"].tobytes(), position["pos"], numpy_state["gauss"])
        ),
        "Python's random": hash(random.getstate()),
    }
