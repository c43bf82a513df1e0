"""The outputs of many networks of one architecture, from their stacked weights, by the compiled engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nablab.training.engine import Unsupported
from nablab.training.fused_images import FusedImageEngine
from nablab.training.optimizers import SGD

Predictor = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def stacked_predictor(module: nn.Module, x: Tensor) -> Predictor | None:
    """What computes the outputs of K networks like ``module`` several times as fast as PyTorch.

    For `nablab.instruments.interpolate` and others that measure many points of weight space, for instance.

    Args:
        module: The architecture; its weights are not used.
        x: At least one input (N, ...), prepared as the network takes it.

    Returns:
        A function of stacked parameters (K, ...) by name and inputs (N, ...) that gives outputs (K, N, C); or
        None for a network that the compiled engine for images does not serve, or without a C compiler.
    """
    engines: dict[int, FusedImageEngine] = {}
    names = [name for name, _ in module.named_parameters()]

    def engine(replicas: int) -> FusedImageEngine:
        if replicas not in engines:
            networks = [copy.deepcopy(module) for _ in range(replicas)]
            labels = torch.zeros(1, dtype=torch.int64)
            engines[replicas] = FusedImageEngine(
                networks, x[:1], labels, loss="cross_entropy", optimizer=SGD(), own_labels=False
            )
        return engines[replicas]

    def predict(tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        own = engine(len(tensors[names[0]]))
        own.load_weights(torch.cat([tensors[name].flatten(1) for name in names], dim=1))
        return own.predict(inputs)

    try:
        engine(1)
    except Unsupported:
        return None
    return predict
