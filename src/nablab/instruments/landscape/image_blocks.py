"""Convolutional networks at many points, whose first layer is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.instruments.landscape.dense_blocks import elementwise, has_hooks, is_flatten

Function: TypeAlias = Callable[..., Tensor]

# Activations of a tile of samples, and of a block of points on it: 1 MiB and 4 MiB of
# float32 stay in the cache. With tiles four times as large the first layer of LeNet
# took nine times as long.
TILE_NUMBERS = 2**18
BLOCK_NUMBERS = 2**20
# The largest of four values and the function of it may be taken in any order.
MONOTONE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Softplus)
NO_WEIGHTS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
DROPOUTS = (nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class _Layer:
    """A layer: its tensors' names in the basis, and its function.

    The function is (hidden, *tensors) -> hidden.
    """

    names: tuple[str, ...]
    function: Function


class ImageBlocks:
    r"""A convolutional `nn.Sequential` at points :math:`\sum_b c_b \theta_b`.

    A first layer is linear in its weights: its outputs at all points are combinations
    of those at the B basis points. For LeNet, where a convolution of one channel keeps
    no processor busy, that and a pooling of whole rows take half the time of calling
    the network.

    The values of each pooling window lie far apart, one position after the other, so
    that the pooling is a maximum of four long vectors.
    """

    def __init__(
        self,
        first: _Layer,
        activation: Function | None,
        pools: bool,
        swaps: bool,
        later: Sequence[_Layer],
        basis: Mapping[str, Tensor],
    ) -> None:
        self._first = first
        self._activation = activation
        self._later = later
        self._basis = basis
        self._pools, self._swaps = pools, swaps

    @classmethod
    def of(cls, model: nn.Module, basis: Mapping[str, Tensor]) -> ImageBlocks | None:
        """Return the blocks of a model, or None if it is another kind of network."""
        if type(model) is not nn.Sequential or any(
            has_hooks(module) for module in model.modules()
        ):
            return None
        # `named_children` leaves out a module that stands twice.
        children = list(model._modules.items())
        if len(children) < 2 or type(children[0][1]) is not nn.Conv2d:
            return None
        layers = [_layer_of(name, module) for name, module in children]
        if type(children[-1][1]) is not nn.Linear:
            return None
        found = [layer for layer in layers if layer is not None]
        if len(found) < len(layers) or any(
            name not in basis for layer in found for name in layer.names
        ):
            return None
        second, rest = children[1][1], 1
        activation = elementwise(second) if second is not None else None
        rest += activation is not None
        pools = rest < len(children) and _halves(children[rest][1])
        swaps = activation is None or type(second) in MONOTONE
        return cls(
            found[0], activation, pools, swaps, found[rest + int(pools) :], basis
        )

    def takes(self, inputs: Any) -> bool:
        """Return whether these are images (N, C, H, W)."""
        return isinstance(inputs, Tensor) and inputs.ndim == 4

    def outputs(self, factors: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs (K, N, C) of images (N, ...).

        The points have the coefficients ``factors`` (K, B).

        They are a view of a tensor (K, C, N).
        """
        tensors = [self._combined(factors, layer) for layer in self._later]
        each = math.prod(self._at_basis(inputs[:1]).shape[1:])
        samples = max(1, min(len(inputs), TILE_NUMBERS // each))
        points = max(1, min(len(factors), BLOCK_NUMBERS // (samples * each)))

        def measured(tile: Tensor) -> Tensor:
            with torch.no_grad():  # every thread has a switch of its own
                return self._tile(factors, tile, tensors, points)

        return torch.cat(
            _in_threads(measured, torch.split(inputs, samples)), dim=2
        ).transpose(1, 2)

    def _tile(
        self,
        factors: Tensor,
        inputs: Tensor,
        tensors: list[list[list[Tensor]]],
        points: int,
    ) -> Tensor:
        """Return the outputs (K, C, N) of a few images.

        The first layer takes ``points`` of the K at once.
        """
        first = self._at_basis(inputs)
        # New memory for every product takes longer.
        buffer = inputs.new_empty(points * first[0].numel())
        found = []
        for k in range(0, len(factors), points):
            for place, hidden in enumerate(
                self._start(factors[k : k + points], first, buffer), start=k
            ):
                for layer, own in zip(self._later, tensors, strict=True):
                    hidden = layer.function(hidden, *(part[place] for part in own))
                found.append(hidden.T)
        return torch.stack(found)

    def _at_basis(self, inputs: Tensor) -> Tensor:
        """Return the first layer's outputs, (B, positions, N, H, W, C).

        There are four positions if a pooling follows.
        """
        layers = zip(*(self._basis[name] for name in self._first.names), strict=True)
        found = torch.stack([self._first.function(inputs, *own) for own in layers])
        if not self._pools:
            return found.permute(0, 1, 3, 4, 2)[:, None].contiguous()
        basis, count, channels, height, width = found.shape
        height, width = height // 2, width // 2
        cut = found[..., : 2 * height, : 2 * width].reshape(
            basis, count, channels, height, 2, width, 2
        )
        apart = cut.permute(0, 4, 6, 1, 3, 5, 2)
        return apart.reshape(basis, 4, count, height, width, channels)

    def _start(self, factors: Tensor, first: Tensor, buffer: Tensor) -> Tensor:
        """Return what leaves the first layer, its activation and its pooling.

        It has the shape (K, N, C, H, W), channels last.
        """
        shape = (len(factors), *first.shape[1:])
        hidden = buffer[: math.prod(shape)].view(len(factors), -1)
        torch.mm(factors, first.flatten(1), out=hidden)
        hidden = hidden.view(shape)
        if self._activation is not None and not self._swaps:
            hidden = self._activation(hidden)
        if self._pools:
            half = torch.maximum(hidden[:, :2], hidden[:, 2:])
            hidden = torch.maximum(half[:, :1], half[:, 1:])
        if self._activation is not None and self._swaps:
            hidden = self._activation(hidden)
        return hidden[:, 0].permute(0, 1, 4, 2, 3)

    def _combined(self, factors: Tensor, layer: _Layer) -> list[list[Tensor]]:
        """Return the tensors of a layer at the points: for each of them a list of K."""
        found = [torch.tensordot(factors, self._basis[name], 1) for name in layer.names]
        return [[_laid_out(tensor) for tensor in tensors] for tensors in found]


def _in_threads(
    function: Callable[[Tensor], Tensor], tiles: Sequence[Tensor]
) -> list[Tensor]:
    """Apply a function to every tile, as many at once as PyTorch has threads.

    Products of this size are too small to be shared by threads that wait for each other
    after each of them.
    """
    threads = min(torch.get_num_threads(), len(tiles))
    if threads == 1 or tiles[0].device.type != "cpu":
        return [function(tile) for tile in tiles]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads, initializer=lambda: torch.set_num_threads(1)
        ) as pool:
            return list(pool.map(function, tiles))
    finally:
        torch.set_num_threads(before)  # also what threads that start later will have


def _laid_out(tensor: Tensor) -> Tensor:
    return (
        tensor.contiguous(memory_format=torch.channels_last)
        if tensor.ndim == 4
        else tensor
    )


def _layer_of(name: str, module: nn.Module | None) -> _Layer | None:
    """Return what a module does, or None if that is not known here."""
    if (
        isinstance(module, nn.Conv2d)
        and type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
    ):
        return _convolution(name, module)
    if type(module) is nn.Linear:
        return _Layer(_names(name, module), F.linear)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _batch_norm(name, module)
    if module is not None and _halves(module):
        return _Layer((), _halved)
    if module is not None and type(module) in NO_WEIGHTS:
        return _Layer((), module)
    if isinstance(module, DROPOUTS) and not module.training:
        return _Layer((), lambda x: x)
    if module is not None and is_flatten(module):
        return _Layer((), lambda x: x.flatten(1))
    function = None if module is None else elementwise(module)
    return None if function is None else _Layer((), function)


def _convolution(name: str, module: nn.Conv2d) -> _Layer:
    options: dict[str, Any] = {
        key: getattr(module, key) for key in ("stride", "padding", "dilation", "groups")
    }
    return _Layer(
        _names(name, module), lambda x, w, b=None: F.conv2d(x, w, b, **options)
    )


def _names(name: str, module: nn.Conv2d | nn.Linear) -> tuple[str, ...]:
    return (
        (f"{name}.weight", f"{name}.bias")
        if module.bias is not None
        else (f"{name}.weight",)
    )


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> _Layer | None:
    """Apply batch norm with its running statistics."""
    if module.training or module.running_mean is None or not module.affine:
        return None
    names = tuple(
        f"{name}.{own}" for own in ("running_mean", "running_var", "weight", "bias")
    )
    return _Layer(
        names, lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, eps=module.eps)
    )


def _halves(module: nn.Module | None) -> bool:
    """Return whether it is the maximum over windows of 2 x 2 that do not overlap."""
    if type(module) is not nn.MaxPool2d or module.ceil_mode or module.return_indices:
        return False
    plain = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}
    return all(
        getattr(module, key) in (value, (value, value)) for key, value in plain.items()
    )


def _halved(x: Tensor) -> Tensor:
    """Return the max pooling over 2 x 2."""
    # A maximum of views took half the time of PyTorch's own.
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
