"""Small networks for images in compiled code.

Convolutions, max pooling and dense layers, cross-entropy.

PyTorch spends most of a step of such a network on starting operations and on passing
feature maps through memory. Here a whole chunk of steps is one call; samples go through
the network in tiles whose maps stay in the cache. All is float32 (or float64, as the
weights are). Results depend neither on the number of replicas nor on that of threads,
bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.threads import engine_threads
from nablab.training.engine import FloatArray, Loss, Unsupported
from nablab.training.fused import compiler
from nablab.training.fused.image_layers import read_image_layers
from nablab.training.fused.layered import FusedLayers, refuse_unsuitable, structure
from nablab.training.fused.optimizer import REALS, OptimizerNumbers
from nablab.training.fused.replicas import check_indices
from nablab.training.inputs import Inputs, Prepare
from nablab.training.optimizers import Specification

# The maps of a tile should stay in a core's second-level cache, which has 1 to 2 MB on
# today's processors.
CACHE_BYTES = 1_400_000
TILES = (4, 2, 1)  # vectors of samples, as images.c has them

# Beyond, the matrix products of dense layers take most of the time, and PyTorch's are
# better.
LARGEST_NETWORK = 2_000_000

# a batch is computed in this many parts, so this many threads can share one replica
_PARTS = 2
_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p
_BYTES = 256


_Layer = structure(
    "_Layer",
    *(
        (name, _INT)
        for name in ("kind", "kernel", "padding", "activation", "weights", "bias")
    ),
    *((name, _INT) for name in ("channels", "height", "width")),
)
_Network = structure(
    "_Network",
    *(
        (name, _INT)
        for name in ("layers", "stored", "tile", "channels", "height", "width", "basis")
    ),
    ("layer", _POINTER),
)
_Data = structure(
    "_Data",
    ("samples", _INT),
    ("per_replica_targets", _INT),
    *((name, _POINTER) for name in ("bytes", "table", "numbers", "labels", "indices")),
    ("batch", _INT),
)


_Basis = structure(
    "_Basis", ("size", _INT), ("parameters", _POINTER), ("factors", _POINTER)
)


class FusedImageEngine(FusedLayers):
    """K small networks for images trained by compiled code.

    It serves cross-entropy on the CPU.

    Args:
        modules: K modules, each a `nn.Sequential` (nested or not) of `nn.Conv2d`,
            `nn.MaxPool2d`, `nn.AvgPool2d`, `nn.ReLU`, `nn.ELU`, `nn.Flatten`,
            `nn.Linear` and `nn.Identity`; only their weights are read.
        x: Stored samples (N, channels, height, width) or (N, features): uint8 with an
            ``inputs.prepare`` that takes each value by itself, or as the network sees
            them.
        y: Labels, int64 (N,), or (K, N) with per-replica targets.
        loss: ``"cross_entropy"``.
        optimizer: SGD, RMSprop, Adam or AdamW.
        per_replica_targets: Whether each replica has its own labels.
        inputs: How stored samples become inputs.

    Raises:
        Unsupported: Something else is asked for, the network is so large that PyTorch
            is faster, or there is no C compiler.
    """

    name = "fused-images"
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
        self._layers = read_image_layers(modules[0], x.shape[1:])
        parameter = next(modules[0].parameters())
        shape = x.shape[1:]
        refuse_unsuitable(
            self._layers,
            modules,
            x,
            y,
            loss,
            optimizer,
            per_replica_targets,
            inputs,
            shape,
        )
        if inputs.bfloat16 and not inputs.automatic:
            raise Unsupported("it computes in the precision of the weights")
        if sum(layer.parameters for layer in self._layers) > LARGEST_NETWORK:
            raise Unsupported(
                f"with more than {LARGEST_NETWORK:,} parameters PyTorch is faster"
            )
        self._real = parameter.dtype
        self._prepare = inputs.prepare
        self._table = (
            None if self._prepare is None else _table(self._prepare, x, self._real)
        )
        if self._table is None and x.dtype != self._real:
            raise Unsupported("inputs and weights differ in their dtype")
        optimizer.check_replicas(len(modules))
        self._library = compiler.load(REALS[self._real], "images.c")
        self.replicas = len(modules)
        self._lanes = int(self._library.nablab_lanes())
        if len(self._layers) > int(self._library.nablab_most_layers()):
            raise Unsupported("the network has too many layers")
        size = sum(layer.parameters for layer in self._layers)
        self._stored = -(-size // self._lanes) * self._lanes
        self._shape = tuple(x.shape[1:])
        self._network, self._kept_layers = self._describe_network(
            parameter.element_size()
        )
        self._optimizer = OptimizerNumbers(optimizer, self.replicas)
        self._x, self._y, self._per_replica_targets = (
            x.detach().contiguous(),
            y.detach().contiguous(),
            per_replica_targets,
        )
        self._basis: tuple[Tensor, Tensor] | None = None
        flat = [
            nn.utils.parameters_to_vector(module.parameters()).detach()
            for module in modules
        ]
        self._hold(torch.stack(flat), self._stored)

    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """See `Engine.advance`."""
        self._basis, self._network.basis = None, 0
        data, kept = self._describe_data(self._x, self._y, batches)
        threads = min(engine_threads(), max(self.replicas, _PARTS))
        return self._train(rates, data, kept, threads)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        if tuple(x.shape[1:]) != self._shape:
            raise UsageError(
                f"The network takes samples of shape {self._shape}, got "
                f"{tuple(x.shape[1:])}."
            )
        stored = x.detach()
        if self._prepare is not None and x.dtype != torch.uint8:
            stored = self._prepare(stored)
        if self._prepare is None or x.dtype != torch.uint8:
            stored = stored.to(self._real)
        stored = stored.contiguous()
        data, kept = self._describe_data(
            stored, torch.zeros(1, dtype=torch.int64), None
        )
        basis = _Basis(size=0)
        if self._basis is not None:
            rows, factors = self._basis
            basis.size, basis.parameters, basis.factors = (
                len(rows),
                rows.data_ptr(),
                factors.data_ptr(),
            )
        self._network.basis = basis.size
        return self._outputs(data, len(x), (kept, self._basis), ctypes.byref(basis))

    def load_points(self, basis: Tensor, factors: Tensor) -> None:
        """Take over weights that are combinations of a few, ``factors @ basis``.

        The first layer is linear in its weights. As long as these stay, `predict`
        computes its outputs for the basis only and combines them: the same outputs, up
        to rounding.

        Args:
            basis: (B, P), each row as `torch.nn.utils.parameters_to_vector` gives it.
            factors: (K, B).
        """
        self.load_weights(factors @ basis)
        if self._layers[0].weights:
            rows = torch.zeros(len(basis), self._stored, dtype=self._real)
            rows[:, : self._size] = basis
            self._basis = rows, factors.to(self._real).contiguous()

    def load_weights(self, flat: Tensor) -> None:
        """Take over weights (K, P) alone.

        Each row is as `torch.nn.utils.parameters_to_vector` gives it.
        """
        self._basis = None
        super().load_weights(flat)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self._basis = None
        super().load_state(state)

    def _describe_network(self, real_bytes: int) -> tuple[Any, Any]:
        rows = self._describe_layers(_Layer)
        for row, layer in zip(rows, self._layers, strict=True):
            row.kind, row.kernel, row.padding = layer.kind, layer.kernel, layer.padding
            row.activation = layer.activation
            row.channels, row.height, row.width = layer.outputs
        channels, height, width = self._layers[0].inputs
        network = _Network(
            layers=len(rows),
            stored=self._stored,
            channels=channels,
            height=height,
            width=width,
            layer=ctypes.addressof(rows),
        )
        for tile in TILES:
            network.tile = tile
            gradients = _PARTS * (self._stored + self._lanes) * real_bytes
            maps = self._library.nablab_scratch_bytes(ctypes.byref(network)) - gradients
            if maps <= CACHE_BYTES:
                break
        return network, rows

    def _describe_data(
        self, x: Tensor, y: Tensor, batches: Tensor | None
    ) -> tuple[Any, Any]:
        data = _Data(
            samples=len(x),
            per_replica_targets=self._per_replica_targets,
            labels=y.data_ptr(),
        )
        if self._table is not None and x.dtype == torch.uint8:
            data.bytes, data.table = x.data_ptr(), self._table.data_ptr()
        else:
            data.numbers = x.data_ptr()
        indices = check_indices(batches, len(x))
        if indices is not None:
            data.indices, data.batch = indices.data_ptr(), indices.shape[2]
        return data, (x, y, indices, self._table)


def _table(prepare: Prepare, x: Tensor, real: torch.dtype) -> Tensor:
    """Tabulate what ``prepare`` makes of each byte in each channel, (channels, 256).

    Raises:
        Unsupported: The samples are not bytes, or a value's result depends on where it
            stands.
    """
    if x.dtype != torch.uint8:
        raise Unsupported("it prepares stored bytes only")
    sample = x[:1]
    values = torch.arange(_BYTES, dtype=torch.uint8)
    columns = values.view(-1, *[1] * (x.ndim - 1)).expand(_BYTES, *x.shape[1:])
    ready = prepare(columns.contiguous())
    if ready.shape != columns.shape or ready.dtype != real:
        raise Unsupported(
            "the prepared samples have another shape or another dtype than the weights"
        )
    table = ready.reshape(_BYTES, x.shape[1], -1)[:, :, 0].T.contiguous()
    places = torch.arange(len(table)).view(-1, *[1] * (x.ndim - 2))
    probe = torch.cat([columns.flip(0)[:1], sample, x[-1:], columns[7:9]])
    if not torch.equal(table[places, probe.long()], prepare(probe)) or not torch.equal(
        table[places, columns.long()], ready
    ):
        raise Unsupported("the preparation of a value depends on more than that value")
    return table
