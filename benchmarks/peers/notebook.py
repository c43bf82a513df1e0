"""The loop of a course notebook: one network after the other, default or fused Adam."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from benchmarks.cases import LEARNING_RATE, Case
from nablab.models.dense_network import parse_widths
from nablab.training.engine import FloatArray


class Network(nn.Module):
    """A dense network as a notebook writes it."""

    def __init__(self, widths: tuple[int, ...], activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs) to (N, outputs)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        out: torch.Tensor = self.layers[-1](x)
        return out


class PlainLoop:
    """Replica 0 of the case, trained step by step.

    One replica is enough to measure: the loops of K replicas share nothing, so K of
    them take K times as long.
    """

    replicas = 1
    compile_seconds = 0.0

    def __init__(self, case: Case, *, fused: bool) -> None:
        self.name = "PyTorch loop, fused Adam" if fused else "PyTorch loop"
        self._case, self._fused = case, fused
        self._x, self._y = case.data()
        self._initial = list(case.modules()[0].parameters())
        self.start()

    def start(self) -> None:
        """Make a new network with the weights of replica 0, and a new optimizer."""
        activation = (
            nn.LeakyReLU() if self._case.activation == "leaky_relu" else nn.ReLU()
        )
        self._model = Network(parse_widths(self._case.widths), activation)
        with torch.no_grad():
            for parameter, value in zip(
                self._model.parameters(), self._initial, strict=True
            ):
                parameter.copy_(value)
        # None is the default, which on the CPU updates one tensor after the other.
        fused = True if self._fused else None
        self._optimizer = torch.optim.Adam(
            self._model.parameters(), lr=LEARNING_RATE, fused=fused
        )

    def train(self, steps: int) -> FloatArray:
        """Run the notebook's cell."""
        model, optimizer, criterion = self._model, self._optimizer, nn.MSELoss()
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(model(self._x), self._y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)[:, None]
