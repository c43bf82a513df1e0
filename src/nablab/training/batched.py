"""All replicas in one pass: `torch.func.vmap` of the gradient over stacked weights.

A small network is bound by the overhead of calls, not by arithmetic. Stacking K of them pays that
overhead once. The weights of each replica lie in one row of a tensor (K, P), so that an optimizer
step is a handful of operations whatever the number of layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from nablab.training.engine import FloatArray, Loss, Unsupported, loss_function, mask_after_divergence, slices
from nablab.training.inputs import Inputs
from nablab.training.optimizers import Specification

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class BatchedEngine:
    """K networks as one, for modules without buffers and without randomness in the forward pass.

    Args:
        modules: K modules; only their weights are read.
        x: Stored samples (N, ...), shared.
        y: Targets (N, ...), or (K, N, ...) with own labels.
        loss: Name or function.
        optimizer: Specification.
        own_labels: Whether each replica has its own targets.
        inputs: How stored samples become inputs.

    Raises:
        Unsupported: The samples are to be augmented; the modules have buffers, active dropout,
            untrained or mixed parameters, or an operation that `vmap` cannot do.
    """

    name = "batched"

    def __init__(
        self,
        modules: Sequence[nn.Module],
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss,
        optimizer: Specification,
        own_labels: bool,
        inputs: Inputs = Inputs(),  # noqa: B008 - immutable
    ) -> None:
        if inputs.augment is not None:
            raise Unsupported("each replica augments its own batches")
        _refuse_unsuitable(modules[0])
        self._inputs = inputs
        self._full: Tensor | None = None  # all samples made ready, once they are asked for
        self.replicas = len(modules)
        self._module = modules[0]
        self._optimizer = optimizer
        self._loss = loss_function(loss)
        self._x, self._y, self._own_labels = x, y, own_labels
        self._shapes = {name: p.shape for name, p in modules[0].named_parameters()}
        self._weights = torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in modules])
        self._slots = {slot: torch.zeros_like(self._weights) for slot in optimizer.slots()}
        self._active = torch.ones(self.replicas, dtype=torch.bool, device=x.device)
        self._count = 0
        self._gradients: dict[tuple[int | None, int | None], Callable[..., Any]] = {}
        self._rehearse()

    @torch.no_grad()
    def advance(self, rates: FloatArray, batches: Tensor | None) -> FloatArray:
        """See `Engine.advance`."""
        losses = []
        for step, rate in enumerate(rates):
            gradients, loss = self._gradient(None if batches is None else batches[step])
            losses.append(torch.where(self._active, loss, torch.nan))
            self._active &= torch.isfinite(loss)
            self._count += 1
            self._step(gradients, float(rate))
        return mask_after_divergence(torch.stack(losses).double().cpu().numpy())

    def _step(self, gradients: Tensor, rate: float) -> None:
        if bool(self._active.all()):
            self._optimizer.update(self._weights, gradients, self._slots, rate, self._count)
            return
        before = [tensor.clone() for tensor in (self._weights, *self._slots.values())]
        self._optimizer.update(self._weights, gradients, self._slots, rate, self._count)
        for tensor, old in zip((self._weights, *self._slots.values()), before, strict=True):
            tensor.copy_(torch.where(self._active[:, None], tensor, old))

    def _gradient(self, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients (K, P) and losses (K,) on one batch (K, batch_size) of indices, or on everything."""
        y = self._y
        if batch is None:
            x = self._full = self._inputs.ready(self._x) if self._full is None else self._full
        else:
            # Not x[batch]: 15 instead of 394 µs for 600 images of 784 bytes.
            chosen = self._x.index_select(0, batch.flatten())
            x = self._inputs.ready(chosen.reshape(*batch.shape, *self._x.shape[1:]))
            y = (
                y[torch.arange(self.replicas, device=batch.device)[:, None], batch]
                if self._own_labels
                else y[batch]
            )
        x_dim = None if batch is None else 0
        y_dim = 0 if self._own_labels or batch is not None else None
        if (x_dim, y_dim) not in self._gradients:
            function = grad_and_value(self._loss_of)
            self._gradients[x_dim, y_dim] = vmap(function, in_dims=(0, x_dim, y_dim), randomness="error")
        self._module.train()
        gradients, loss = self._gradients[x_dim, y_dim](self._weights, x, y)
        return gradients, loss

    def _loss_of(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._loss(self._forward(weights, x), y)

    def _forward(self, weights: Tensor, x: Tensor) -> Tensor:
        with self._inputs.autocast(x.device):
            output: Tensor = functional_call(self._module, self._unstack(weights), (x,))
        return output.float() if self._inputs.bfloat16 else output

    def _unstack(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of (..., P) weights by name."""
        parts = torch.split(weights, [shape.numel() for shape in self._shapes.values()], dim=-1)
        return {
            name: part.reshape((*part.shape[:-1], *shape))
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._active[list(replicas)] = False

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        self._module.eval()
        forward = vmap(self._forward, in_dims=(0, None), randomness="error")
        parts = (self._inputs.ready(x[part]) for part in slices(len(x), self._module, replicas=self.replicas))
        return torch.cat([forward(self._weights, part) for part in parts], dim=1)

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        return {name: part.clone() for name, part in self._unstack(self._weights).items()}

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        tensors = {"weights": self._weights, "active": self._active, "count": torch.tensor(self._count)}
        tensors |= {f"slot/{name}": tensor for name, tensor in self._slots.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self._weights.copy_(state["weights"])
        self._active.copy_(state["active"])
        self._count = int(state["count"])
        for name, tensor in self._slots.items():
            tensor.copy_(state[f"slot/{name}"])

    @torch.no_grad()
    def _rehearse(self) -> None:
        """One gradient and one prediction on two samples, to learn what `vmap` refuses before training."""
        samples = min(2, len(self._x))
        few = torch.arange(samples, device=self._x.device).expand(self.replicas, samples)
        with warnings.catch_warnings():
            # Operations without a batching rule run in a hidden loop and only warn that they are slow.
            warnings.filterwarnings("error", message=".*batching rule.*")
            try:
                gradients, _ = self._gradient(few)
                self.predict(self._x[:samples])
            except (RuntimeError, NotImplementedError, UserWarning) as error:
                reason = str(error).strip().split("\n")[0]
                raise Unsupported(f"torch.func.vmap cannot run the network or its loss: {reason}") from error
        if gradients.shape != self._weights.shape:
            raise Unsupported("the gradients do not have the shape of the weights")


def _refuse_unsuitable(module: nn.Module) -> None:
    if any(True for _ in module.buffers()):
        raise Unsupported("the network has buffers, such as those of batch normalisation")
    if any(isinstance(part, _DROPOUT) and part.p > 0 for part in module.modules()):
        raise Unsupported("the network has dropout, and each replica needs its own random numbers")
    parameters = list(module.parameters())
    if not parameters:
        raise Unsupported("the network has no parameters")
    if not all(parameter.requires_grad for parameter in parameters):
        raise Unsupported("some parameters of the network do not train")
    if len({parameter.dtype for parameter in parameters}) > 1:
        raise Unsupported("the parameters of the network have several dtypes")
