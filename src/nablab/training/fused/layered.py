"""What the compiled engines for classes share.

Networks read layer by layer, labels, and outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablab.threads import engine_threads
from nablab.training.engine import NOT_COUNTED, Loss, Unsupported
from nablab.training.fused.image_layers import (
    CONVOLUTION,
    ImageLayer,
    read_image_layers,
)
from nablab.training.fused.optimizer import REALS, RULES
from nablab.training.fused.replicas import FusedReplicas
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


def structure(name: str, *fields: tuple[str, Any]) -> Any:
    """Make a C structure's twin."""
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class FusedLayers(FusedReplicas):
    """K networks of convolutions, poolings and dense layers.

    Each layer's weights are followed by its biases.
    """

    _layers: list[ImageLayer]

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        named: dict[str, Tensor] = {}
        start = 0
        for layer in self._layers:
            if not layer.weights:
                continue
            flat = self._weights[:, start : start + layer.parameters].clone()
            outputs, inputs = layer.outputs[0], layer.inputs[0]
            shape: tuple[int, ...] = (outputs, layer.weights // outputs)
            if layer.kind == CONVOLUTION:
                shape = (outputs, inputs, layer.kernel, layer.kernel)
            named[f"{layer.name}weight"] = flat[:, : layer.weights].reshape(
                self.replicas, *shape
            )
            if layer.bias:
                named[f"{layer.name}bias"] = flat[:, layer.weights :].clone()
            start += layer.parameters
        return named

    def _outputs(self, data: Any, samples: int, kept: Any, *more: Any) -> Tensor:
        """Compute the outputs (K, samples, classes) for the kernel's samples.

        ``more`` is what else the kernel takes.

        ``kept`` is what the samples' structure points to: the threads hold it.
        """
        outputs = torch.empty(
            self.replicas,
            samples,
            self._layers[-1].outputs[0],
            dtype=self._weights.dtype,
        )
        ticket = _INT(0)

        def work(space: int, _held: Any = (kept, more)) -> None:
            self._library.nablab_predict(
                ctypes.byref(self._network),
                ctypes.byref(data),
                _POINTER(self._weights.data_ptr()),
                _INT(self.replicas),
                ctypes.byref(ticket),
                _POINTER(outputs.data_ptr()),
                _POINTER(space),
                *more,
            )

        self._work(engine_threads(), work)
        return outputs

    def _describe_layers(self, make: Callable[..., Any]) -> Any:
        """Make the kernel's rows, one for each layer.

        The places of its weights and biases are filled in.
        """
        rows = (make * len(self._layers))()  # type: ignore[operator]
        start = 0
        for row, layer in zip(rows, self._layers, strict=True):
            row.weights = start
            row.bias = start + layer.weights if layer.bias else -1
            start += layer.parameters
        return rows


def refuse_unsuitable(
    layers: Sequence[ImageLayer],
    modules: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    optimizer: Specification,
    per_replica_targets: bool,
    inputs: Inputs,
    shape: Sequence[int],
) -> None:
    """Raise `Unsupported` for what no kernel for classes serves.

    ``shape`` is that of one ready sample.
    """
    parameters = list(modules[0].parameters())
    if any(read_image_layers(module, shape) != layers for module in modules[1:]):
        raise Unsupported("the networks differ in their layers")
    if loss != "cross_entropy":
        raise Unsupported("the fused kernel for images has cross-entropy only")
    if type(optimizer) not in RULES:
        raise Unsupported(f"the fused kernel has no {type(optimizer).__name__}")
    if inputs.augment is not None:
        raise Unsupported("the samples are to be augmented")
    if (
        any(p.dtype != parameters[0].dtype for p in parameters)
        or parameters[0].dtype not in REALS
    ):
        raise Unsupported("the weights are not all float32 or all float64")
    if any(tensor.device.type != "cpu" for tensor in (x, y, *parameters)):
        raise Unsupported("the fused kernel runs on the CPU only")
    if not all(parameter.requires_grad for parameter in parameters):
        raise Unsupported("some parameters of the network do not train")
    if sum(p.numel() for p in parameters) != sum(layer.parameters for layer in layers):
        raise Unsupported("layers share their weights")
    _refuse_labels(
        y,
        (*([len(modules)] if per_replica_targets else []), len(x)),
        layers[-1].outputs[0],
    )


def _refuse_labels(y: Tensor, expected: tuple[int, ...], classes: int) -> None:
    if y.dtype != torch.int64 or tuple(y.shape) != expected:
        raise Unsupported(
            f"labels of {y.dtype} and shape {tuple(y.shape)} are not int64 {expected}"
        )
    counted = y[y != NOT_COUNTED]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise Unsupported(f"labels are not all from 0 to {classes - 1}")
