"""One layer of neurons: Rosenblatt's perceptron and the sigmoid unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Loss = Literal["cross-entropy", "squared error"]


def sigmoid(z: Array) -> Array:
    r"""Return :math:`1 / (1 + e^{-z})`, without overflow for any z."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + small), small / (1 + small))


@dataclass
class Perceptron:
    """A neuron that says +1 or -1 (Rosenblatt 1958).

    Attributes:
        weights: (inputs,); a bias is the weight of an input that is always 1.
        mistakes: How often it was wrong while it learned.
    """

    weights: Array
    mistakes: int = 0

    def predict(self, inputs: Array) -> Array:
        """Return +1 where the weighted sum is above 0, else -1: (samples,)."""
        return np.where(inputs @ self.weights > 0, 1.0, -1.0)

    def learn(self, x: Array, y: float) -> bool:
        """Look at one sample; if the answer is wrong, add y x to the weights.

        Args:
            x: (inputs,).
            y: +1 or -1.

        Returns:
            Whether it was wrong. A sum of exactly 0 is wrong.
        """
        if y * (self.weights @ x) > 0:
            return False
        self.weights = self.weights + y * x
        self.mistakes += 1
        return True


@dataclass
class SigmoidUnit:
    """A neuron that says how likely the answer 1 is.

    Attributes:
        weights: (inputs,); a bias is the weight of an input that is always 1.
        loss: What it makes small: the cross-entropy, or half the squared error.
    """

    weights: Array
    loss: Loss = "cross-entropy"

    def output(self, inputs: Array) -> Array:
        """Return the outputs, from 0 to 1: (samples,)."""
        return sigmoid(inputs @ self.weights)

    def gradient(self, inputs: Array, targets: Array) -> Array:
        r"""Return the gradient of the mean loss by the weights: (inputs,).

        With s the output, y the target and x the input, that of one sample is
        :math:`(s - y) x` for the cross-entropy, and :math:`(s - y) s (1 - s) x` for
        :math:`\tfrac12 (s - y)^2`. The factor s (1 - s) is why a unit that is sure of a
        wrong answer learns slowly with the squared error.
        """
        output = self.output(inputs)
        error = output - targets
        if self.loss == "squared error":
            error = error * output * (1 - output)
        return error @ inputs / len(inputs)

    def step(self, inputs: Array, targets: Array, learning_rate: float) -> None:
        """Take one step against the gradient."""
        self.weights = self.weights - learning_rate * self.gradient(inputs, targets)
