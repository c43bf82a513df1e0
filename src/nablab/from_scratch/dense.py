"""A dense network and all that trains it, in NumPy.

What a deep-learning library does for such a network is written out: layers with their
derivatives, the loss, backpropagation, and stochastic gradient descent with momentum.
A batch is a matrix with one *column* per sample, so that a layer reads as in a
textbook, z = W x + b.

All arrays of a network have one type, float32 unless asked otherwise. NumPy makes it
easy to leave that type unnoticed, and float64 then spreads to all that is computed with
it: a uint8 image divided by 255 is float64, as is what ``rng.normal`` draws and what
``np.eye(10)`` holds. A Python number such as a learning rate changes no type; a number
that NumPy made, such as ``np.sqrt(2)``, does since NumPy 2.

Three lines train a network:

>>> rng = np.random.default_rng(0)
>>> network = dense_network(784, 128, 10, rng)
>>> optimizer = Momentum(network, 0.9)
>>> images = rng.integers(0, 256, (64, 1, 28, 28), dtype=np.uint8)
>>> x, labels = columns(images, mean=[0.5], std=[0.3]), rng.integers(0, 10, 64)
>>> first, *_, last = [train_step(network, optimizer, x, labels, 0.02) for _ in range(9)]
>>> last < first
True

Sources: Rumelhart, Hinton, Williams, Learning representations by back-propagating
errors, 1986; Goodfellow, Bengio, Courville, Deep Learning, 2016, chapters 6 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DType = npt.DTypeLike


class Layer:
    """A function of a batch that knows its derivative.

    Attributes:
        parameters: What training changes, arrays by name.
        gradients: The derivative of the loss by each of them, after `backward`.
        is_first: No layer before this one has parameters, so that nobody needs the
            derivative by its input: `backward` may return anything.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.is_first = False

    def forward(self, x: Array) -> Array:
        """Return the output, and keep what the derivative will need."""
        raise NotImplementedError

    def backward(self, slope: Array) -> Array:
        """Carry the derivative of the loss from the output back to the input.

        Args:
            slope: The derivative by each value of the output, in its shape.
        """
        raise NotImplementedError


class Dense(Layer):
    """A dense layer, z = W x + b.

    Its parameters are ``weight`` (outputs, inputs) and ``bias`` (outputs,).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rng: np.random.Generator,
        dtype: DType = np.float32,
    ) -> None:
        super().__init__()
        self.parameters = first_parameters((outputs, inputs), rng, dtype)
        self._x: Array

    def forward(self, x: Array) -> Array:
        """Map (inputs, N) to (outputs, N)."""
        self._x = x
        z: Array = self.parameters["weight"] @ x
        z += self.parameters["bias"][:, None]
        return z

    def backward(self, slope: Array) -> Array:
        """Map the slope (outputs, N) to that by the inputs (inputs, N)."""
        self.gradients = {"weight": slope @ self._x.T, "bias": slope.sum(axis=1)}
        # In the first layer this product would be a third of all work.
        return slope if self.is_first else self.parameters["weight"].T @ slope


def first_parameters(
    shape: tuple[int, ...], rng: np.random.Generator, dtype: DType
) -> dict[str, Array]:
    """Draw weights and biases between -1 and 1 over the root of the number of inputs.

    PyTorch starts its layers so. Weights of one size for all layers would make the
    outputs grow with the number of inputs.

    Args:
        shape: Of the weight: outputs first, then the inputs of one output.
        rng: What draws.
        dtype: Of both arrays.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return {
        "weight": rng.uniform(-bound, bound, shape).astype(dtype),
        "bias": rng.uniform(-bound, bound, shape[0]).astype(dtype),
    }


class ReLU(Layer):
    """The positive part of each value; its derivative at 0 counts as 0."""

    def forward(self, x: Array) -> Array:
        """Replace negative values by 0."""
        self._y = np.maximum(x, 0)
        return self._y

    def backward(self, slope: Array) -> Array:
        """Stop the slope where the output is 0."""
        return slope * (self._y > 0)


class Sigmoid(Layer):
    """The logistic function σ(x) = 1 / (1 + exp(-x)) of each value."""

    def forward(self, x: Array) -> Array:
        """Map each value to between 0 and 1."""
        # The same function written with tanh, which cannot overflow.
        self._y = 0.5 * np.tanh(0.5 * x) + 0.5
        return self._y

    def backward(self, slope: Array) -> Array:
        """Multiply by the derivative, σ (1 - σ)."""
        return slope * (self._y * (1 - self._y))


ACTIVATIONS: Mapping[str, type[Layer]] = {"relu": ReLU, "sigmoid": Sigmoid}


class Flatten(Layer):
    """Images (C, H, W, N) as columns (C * H * W, N)."""

    def forward(self, x: Array) -> Array:
        """Put all values of an image into one column."""
        self._shape = x.shape
        return x.reshape(-1, x.shape[-1])

    def backward(self, slope: Array) -> Array:
        """Give the slope the shape of images again."""
        return slope.reshape(self._shape)


class Network:
    """Layers one after the other, from a batch to logits, one row per class.

    Its parameters have the names and shapes that `torch.nn.Sequential` gives those of
    the same layers: ``1.weight`` belongs to the layer at place 1.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self._learning = [layer for layer in self.layers if layer.parameters]
        self._learning[0].is_first = True

    def forward(self, x: Array) -> Array:
        """Compute the logits (classes, N) of a batch (..., N)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, slope: Array) -> None:
        """Compute all gradients from the derivative of the loss by the logits.

        This is backpropagation: the chain rule, from the last layer to the first.
        """
        for layer in reversed(self.layers):
            slope = layer.backward(slope)
            if layer.is_first:
                break

    def gradients(self) -> dict[str, Array]:
        """Return what `backward` computed, by the names of the parameters."""
        return {
            f"{place}.{name}": value
            for place, layer in enumerate(self.layers)
            for name, value in layer.gradients.items()
        }

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters by name; they are the network's own arrays."""
        return {
            f"{place}.{name}": value
            for place, layer in enumerate(self.layers)
            for name, value in layer.parameters.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters by name into the network's own arrays."""
        for name, value in self.state_dict().items():
            value[...] = state[name]


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Compute the mean of -log p, where p is the probability of the right class.

    Probabilities are the softmax of the logits, p = exp(z) / sum exp(z). The derivative
    by the logits is short: p, minus 1 at the right class, over N.

    Args:
        logits: (classes, N).
        labels: Integers (N,), from 0.

    Returns:
        The loss in nats, and its derivative by the logits (classes, N).

    >>> loss, slope = softmax_cross_entropy(np.zeros((2, 1)), np.array([1]))
    >>> round(loss, 4), slope[:, 0].tolist()
    (0.6931, [0.5, -0.5])
    """
    samples = np.arange(len(labels))
    # A constant added to all logits of a sample changes no probability. With the
    # largest at 0, exp cannot overflow.
    shifted = logits - logits.max(axis=0)
    slope = np.exp(shifted)
    total = slope.sum(axis=0)
    loss = float((np.log(total) - shifted[labels, samples]).mean())
    slope /= total
    slope[labels, samples] -= 1
    slope /= len(labels)
    return loss, slope


class Momentum:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` computes it.

    A velocity remembers past gradients, v ← momentum v + gradient, and the weights
    follow it, w ← w - learning_rate v.
    """

    def __init__(self, network: Network, momentum: float) -> None:
        self._network, self._momentum = network, momentum
        self._velocity = {
            name: np.zeros_like(value) for name, value in network.state_dict().items()
        }

    def step(self, learning_rate: float) -> None:
        """Change the weights by the gradients that the network holds."""
        gradients = self._network.gradients()
        for name, weight in self._network.state_dict().items():
            velocity = self._velocity[name]
            velocity *= self._momentum
            velocity += gradients[name]
            # In place, so that the array stays the network's and keeps its type. A rate
            # that NumPy computed would make the product float64, hence float().
            weight -= float(learning_rate) * velocity

    def state_dict(self) -> dict[str, Array]:
        """Return the velocities by the names of the weights."""
        return self._velocity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy velocities by name."""
        for name, value in self._velocity.items():
            value[...] = state[name]


def train_step(
    network: Network, optimizer: Momentum, x: Array, labels: Array, learning_rate: float
) -> float:
    """Improve a network by one batch.

    Args:
        network: The network.
        optimizer: The optimizer of its weights.
        x: The batch (..., N).
        labels: Integers (N,), from 0.
        learning_rate: Of this step.

    Returns:
        The loss before the step, in nats.
    """
    loss, slope = softmax_cross_entropy(network.forward(x), labels)
    network.backward(slope)
    optimizer.step(learning_rate)
    return loss


def columns(
    images: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DType = np.float32,
) -> Array:
    """Make a batch of images: standardized, and with the samples last.

    Args:
        images: uint8 (N, C, H, W).
        mean: Per channel, on the scale from 0 to 1.
        std: Per channel, on the scale from 0 to 1; a channel with 0 becomes zeros.
        dtype: Of the result.

    Returns:
        (C, H, W, N), a view of memory in which each image lies in one piece.
    """
    scales = [1 / (255 * s) if s else 0.0 for s in std]
    shifts = [-m / s if s else 0.0 for m, s in zip(mean, std, strict=True)]
    x = images.astype(dtype)
    x *= np.asarray(scales, dtype)[:, None, None]
    x += np.asarray(shifts, dtype)[:, None, None]
    return x.transpose(1, 2, 3, 0)


def dense_network(
    inputs: int,
    hidden_units: int,
    classes: int,
    rng: np.random.Generator,
    *,
    activation: str = "relu",
    dtype: DType = np.float32,
) -> Network:
    """Build a network with one hidden layer, or with none: softmax regression.

    Args:
        inputs: Values of a sample; images are flattened.
        hidden_units: Units of the hidden layer; 0 leaves it out.
        classes: Outputs.
        rng: Draws the first weights.
        activation: A name of `ACTIVATIONS`.
        dtype: Of all arrays.
    """
    layers: list[Layer] = [Flatten()]
    if hidden_units:
        layers += [Dense(inputs, hidden_units, rng, dtype), ACTIVATIONS[activation]()]
    return Network([*layers, Dense(hidden_units or inputs, classes, rng, dtype)])
