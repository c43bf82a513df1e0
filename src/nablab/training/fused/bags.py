"""Dense networks in compiled code that read sparse samples, such as words of texts.

A text of 20 words out of 1,000 is a sample of 1,000 numbers, 980 of them zero. Here the
first layer reads the others alone (``bags.c``, whose head says how), and dropout draws
its numbers inside the step. Results depend neither on the number of replicas nor on
that of threads, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.threads import engine_threads
from nablab.training.engine import FloatArray, Loss, Unsupported
from nablab.training.fused import compiler
from nablab.training.fused.image_layers import ELU, ImageLayer, read_image_layers
from nablab.training.fused.layered import FusedLayers, refuse_unsuitable, structure
from nablab.training.fused.optimizer import REALS, OptimizerNumbers
from nablab.training.fused.replicas import check_indices
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification

# With a larger share of numbers that are not zero, dense products win.
LARGEST_SHARE = 0.1
# Samples that go through the network at once: 64 units of them fill 64 KB.
SLAB = 256
READY_AT_ONCE = 1024  # samples made ready at once, to be searched for zeros
MOST_KEPT = 6  # sets that are kept for the next evaluation

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p
_Layer = structure(
    "_Layer",
    *((name, _INT) for name in ("inputs", "outputs", "width", "relu")),
    *((name, _INT) for name in ("weights", "bias")),
    ("dropout", ctypes.c_double),
)
_Network = structure(
    "_Network",
    *((name, _INT) for name in ("layers", "stored", "slab")),
    ("layer", _POINTER),
    ("seeds", _POINTER),
)
_Data = structure(
    "_Data",
    ("samples", _INT),
    ("per_replica_targets", _INT),
    *((name, _POINTER) for name in ("starts", "places", "values", "labels", "indices")),
    ("batch", _INT),
)


@dataclass(frozen=True, eq=False)
class Sparse:
    """The numbers of N samples that are not zero.

    Attributes:
        starts: int64 (N + 1,): where those of a sample begin.
        places: int32 (total,): which inputs they are.
        values: (total,): what they are.
    """

    starts: Tensor
    places: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.starts) - 1

    def describe(self) -> Any:
        """Make the kernel's structure of these samples."""
        return _Data(
            samples=len(self),
            starts=self.starts.data_ptr(),
            places=self.places.data_ptr(),
            values=self.values.data_ptr(),
            batch=len(self),
        )


class FusedBagsEngine(FusedLayers):
    """K dense networks trained by compiled code on samples that are mostly zero.

    It serves cross-entropy on the CPU.

    Args:
        modules: K modules, each a `nn.Sequential` (nested or not) of `nn.Linear`,
            `nn.ReLU`, `nn.Dropout` behind a ReLU, and `nn.Identity`; only their weights
            are read.
        x: Stored samples (N, features), at most a tenth of them not zero once they are
            prepared.
        y: Labels, int64 (N,), or (K, N) with per-replica targets.
        loss: ``"cross_entropy"``.
        optimizer: SGD, RMSprop, Adam or AdamW.
        per_replica_targets: Whether each replica has its own labels.
        inputs: How stored samples become inputs; done once.
        seeds: Of dropout, one per replica.

    Raises:
        Unsupported: Something else is asked for, or there is no C compiler.
    """

    name = "fused-bags"
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
        seeds: Sequence[int],
    ) -> None:
        if x.ndim != 2:
            raise Unsupported("the fused kernel for bags takes samples (N, features)")
        if inputs.bfloat16 and not inputs.automatic:
            raise Unsupported("it computes in the precision of the weights")
        plain, shares = zip(*map(_without_dropout, modules), strict=True)
        if any(own != shares[0] for own in shares):
            raise Unsupported("the networks differ in their dropout")
        self._layers: list[ImageLayer] = read_image_layers(plain[0], x.shape[1:])
        if any(layer.activation == ELU for layer in self._layers):
            raise Unsupported("the fused kernel for bags has no ELU")
        refuse_unsuitable(
            self._layers,
            plain,
            x,
            y,
            loss,
            optimizer,
            per_replica_targets,
            inputs,
            x.shape[1:],
        )
        self._real = next(modules[0].parameters()).dtype
        optimizer.check_replicas(len(modules))
        self._library = compiler.load(REALS[self._real], "bags.c")
        if len(self._layers) > int(self._library.nablab_most_layers()):
            raise Unsupported("the network has too many layers")
        self.replicas = len(modules)
        self._inputs, self._features = inputs, x.shape[1]
        self._samples = self._sparse(x, largest_share=LARGEST_SHARE)
        # x keeps its id
        self._seen: list[tuple[Tensor, int, Sparse]] = [(x, x._version, self._samples)]
        self._y, self._per_replica_targets = (
            y.detach().contiguous(),
            per_replica_targets,
        )
        self._optimizer = OptimizerNumbers(optimizer, self.replicas)
        self._seeds = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
        self._widths = self._padded(int(self._library.nablab_lanes()))
        self._rows = self._describe_rows(shares[0])
        stored = sum(
            (layer.inputs[0] + layer.bias) * width
            for layer, width in zip(self._layers, self._widths, strict=True)
        )
        self._network = _Network(
            layers=len(self._rows),
            stored=stored,
            slab=SLAB,
            layer=ctypes.addressof(self._rows),
            seeds=self._seeds.ctypes.data,
        )
        flat = [
            nn.utils.parameters_to_vector(module.parameters()).detach()
            for module in modules
        ]
        self._hold(self._packed(torch.stack(flat)), stored)

    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """See `Engine.advance`."""
        indices = check_indices(batches, len(self._samples))
        data = self._samples.describe()
        data.per_replica_targets = self._per_replica_targets
        data.labels = self._y.data_ptr()
        if indices is not None:
            data.indices, data.batch = indices.data_ptr(), indices.shape[2]
        kept = (self._samples, self._y, indices, self._seeds)
        return self._train(rates, data, kept, min(engine_threads(), self.replicas))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        samples = self._kept_sparse(x)
        return self._outputs(samples.describe(), len(x), samples)

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        named: dict[str, Tensor] = {}
        for layer, row, width in zip(
            self._layers, self._rows, self._widths, strict=True
        ):
            inputs, outputs = layer.inputs[0], layer.outputs[0]
            end = row.weights + inputs * width
            matrix = self._weights[:, row.weights : end].reshape(-1, inputs, width)
            named[f"{layer.name}weight"] = (
                matrix[:, :, :outputs].transpose(1, 2).contiguous()
            )
            if layer.bias:
                bias = self._weights[:, row.bias : row.bias + outputs]
                named[f"{layer.name}bias"] = bias.clone()
        return named

    def load_weights(self, flat: Tensor) -> None:
        """Take over weights (K, P) alone.

        Each row is as `torch.nn.utils.parameters_to_vector` gives it.
        """
        self._weights.copy_(self._packed(flat))

    def _padded(self, lanes: int) -> list[int]:
        """Return each layer's outputs, rounded up to whole vectors."""
        return [-(-layer.outputs[0] // lanes) * lanes for layer in self._layers]

    def _describe_rows(self, shares: Sequence[float]) -> Any:
        """Make the kernel's rows, one for each layer."""
        rows = (_Layer * len(self._layers))()
        start = 0
        for row, layer, width, share in zip(
            rows, self._layers, self._widths, shares, strict=True
        ):
            row.inputs, row.outputs = layer.inputs[0], layer.outputs[0]
            row.width, row.relu, row.dropout = width, layer.relu, share
            row.weights = start
            start += layer.inputs[0] * width
            row.bias = start if layer.bias else -1
            start += layer.bias * width
        return rows

    def _packed(self, flat: Tensor) -> Tensor:
        """Lay weights (K, P) out as the kernel has them: a row for each input."""
        parts, start = [], 0
        for layer, width in zip(self._layers, self._widths, strict=True):
            inputs, outputs = layer.inputs[0], layer.outputs[0]
            end = start + inputs * outputs
            matrix = flat[:, start:end].reshape(-1, outputs, inputs).transpose(1, 2)
            behind = (0, width - outputs)
            parts.append(nn.functional.pad(matrix, behind).flatten(1))
            if layer.bias:
                parts.append(nn.functional.pad(flat[:, end : end + outputs], behind))
            start = end + layer.bias * outputs
        return torch.cat(parts, dim=1)

    def _kept_sparse(self, x: Tensor) -> Sparse:
        """Return what `_sparse` gives, and keep it.

        Evaluations ask for the same samples again and again.
        """
        for seen, version, samples in self._seen:
            if seen is x and version == x._version:
                return samples
        samples = self._sparse(x)
        self._seen = [*self._seen[-MOST_KEPT + 1 :], (x, x._version, samples)]
        return samples

    def _sparse(self, x: Tensor, largest_share: float = 1.0) -> Sparse:
        """Make stored samples ready and keep the numbers that are not zero.

        Raises:
            Unsupported: They are more than the largest share.
        """
        counts, places, values = [], [], []
        for part in torch.split(x.detach(), READY_AT_ONCE):
            ready = self._inputs.ready(part)
            if ready.ndim != 2 or ready.shape[1] != self._features:
                raise UsageError(
                    f"The network takes samples of {self._features} numbers, got "
                    f"{tuple(ready.shape[1:])}."
                )
            if ready.dtype != self._real:
                raise Unsupported("inputs and weights differ in their dtype")
            rows, columns = ready.nonzero(as_tuple=True)
            if len(rows) > largest_share * ready.numel():
                raise Unsupported(
                    f"more than {largest_share:.0%} of the inputs are not zero"
                )
            counts.append(rows.bincount(minlength=len(part)))
            places.append(columns.int())
            values.append(ready[rows, columns])
        starts = torch.zeros(len(x) + 1, dtype=torch.int64)
        starts[1:] = torch.cat(counts).cumsum(0)
        return Sparse(starts, torch.cat(places), torch.cat(values))


def _without_dropout(module: nn.Module) -> tuple[nn.Module, tuple[float, ...]]:
    """Return a chain without its dropout, and the share that each layer drops.

    Names of parameters stay as they are, as the chain holds `nn.Identity` instead.

    Raises:
        Unsupported: Dropout does not follow a ReLU, or drops everything.
    """
    shares: list[float] = []
    behind_relu = False
    for part in _leaves(module):
        if isinstance(part, nn.Linear):
            shares.append(0.0)
        elif isinstance(part, nn.Dropout) and part.p > 0:
            if not behind_relu or shares[-1] or part.p >= 1:
                raise Unsupported("dropout does not follow a ReLU, or drops everything")
            shares[-1] = part.p
        behind_relu = isinstance(part, nn.ReLU) or (
            behind_relu and isinstance(part, nn.Identity | nn.Dropout)
        )
    return _replaced(module), tuple(shares)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def _replaced(module: nn.Module) -> nn.Module:
    """Return the module with `nn.Identity` for dropout, sharing all else."""
    if type(module) is nn.Dropout:
        return nn.Identity()
    if type(module) is not nn.Sequential:
        return module
    copied = nn.Sequential()
    for name, child in module._modules.items():
        if child is not None:
            copied.add_module(name, _replaced(child))
    return copied
