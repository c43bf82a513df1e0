"""The races: which network, on how many points, with how many replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nablab.data.functions import targets as functions
from nablab.models import dense
from nablab.models.dense_network import Activation, parameter_count
from nablab.training import build_replicas

if TYPE_CHECKING:
    from torch import Tensor, nn

LEARNING_RATE = 1e-3

# Compiling is counted for a training of this length, the standard preset of
# deep-vs-shallow.
COUNTED_STEPS = 20_000


@dataclass(frozen=True)
class Case:
    """One race: replica k starts from seed k and learns sinc.

    It trains on the full batch with Adam at 1e-3.

    Attributes:
        name: What the table calls the network.
        widths: Its layers, as `nablab.models.dense` reads them.
        activation: After every layer but the last.
        points: Training points.
        replicas: K.
    """

    name: str
    widths: str
    activation: Activation
    points: int
    replicas: int

    @property
    def parameters(self) -> int:
        """Weights and biases of one network."""
        return parameter_count(self.widths)

    @property
    def label(self) -> str:
        """The network's name and size, and the number of points."""
        return f"{self.name} {self.parameters:,} P, {self.points:,} points"

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, float32 (N, 1)."""
        return functions.target("sinc").train(self.points)

    def build(self) -> nn.Module:
        """Build one untrained network."""
        return dense(self.widths, self.activation)

    def modules(self) -> list[nn.Module]:
        """Build the K untrained networks, from which every side starts."""
        return build_replicas(self.build, range(self.replicas))


_NETWORKS: Sequence[tuple[str, str, Activation, int, Sequence[int]]] = (
    ("deep", "1-5-10x5-5-1", "leaky_relu", 300, (10, 30, 100)),
    ("middle", "1-10-18-15-4-1", "leaky_relu", 300, (10, 30, 100)),
    ("shallow", "1-190-1", "leaky_relu", 300, (10, 30, 100)),
    ("wide", "1-10-20x6-1", "relu", 4_000, (8, 30)),
)

ALL = tuple(
    Case(name, widths, activation, points, replicas)
    for name, widths, activation, points, counts in _NETWORKS
    for replicas in counts
)
QUICK = ALL[:1]
