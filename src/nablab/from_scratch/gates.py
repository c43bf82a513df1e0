"""Logic gates as tables: the smallest things that a neuron can learn, or cannot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """A function of bits.

    Attributes:
        name: What it is called.
        targets: Its value, 0 or 1, for every row of `inputs`.
        separable: Whether a line, or a plane, parts the zeros from the ones.
    """

    name: str
    targets: tuple[int, ...]
    separable: bool

    @property
    def inputs(self) -> Array:
        """All rows of bits, the last bit changing fastest: (rows, bits)."""
        bits = (len(self.targets) - 1).bit_length()
        return np.array(list(product((0.0, 1.0), repeat=bits)))

    @property
    def values(self) -> Array:
        """The value of each row, 0 or 1: (rows,)."""
        return np.array(self.targets, dtype=np.float64)


GATES = {
    gate.name: gate
    for gate in (
        Gate("and", (0, 0, 0, 1), separable=True),
        Gate("or", (0, 1, 1, 1), separable=True),
        Gate("nand", (1, 1, 1, 0), separable=True),
        Gate("nor", (1, 0, 0, 0), separable=True),
        Gate("xor", (0, 1, 1, 0), separable=False),
        # not ((x0 xor x1) and x2)
        Gate("not-xor-and", (1, 1, 1, 0, 1, 0, 1, 1), separable=False),
    )
}
"""The gates by name."""


def with_constant(inputs: Array) -> Array:
    """Append an input that is always 1, whose weight is the bias: (rows, bits + 1)."""
    return np.hstack([inputs, np.ones((len(inputs), 1))])
