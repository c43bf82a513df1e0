"""The sides of a race.

Each trains the networks of a case in its own way, from the same weights.
"""

from __future__ import annotations

from typing import Protocol

from nablab.training.engine import FloatArray


class Absent(Exception):
    """A side cannot take part on this machine; the text says why."""


class Side(Protocol):
    """One way to train the networks of a case.

    Attributes:
        name: The heading in the table.
        replicas: How many networks one call of `train` trains.
        compile_seconds: Spent once before training, and counted.
    """

    name: str
    replicas: int
    compile_seconds: float

    def start(self) -> None:
        """Go back to the untrained networks; this is outside the clock."""
        ...

    def train(self, steps: int) -> FloatArray:
        """Take at least ``steps`` steps from where it is.

        Returns:
            The losses (steps taken, replicas), each from before its step.
        """
        ...
