"""Two layers of sigmoid units, and backpropagation by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nablab.from_scratch.gates import with_constant
from nablab.from_scratch.neurons import Loss, sigmoid

Array = NDArray[np.float64]


@dataclass
class TwoLayers:
    """Hidden sigmoid units, and a sigmoid unit that reads them.

    Attributes:
        hidden: (hidden units, inputs + 1): their weights, the biases last.
        output: (hidden units + 1,): weights of the unit that reads them, its bias last.
        loss: What it makes small: the cross-entropy, or half the squared error.
    """

    hidden: Array
    output: Array
    loss: Loss = "cross-entropy"

    @classmethod
    def start(
        cls,
        inputs: int,
        hidden_units: int,
        rng: np.random.Generator,
        loss: Loss = "cross-entropy",
    ) -> TwoLayers:
        """Draw weights from a normal distribution of deviation 1."""
        hidden = rng.normal(size=(hidden_units, inputs + 1))
        return cls(hidden, rng.normal(size=hidden_units + 1), loss)

    def predict(self, inputs: Array) -> Array:
        """Return the outputs, from 0 to 1: (samples,)."""
        activations = sigmoid(with_constant(inputs) @ self.hidden.T)
        return sigmoid(with_constant(activations) @ self.output)

    def gradients(self, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the gradients of the mean loss by `hidden` and by `output`.

        Forward: from the inputs to the outputs. Backward: how the loss changes with
        each sum, from the outputs to the inputs (Rumelhart, Hinton, Williams 1986).

        Args:
            inputs: (samples, inputs).
            targets: (samples,), 0 or 1.
        """
        x = with_constant(inputs)
        activations = sigmoid(x @ self.hidden.T)
        a = with_constant(activations)
        outputs = sigmoid(a @ self.output)

        by_output_sum = (outputs - targets) / len(inputs)
        if self.loss == "squared error":
            by_output_sum = by_output_sum * outputs * (1 - outputs)
        by_activation = by_output_sum[:, None] * self.output[:-1]
        by_hidden_sum = by_activation * activations * (1 - activations)
        return by_hidden_sum.T @ x, by_output_sum @ a

    def step(self, inputs: Array, targets: Array, learning_rate: float) -> None:
        """Take one step against the gradient."""
        by_hidden, by_output = self.gradients(inputs, targets)
        self.hidden = self.hidden - learning_rate * by_hidden
        self.output = self.output - learning_rate * by_output
