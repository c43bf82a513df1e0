"""Dense networks in compiled code, with bfloat16 products.

The products are computed on a processor's matrix tiles (AMX).

Beyond small sizes a dense network's step is matrix products and the optimizer's pass
over all weights. PyTorch takes the tiles too, but passes every result through memory
several times. Here a product's results go through bias, ReLU and rounding, and a
gradient into the optimizer, while they are in the cache. Weights and sums are float32.
Results depend neither on the number of replicas nor on that of threads, bit for bit.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.threads import engine_threads
from nablab.training.engine import FloatArray, Loss, Unsupported
from nablab.training.fused import compiler
from nablab.training.fused.image_layers import DENSE, ELU, read_image_layers
from nablab.training.fused.layered import FusedLayers, refuse_unsuitable, structure
from nablab.training.fused.optimizer import OptimizerNumbers
from nablab.training.fused.replicas import check_indices
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification

SIDE = 32  # the kernel's squares
# Samples that go through the network at once: with 784 inputs two copies of them fill a
# cache of 2 MB.
SLAB = 640
READY_AT_ONCE = 4096  # samples made ready at once
LARGEST_STORE = 2**30  # bytes of all samples in bfloat16
# bytes of a set that is kept for the next evaluation, and how many sets
LARGEST_KEPT, MOST_KEPT = (2**28, 4)

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p
_Layer = structure(
    "_Layer",
    *((name, _INT) for name in ("inputs", "outputs", "relu", "weights", "bias")),
)
_Network = structure(
    "_Network",
    *((name, _INT) for name in ("layers", "stored", "slab", "slabs")),
    ("layer", _POINTER),
)
_Data = structure(
    "_Data",
    ("samples", _INT),
    ("per_replica_targets", _INT),
    *((name, _POINTER) for name in ("x", "labels", "indices")),
    ("batch", _INT),
)


class FusedBfloat16Engine(FusedLayers):
    """K dense networks trained by compiled code with matrix tiles.

    It serves cross-entropy on the CPU.

    Args:
        modules: K modules, each a `nn.Sequential` (nested or not) of `nn.Flatten`,
            `nn.Linear`, `nn.ReLU` and `nn.Identity` with float32 weights; only their
            weights are read.
        x: Stored samples (N, ...); they are made ready once and kept in bfloat16.
        y: Labels, int64 (N,), or (K, N) with per-replica targets.
        loss: ``"cross_entropy"``.
        optimizer: SGD, RMSprop, Adam or AdamW.
        per_replica_targets: Whether each replica has its own labels.
        inputs: How stored samples become inputs; ``inputs.bfloat16`` must be asked for.

    Raises:
        Unsupported: Something else is asked for, the processor has no matrix tiles, or
            there is no C compiler.
    """

    name = "fused-bfloat16"
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
        if not inputs.bfloat16:
            raise Unsupported("it multiplies in bfloat16")
        shape = inputs.ready(x[:1]).shape[1:]
        self._layers = read_image_layers(modules[0], shape)
        if any(layer.kind != DENSE for layer in self._layers):
            raise Unsupported("the fused kernel for bfloat16 has dense layers only")
        if any(layer.activation == ELU for layer in self._layers):
            raise Unsupported("the fused kernel for bfloat16 has no ELU")
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
        if next(modules[0].parameters()).dtype != torch.float32:
            raise Unsupported("it multiplies in bfloat16, and the weights are float64")
        if 2 * len(x) * shape.numel() > LARGEST_STORE:
            raise Unsupported(
                f"the samples in bfloat16 take more than {LARGEST_STORE / 2**30:.0f} GB"
            )
        optimizer.check_replicas(len(modules))
        self._library = compiler.load("float", "bfloat16.c")
        if not int(self._library.nablab_has_tiles()):
            raise Unsupported("the processor has no matrix tiles for bfloat16")
        if len(self._layers) > int(self._library.nablab_most_layers()):
            raise Unsupported("the network has too many layers")
        self.replicas = len(modules)
        self._inputs, self._shape = inputs, shape
        self._optimizer = OptimizerNumbers(optimizer, self.replicas)
        self._x, self._y, self._per_replica_targets = (
            self._rounded(x),
            y.detach().contiguous(),
            per_replica_targets,
        )
        # x keeps its id
        self._seen: list[tuple[Tensor, int, Tensor]] = [(x, x._version, self._x)]
        self._rows = self._describe_layers(_Layer)
        for row, layer in zip(self._rows, self._layers, strict=True):
            row.inputs, row.outputs = math.prod(layer.inputs), layer.outputs[0]
            row.relu = layer.relu
        size = sum(layer.parameters for layer in self._layers)
        self._network = _Network(
            layers=len(self._rows),
            stored=size,
            slab=SLAB,
            slabs=1,
            layer=ctypes.addressof(self._rows),
        )
        flat = [
            nn.utils.parameters_to_vector(module.parameters()).detach()
            for module in modules
        ]
        self._hold(torch.stack(flat), size)

    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """See `Engine.advance`."""
        indices = check_indices(batches, len(self._x))
        data = _Data(
            samples=len(self._x), per_replica_targets=self._per_replica_targets
        )
        data.x, data.labels, data.batch = (
            self._x.data_ptr(),
            self._y.data_ptr(),
            len(self._x),
        )
        if indices is not None:
            data.indices, data.batch = indices.data_ptr(), indices.shape[2]
        slabs = -(-data.batch // SLAB)
        self._network.slab, self._network.slabs = (
            -(-data.batch // (slabs * SIDE)) * SIDE,
            slabs,
        )
        threads = min(engine_threads(), self.replicas)
        return self._train(rates, data, (self._x, self._y, indices), threads)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        rounded = self._kept_rounded(x)
        data = _Data(samples=len(x), x=rounded.data_ptr())
        return self._outputs(data, len(x), rounded)

    def _kept_rounded(self, x: Tensor) -> Tensor:
        """Return what `_rounded` gives, and keep it.

        Evaluations ask for the same samples again and again.
        """
        for seen, version, rounded in self._seen:
            if seen is x and version == x._version:
                return rounded
        rounded = self._rounded(x)
        if rounded.nbytes <= LARGEST_KEPT:
            self._seen = [*self._seen[-MOST_KEPT + 1 :], (x, x._version, rounded)]
        return rounded

    def _rounded(self, x: Tensor) -> Tensor:
        """Make stored samples ready, as bfloat16 (N, inputs)."""
        features = self._shape.numel()
        found = torch.empty(len(x), features, dtype=torch.bfloat16)
        for part in (
            slice(start, start + READY_AT_ONCE)
            for start in range(0, len(x), READY_AT_ONCE)
        ):
            ready = self._inputs.ready(x[part].detach())
            if ready.shape[1:] != self._shape:
                raise UsageError(
                    "The network takes samples of shape "
                    f"{tuple(self._shape)}, got {tuple(ready.shape[1:])}."
                )
            found[part] = ready.flatten(1)
        return found
