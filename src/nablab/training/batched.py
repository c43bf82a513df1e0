"""All replicas in one pass: `torch.func.vmap` of the gradient over stacked weights.

A small network is bound by the overhead of calls, not by arithmetic. Stacking K of them
pays that overhead once. The weights of each replica lie in one row of a tensor (K, P),
so that an optimizer step is a handful of operations whatever the number of layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from nablab.training.engine import (
    FloatArray,
    Loss,
    Unsupported,
    loss_function,
    mask_after_divergence,
    slices,
)
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification
from nablab.training.stacked_weights import StackedWeights


class BatchedEngine:
    """K networks as one, by `torch.func.vmap`.

    It serves modules without buffers and without randomness in the forward pass.

    Args:
        modules: K modules; only their weights are read.
        x: Stored samples (N, ...), shared.
        y: Targets (N, ...), or (K, N, ...) with per-replica targets.
        loss: Name or function.
        optimizer: Specification.
        per_replica_targets: Whether each replica has its own targets.
        inputs: How stored samples become inputs.

    Raises:
        Unsupported: The samples are to be augmented; the modules have buffers, active
            dropout, untrained or mixed parameters, or an operation that `vmap` cannot
            do.
    """

    name = "batched"
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
        if inputs.augment is not None:
            raise Unsupported("each replica augments its own batches")
        self._stacked = StackedWeights(modules, optimizer)
        self._inputs = inputs
        # all samples made ready, once they are asked for
        self._full: Tensor | None = None
        self.replicas = len(modules)
        self._module = modules[0]
        self._loss = loss_function(loss)
        self._x, self._y, self._per_replica_targets = x, y, per_replica_targets
        self._gradients: dict[tuple[int | None, int | None], Callable[..., Any]] = {}
        self._rehearse()

    @torch.no_grad()
    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """See `Engine.advance`."""
        losses = []
        for step, rate in enumerate(rates):
            gradients, loss = self._gradient(None if batches is None else batches[step])
            losses.append(torch.where(self._stacked.active, loss, torch.nan))
            self._stacked.step(gradients, loss, float(rate))
        return mask_after_divergence(torch.stack(losses).double().cpu().numpy())

    def _gradient(self, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute gradients (K, P) and losses (K,) on one batch, or on everything.

        A batch holds indices (K, batch_size).
        """
        y = self._y
        if batch is None:
            x = self._full = (
                self._inputs.ready(self._x) if self._full is None else self._full
            )
        else:
            # Not x[batch]: 15 instead of 394 µs for 600 images of 784 bytes.
            chosen = self._x.index_select(0, batch.flatten())
            x = self._inputs.ready(chosen.reshape(*batch.shape, *self._x.shape[1:]))
            y = (
                y[torch.arange(self.replicas, device=batch.device)[:, None], batch]
                if self._per_replica_targets
                else y[batch]
            )
        x_dim = None if batch is None else 0
        y_dim = 0 if self._per_replica_targets or batch is not None else None
        if (x_dim, y_dim) not in self._gradients:
            function = grad_and_value(self._loss_of)
            self._gradients[x_dim, y_dim] = vmap(
                function, in_dims=(0, x_dim, y_dim), randomness="error"
            )
        self._module.train()
        gradients, loss = self._gradients[x_dim, y_dim](self._stacked.weights, x, y)
        return gradients, loss

    def _loss_of(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._loss(self._forward(weights, x), y)

    def _forward(self, weights: Tensor, x: Tensor) -> Tensor:
        with self._inputs.autocast(x.device):
            output: Tensor = functional_call(
                self._module, self._stacked.by_name(weights), (x,)
            )
        return output.float() if self._inputs.bfloat16 else output

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._stacked.freeze(replicas)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        self._module.eval()
        forward = vmap(self._forward, in_dims=(0, None), randomness="error")
        parts = (
            self._inputs.ready(x[part])
            for part in slices(len(x), self._module, replicas=self.replicas)
        )
        return torch.cat(
            [forward(self._stacked.weights, part) for part in parts], dim=1
        )

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        return self._stacked.parameters()

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        return self._stacked.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self._stacked.load_state(state)

    @torch.no_grad()
    def _rehearse(self) -> None:
        """Compute one gradient and one prediction on two samples.

        What `vmap` refuses shows before training.
        """
        samples = min(2, len(self._x))
        few = torch.arange(samples, device=self._x.device).expand(
            self.replicas, samples
        )
        with warnings.catch_warnings():
            # Operations without a batching rule run in a hidden loop and only warn that
            # they are slow.
            warnings.filterwarnings("error", message=".*batching rule.*")
            try:
                gradients, _ = self._gradient(few)
                self.predict(self._x[:samples])
            except (RuntimeError, NotImplementedError, UserWarning) as error:
                reason = str(error).strip().split("\n")[0]
                raise Unsupported(
                    f"torch.func.vmap cannot run the network or its loss: {reason}"
                ) from error
        if gradients.shape != self._stacked.weights.shape:
            raise Unsupported("the gradients do not have the shape of the weights")
