"""The outputs of many networks of one architecture, by the compiled engine.

They are computed from the networks' stacked weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nablab.training.engine import Unsupported
from nablab.training.fused.images import FusedImageEngine
from nablab.training.optimizers import SGD


class StackedPredictor:
    """Computes the outputs of K networks of one architecture.

    It takes their stacked weights.

    Args:
        module: The architecture; its weights are not used.
        x: At least one input (N, ...), prepared as the network takes it.

    Raises:
        Unsupported: The compiled engine for images does not serve the network, or there
            is no C compiler.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        # A copy: while the module is measured, it may hold other tensors than its own.
        self._module, self._x = copy.deepcopy(module), x[:1]
        self._names = [name for name, _ in module.named_parameters()]
        self._engines: dict[int, FusedImageEngine] = {}
        self._holders: dict[int, object] = {}  # whose points an engine holds now
        self._engine(1)

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Compute the outputs of K networks.

        Args:
            tensors: Parameters (K, ...) by name.
            inputs: (N, ...), prepared as the networks take them.

        Returns:
            Outputs (K, N, C).
        """
        flat = self._flat(tensors)
        engine = self._engine(len(flat))
        self._holders.pop(len(flat), None)
        engine.load_weights(flat)
        return engine.predict(inputs)

    def at_points(
        self, basis: Mapping[str, Tensor], factors: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return a function of inputs (N, ...) at K combinations of B networks.

        It gives the outputs (K, N, C).

        Their first layer is computed for the B networks only, and their weights are
        made once.

        Args:
            basis: Parameters (B, ...) by name.
            factors: (K, B).
        """
        engine, flat = self._engine(len(factors)), self._flat(basis)

        def predict(inputs: Tensor) -> Tensor:
            if self._holders.get(len(factors)) is not predict:
                engine.load_points(flat, factors)
                self._holders[len(factors)] = predict
            return engine.predict(inputs)

        return predict

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].flatten(1) for name in self._names], dim=1)

    def _engine(self, replicas: int) -> FusedImageEngine:
        if replicas not in self._engines:
            networks = [copy.deepcopy(self._module) for _ in range(replicas)]
            labels = torch.zeros(1, dtype=torch.int64)
            self._engines[replicas] = FusedImageEngine(
                networks,
                self._x,
                labels,
                loss="cross_entropy",
                optimizer=SGD(),
                per_replica_targets=False,
            )
        return self._engines[replicas]


def stacked_predictor(module: nn.Module, x: Tensor) -> StackedPredictor | None:
    """Return a predictor several times as fast as PyTorch for K networks.

    The networks are like ``module``.

    For `nablab.instruments.interpolate` and others that measure many points of weight
    space, for instance.

    Args:
        module: The architecture; its weights are not used.
        x: At least one input (N, ...), prepared as the network takes it.

    Returns:
        A `StackedPredictor`, a function of stacked parameters (K, ...) by name and
        inputs (N, ...) that gives outputs (K, N, C); or None for a network that the
        compiled engine for images does not serve, or without a C compiler.
    """
    try:
        return StackedPredictor(module, x)
    except Unsupported:
        return None
