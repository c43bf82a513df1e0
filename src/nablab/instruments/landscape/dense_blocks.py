"""Dense networks at many points of weight space at once, by batched matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function: TypeAlias = Callable[[Tensor], Tensor]

# Samples and activations of a tile: half a MiB of float32 and as much for the next
# layer stay in the cache.
TILE_SAMPLES = 128
TILE_NUMBERS = 2**17


@dataclass(frozen=True)
class _Layer:
    weight: Tensor  # (B, outputs, inputs) at the basis points
    bias: Tensor | None  # (B, outputs)
    after: tuple[Function, ...]  # what follows it, elementwise


class DenseBlocks:
    r"""A dense `nn.Sequential` at points :math:`\sum_b c_b \theta_b`.

    Its layers are linear layers and elementwise functions.

    A first layer is linear in its weights: its outputs at all points are combinations
    of those at the B basis points, so it costs B products however many points there
    are.

    Attributes:
        later_numbers: Weights behind the first layer, which every point multiplies by
            itself.
    """

    def __init__(self, layers: list[_Layer], flatten: bool) -> None:
        self._layers, self._flatten = layers, flatten
        self._widest = max(layer.weight.shape[1] for layer in layers)
        self.later_numbers = sum(layer.weight[0].numel() for layer in layers[1:])

    @classmethod
    def of(cls, model: nn.Module, basis: Mapping[str, Tensor]) -> DenseBlocks | None:
        """Return the blocks of a model, or None if it is another kind of network."""
        if type(model) is not nn.Sequential or any(
            has_hooks(module) for module in model.modules()
        ):
            return None
        # `named_children` leaves out a module that stands twice.
        children = list(model._modules.items())
        flatten = bool(children) and is_flatten(children[0][1])
        layers: list[_Layer] = []
        for name, module in children[int(flatten) :]:
            if type(module) is nn.Linear:
                wanted = [f"{name}.weight"] + [f"{name}.bias"] * (
                    module.bias is not None
                )
                if not all(key in basis for key in wanted):
                    return None
                layers.append(
                    _Layer(
                        basis[wanted[0]],
                        basis[wanted[1]] if len(wanted) > 1 else None,
                        (),
                    )
                )
            elif (function := elementwise(module)) is not None and layers:
                layers[-1] = _Layer(
                    layers[-1].weight, layers[-1].bias, (*layers[-1].after, function)
                )
            else:
                return None
        return cls(layers, flatten) if layers else None

    def takes(self, inputs: Any) -> bool:
        """Return whether these are inputs (N, D)."""
        if not isinstance(inputs, Tensor):
            return False
        return inputs.ndim == 2 or (self._flatten and inputs.ndim > 2)

    def outputs(self, factors: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs (K, N, C) of inputs (N, D).

        The points have the coefficients ``factors`` (K, B).

        They are a view of a tensor (K, C, N).
        """
        inputs = inputs.flatten(1).T
        later = [_combined(factors, layer) for layer in self._layers[1:]]
        found = inputs.new_empty(
            len(factors), self._layers[-1].weight.shape[1], inputs.shape[1]
        )
        samples = min(TILE_SAMPLES, inputs.shape[1])
        points = max(1, min(len(factors), TILE_NUMBERS // (samples * self._widest)))
        # Two buffers for all tiles: new memory for every product tripled its time.
        buffers = [inputs.new_empty(points * self._widest * samples) for _ in range(2)]
        for start in range(0, inputs.shape[1], samples):
            tile = slice(start, start + samples)
            first = self._first(inputs[:, tile])
            for k in range(0, len(factors), points):
                block = slice(k, k + points)
                hidden = self._start(factors[block], first, buffers[0])
                for index, (weight, bias) in enumerate(later):
                    target = _view(
                        buffers[(index + 1) % 2],
                        len(hidden),
                        weight.shape[1],
                        hidden.shape[2],
                    )
                    hidden = torch.bmm(weight[block], hidden, out=target)
                    hidden = (
                        hidden if bias is None else hidden.add_(bias[block, :, None])
                    )
                    hidden = self._activate(index + 1, hidden)
                found[block, :, tile] = hidden
        return found.transpose(1, 2)

    def _first(self, inputs: Tensor) -> Tensor:
        """Return the first layer's outputs at the basis points, (B, H, N)."""
        layer = self._layers[0]
        product = torch.matmul(layer.weight, inputs)
        return product if layer.bias is None else product + layer.bias[:, :, None]

    def _start(self, factors: Tensor, first: Tensor, buffer: Tensor) -> Tensor:
        target = _view(buffer, len(factors), *first.shape[1:])
        torch.mm(factors, first.flatten(1), out=target.flatten(1))
        return self._activate(0, target)

    def _activate(self, index: int, hidden: Tensor) -> Tensor:
        for function in self._layers[index].after:
            hidden = function(hidden)
        return hidden


def _combined(factors: Tensor, layer: _Layer) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weights and biases at the points.

    Their shapes are (K, outputs, inputs) and (K, outputs).
    """
    weight = torch.tensordot(factors, layer.weight, 1)
    return weight, layer.bias if layer.bias is None else torch.tensordot(
        factors, layer.bias, 1
    )


def _view(buffer: Tensor, *shape: int) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def elementwise(module: nn.Module) -> Function | None:
    """Apply an activation, in place where PyTorch can.

    Nothing else needs the values.
    """
    if type(module) is nn.LeakyReLU:
        slope = module.negative_slope
        return lambda hidden: F.leaky_relu_(hidden, slope)
    known: dict[type[nn.Module], Function] = {
        nn.ReLU: torch.relu_,
        nn.Tanh: torch.tanh_,
        nn.Sigmoid: torch.sigmoid_,
        nn.Identity: lambda hidden: hidden,
        nn.GELU: module,
        nn.SiLU: module,
        nn.ELU: module,
        nn.Softplus: module,
    }
    return known.get(type(module))


def is_flatten(module: nn.Module) -> bool:
    """Return whether it makes one row of every sample."""
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling it does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(
        module, "parametrizations"
    )
