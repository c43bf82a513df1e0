"""Which networks the fused engine serves.

Chains of dense layers, read from nested `nn.Sequential`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nablab.training.engine import Unsupported


@dataclass(frozen=True)
class DenseLayer:
    """One dense layer with its activation: z > 0 ? z : slope z, then tanh if asked."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    slope: float = 1.0
    tanh: bool = False

    @property
    def columns(self) -> int:
        """Columns of the matrix [W | b]."""
        return self.inputs + self.bias


def read_layers(module: nn.Module) -> list[DenseLayer]:
    """Read the layers of a chain of `nn.Linear`, each with the activation after it.

    Raises:
        Unsupported: The module holds something else.

    >>> read_layers(nn.Sequential(nn.Linear(1, 5), nn.LeakyReLU(0.01), nn.Linear(5, 1)))[0]
    DenseLayer(name='0.', inputs=1, outputs=5, bias=True, slope=0.01, tanh=False)
    """
    layers: list[DenseLayer] = []
    closed = True  # an activation needs a dense layer before it
    for name, part in _parts("", module):
        if isinstance(part, nn.Linear):
            layers.append(
                DenseLayer(
                    name, part.in_features, part.out_features, part.bias is not None
                )
            )
            closed = False
            continue
        if closed:
            raise Unsupported("an activation does not follow a linear layer")
        layers[-1] = dataclasses.replace(layers[-1], **_activation(part))
        closed = True
    if not layers:
        raise Unsupported("the network has no linear layer")
    return layers


def _parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the leaves of nested `nn.Sequential` with their prefixes, no identities."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise Unsupported(f"the module '{prefix or type(module).__name__}' has hooks")
    if (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
    ):
        for name, child in module._modules.items():
            if child is not None:
                yield from _parts(f"{prefix}{name}.", child)
    elif type(module) in (nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Tanh):
        yield prefix, module
    elif type(module) is not nn.Identity:
        raise Unsupported(f"the fused kernel has no {type(module).__name__}")


def _activation(part: nn.Module) -> dict[str, Any]:
    if isinstance(part, nn.Tanh):
        return {"tanh": True}
    slope = float(part.negative_slope) if isinstance(part, nn.LeakyReLU) else 0.0
    if slope < 0:
        raise Unsupported("a leaky ReLU has a negative slope")
    return {"slope": slope}


def kernel_matrices(module: nn.Module, layers: Sequence[DenseLayer]) -> list[Tensor]:
    """Return the matrices [W | b] of a module in the kernel's order."""
    named = dict(module.named_parameters())
    matrices = []
    for layer in layers:
        weight = named[f"{layer.name}weight"]
        matrices.append(
            torch.cat([weight, named[f"{layer.name}bias"][:, None]], 1)
            if layer.bias
            else weight
        )
    return matrices
