"""Small dense networks in compiled code.

Every step of a replica in one call, replicas over threads.

PyTorch spends most of a small network's step on calls. Here one C function
(``dense.c``, whose head has the mathematics) does the forward pass, the gradient and
the optimizer, with all data in the cache. Results depend neither on the number of
replicas nor on that of threads, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.threads import engine_threads
from nablab.training.engine import FloatArray, Loss, Unsupported
from nablab.training.fused import compiler
from nablab.training.fused.dense_layers import DenseLayer, kernel_matrices, read_layers
from nablab.training.fused.optimizer import REALS, RULES, OptimizerNumbers
from nablab.training.fused.replicas import FusedReplicas, check_indices
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification

# Samples go through the network in tiles of this many bytes per unit. Smaller tiles add
# up partial gradients more often; larger ones leave the cache. Measured from 512 to
# 8192: docs/engine.md.
TILE_BYTES = 2048

# PyTorch's blocked matrix products win on large layers. With all threads busy this
# engine is twice as fast at 50,000 parameters and equal at 200,000; but a single
# replica has only one thread here. Same notes.
LARGEST_NETWORK = 50_000

_ALIGNMENT = 64
_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Network(ctypes.Structure):
    _fields_ = [
        ("layers", _INT),
        ("width", _POINTER),
        ("bias", _POINTER),
        ("offset", _POINTER),
        ("is_tanh", _POINTER),
        ("slope", _POINTER),
        ("stored", _INT),
        ("tile", _INT),
        ("stride", _INT),
    ]


class _Data(ctypes.Structure):
    _fields_ = [
        ("samples", _INT),
        ("batch", _INT),
        ("x_packed", _POINTER),
        ("y_packed", _POINTER),
        ("stride", _INT),
        ("x", _POINTER),
        ("y", _POINTER),
        ("indices", _POINTER),
        ("per_replica_targets", _INT),
    ]


class FusedEngine(FusedReplicas):
    """K dense networks trained by compiled code, for the mean squared error on the CPU.

    Args:
        modules: K modules, each a `nn.Sequential` (nested or not) of `nn.Linear`,
            `nn.ReLU`, `nn.LeakyReLU`, `nn.Tanh` and `nn.Identity`; only their weights
            are read.
        x: Inputs (N, d), float32 or float64 as the weights.
        y: Targets (N, outputs), or (K, N, outputs) with per-replica targets.
        loss: ``"mse"``.
        optimizer: SGD, RMSprop, Adam or AdamW.
        per_replica_targets: Whether each replica has its own targets.
        inputs: How stored samples become inputs; here they must be stored as the
            network sees them.

    Raises:
        Unsupported: Something else is asked for, the network is so large that PyTorch
            is faster, or there is no C compiler.
    """

    name = "fused"
    measures: tuple[str, ...] = ()

    def __init__(
        self,
        modules: Sequence[nn.Module],
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss,
        optimizer: Specification,
        per_replica_targets: bool,
        inputs: Inputs = Inputs(),  # noqa: B008 - immutable
    ) -> None:
        if (
            inputs.prepare
            or inputs.augment
            or (inputs.bfloat16 and not inputs.automatic)
        ):
            raise Unsupported(
                "it takes inputs as they are stored, in the precision of the weights"
            )
        self._layers = read_layers(modules[0])
        _refuse_unsuitable(
            self._layers, modules, x, y, loss, optimizer, per_replica_targets
        )
        optimizer.check_replicas(len(modules))
        self._library = compiler.load(REALS[x.dtype])
        self.replicas = len(modules)
        self._keep: list[Any] = []  # what the C structures point to
        self._lanes = int(self._library.nablab_lanes())
        self._network = self._describe_network(x.element_size())
        self._optimizer = OptimizerNumbers(optimizer, self.replicas)
        self._x, self._y, self._per_replica_targets = (
            x.detach().contiguous(),
            y.detach().contiguous(),
            per_replica_targets,
        )
        self._packed: tuple[Tensor, Tensor] | None = None
        flat = torch.stack(
            [
                nn.utils.parameters_to_vector(kernel_matrices(m, self._layers))
                for m in modules
            ]
        ).detach()
        self._hold(flat, int(self._network.stored))

    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:  # noqa: D102 - see Engine; so below
        data, kept = self._describe_data(batches)
        return self._train(rates, data, kept, min(engine_threads(), self.replicas))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:  # noqa: D102
        inputs = self._layers[0].inputs
        if x.ndim != 2 or x.shape[1] != inputs:
            raise UsageError(
                f"The network takes inputs of shape (N, {inputs}), got "
                f"{tuple(x.shape)}."
            )
        rows = self._pack(x.detach().to(self._x), ones=True)
        stride = rows.shape[1]
        space = torch.empty(
            self._library.nablab_scratch_bytes(ctypes.byref(self._network)),
            dtype=torch.uint8,
        )
        outputs = torch.empty(
            self.replicas, self._layers[-1].outputs, stride, dtype=rows.dtype
        )
        for weights, output in zip(self._weights, outputs, strict=True):
            self._library.nablab_predict(
                ctypes.byref(self._network),
                _POINTER(weights.data_ptr()),
                _POINTER(rows.data_ptr()),
                _INT(stride // self._lanes),
                _POINTER(output.data_ptr()),
                _POINTER(space.data_ptr()),
            )
        return outputs[:, :, : len(x)].transpose(1, 2).contiguous()

    def parameters(self) -> dict[str, Tensor]:  # noqa: D102
        named: dict[str, Tensor] = {}
        start = 0
        for layer in self._layers:
            end = start + layer.outputs * layer.columns
            matrix = self._weights[:, start:end].reshape(
                self.replicas, layer.outputs, layer.columns
            )
            named[f"{layer.name}weight"] = matrix[:, :, : layer.inputs].clone()
            if layer.bias:
                named[f"{layer.name}bias"] = matrix[:, :, -1].clone()
            start = end
        return named

    def _describe_network(self, real_bytes: int) -> _Network:
        layers = self._layers
        sizes = [layer.outputs * layer.columns for layer in layers]
        tile = max(1, TILE_BYTES // (real_bytes * self._lanes))
        return _Network(
            layers=len(layers),
            width=self._integers(
                [layers[0].inputs, *(layer.outputs for layer in layers)]
            ),
            bias=self._integers([layer.bias for layer in layers]),
            offset=self._integers([0, *np.cumsum(sizes)[:-1]]),
            is_tanh=self._integers([layer.tanh for layer in layers]),
            slope=self._numbers([layer.slope for layer in layers]),
            stored=_round_up(sum(sizes), self._lanes),
            tile=tile,
            # odd: rows at a power of two apart would share few sets of the cache
            stride=tile | 1,
        )

    def _describe_data(self, batches: Tensor | None) -> tuple[_Data, Any]:
        data = _Data(
            samples=len(self._x), per_replica_targets=self._per_replica_targets
        )
        indices = check_indices(batches, len(self._x))
        if indices is not None:
            data.batch, data.indices = indices.shape[2], indices.data_ptr()
            data.x, data.y = self._x.data_ptr(), self._y.data_ptr()
            return data, indices
        if self._packed is None:
            labels = self._y if self._per_replica_targets else self._y[None]
            self._packed = (
                self._pack(self._x, ones=True),
                torch.stack([self._pack(y) for y in labels]),
            )
        x_rows, y_rows = self._packed
        data.x_packed, data.y_packed = x_rows.data_ptr(), y_rows.data_ptr()
        data.stride = x_rows.shape[1] // self._lanes
        return data, self._packed

    def _pack(self, samples: Tensor, *, ones: bool = False) -> Tensor:
        """Pack samples into rows, with zeros behind the samples.

        The rows are (features, N rounded up to an odd number of vectors).
        """
        count, features = samples.shape
        stride = (-(-count // self._lanes) | 1) * self._lanes
        rows = torch.zeros(features + ones, stride, dtype=samples.dtype)
        rows[:features, :count] = samples.T
        rows[features:] = 1
        return rows

    def _integers(self, values: Any) -> int:
        return self._kept(np.array(values, dtype=np.int64))

    def _numbers(self, values: Sequence[float]) -> int:
        return self._kept(np.array(values, dtype=np.float64))

    def _kept(self, array: Any) -> int:
        self._keep.append(array)
        return int(array.ctypes.data)


def _refuse_unsuitable(
    layers: Sequence[DenseLayer],
    modules: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    optimizer: Specification,
    per_replica_targets: bool,
) -> None:
    parameters = list(modules[0].parameters())
    if any(read_layers(module) != layers for module in modules[1:]):
        raise Unsupported("the networks differ in their layers")
    if loss != "mse":
        raise Unsupported("the fused kernel has the mean squared error only")
    if type(optimizer) not in RULES:
        raise Unsupported(f"the fused kernel has no {type(optimizer).__name__}")
    if x.dtype not in REALS or any(
        tensor.dtype != x.dtype for tensor in (y, *parameters)
    ):
        raise Unsupported(
            "inputs, targets and weights are not all float32 or all float64"
        )
    if any(tensor.device.type != "cpu" for tensor in (x, y, *parameters)):
        raise Unsupported("the fused kernel runs on the CPU only")
    if not all(parameter.requires_grad for parameter in parameters):
        raise Unsupported("some parameters of the network do not train")
    if len(parameters) != sum(1 + layer.bias for layer in layers):
        raise Unsupported("layers share their weights")
    if x.ndim != 2 or x.shape[1] != layers[0].inputs:
        raise Unsupported(
            f"inputs of shape {tuple(x.shape)} are not (N, {layers[0].inputs})"
        )
    expected = (
        *([len(modules)] if per_replica_targets else []),
        len(x),
        layers[-1].outputs,
    )
    if tuple(y.shape) != expected:
        raise Unsupported(f"targets of shape {tuple(y.shape)} are not {expected}")
    if sum(parameter.numel() for parameter in parameters) > LARGEST_NETWORK:
        raise Unsupported(
            f"with more than {LARGEST_NETWORK:,} parameters PyTorch is faster"
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
