"""A network that learns from images as they are stored, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nablab.from_scratch.dense import (
    Array,
    DType,
    Momentum,
    Network,
    columns,
    train_step,
)

# Images of one prediction: what the layers make of more of them leaves the cache.
AT_ONCE = 250


class Learner:
    """A network with its optimizer, and what makes its input of uint8 images.

    ``state_dict`` and ``load_state_dict`` give and take all that a step changes.

    Args:
        network: The network.
        momentum: How much of the last step is kept in the next.
        mean: Of the training images, per channel, on the scale from 0 to 1.
        std: Of the training images, per channel, on the scale from 0 to 1.
        dtype: That of the network.
    """

    def __init__(
        self,
        network: Network,
        *,
        momentum: float,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: DType = np.float32,
    ) -> None:
        self.network, self.optimizer = network, Momentum(network, momentum)
        self._form: dict[str, Any] = {"mean": mean, "std": std, "dtype": dtype}

    def step(self, images: Array, labels: Array, learning_rate: float) -> float:
        """Learn from one batch, and return the loss before that, in nats.

        Args:
            images: uint8 (N, C, H, W).
            labels: Integers (N,), from 0.
            learning_rate: Of this step.
        """
        x = columns(images, **self._form)
        return train_step(self.network, self.optimizer, x, labels, learning_rate)

    def logits(self, images: Array) -> Array:
        """Compute the logits (N, classes) of uint8 images (N, C, H, W)."""
        parts = [
            self.network.forward(columns(images[at : at + AT_ONCE], **self._form)).T
            for at in range(0, len(images), AT_ONCE)
        ]
        return np.concatenate(parts)

    def weights(self) -> dict[str, Array]:
        """Return the network's parameters by name."""
        return self.network.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return weights and velocities."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy weights and velocities."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class Batches:
    """Which samples stand in which batch: every epoch in an order of its own.

    The last batch of an epoch holds what is left.

    >>> batches = Batches(samples=10, batch_size=4, seed=0)
    >>> batches.per_epoch, len(batches.at(2))
    (3, 2)
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self._samples, self._size, self._seed = samples, batch_size, seed
        self.per_epoch = -(-samples // batch_size)
        self._epoch, self._order = 0, self._shuffled(0)

    def at(self, step: int) -> Array:
        """Return the samples of a step, int64 (N,), whatever was asked before."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[place * self._size : (place + 1) * self._size]

    def _shuffled(self, epoch: int) -> Array:
        # A generator of its own for every epoch: a training that is resumed in the
        # middle of one finds the same order.
        return np.random.default_rng([self._seed, epoch]).permutation(self._samples)
