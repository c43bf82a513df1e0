"""The losses and derivatives of networks of one architecture, at points (K, P)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import mse_loss
from torch.overrides import TorchFunctionMode

from nablab.errors import UsageError
from nablab.instruments.base.batches import Batches, is_batch, move, read_batches
from nablab.instruments.base.graphs import has_dead_end
from nablab.instruments.base.losses import Closure, Loss, split
from nablab.instruments.base.objective import Objective, select_parameters
from nablab.instruments.base.replicas import Replicas, tensors_of

LossOf: TypeAlias = Callable[[dict[str, Tensor]], Tensor]

ONCE_ONLY = (
    "A function in this model may be differentiated once only (once_differentiable), "
    "so its exact second derivative is unavailable. HessianOperator and "
    "hessian_eigenvalues take differences of gradients instead."
)
ONE_BY_ONE = (
    "The replicas were measured one at a time: this model cannot be batched ({why})."
)


class ReplicaObjective:
    r"""The mean loss of each of K networks as a function of its own parameters.

    One network is a single row: every instrument that takes replicas takes a module,
    too. Replicas run as one batch (`torch.func.vmap`); where the model does not allow
    that, one after the other.

    Args:
        model: `Replicas`, or one module.
        loss: See `Objective`.
        data: See `Objective`; shared by the replicas unless ``per_replica_targets``.
        parameters: See `Objective`.
        dtype: The dtype to measure in.
        batch_size: See `Objective`.
        per_replica_targets: The target of every batch has shape (K, samples, ...):
            each replica learns its own.
        check: See `Objective`.

    Attributes:
        base: The objective of one of the networks; it holds names and shapes of the
            parameters.
        points: The chosen parameters of all replicas, (K, P).
        single: Whether a module was given instead of replicas.
        spent: Gradient evaluations so far, each replica's counted.
        notes: What was chosen automatically.

    >>> replicas = Replicas.stack([nn.Linear(2, 1) for _ in range(5)])
    >>> batch = (torch.zeros(4, 2), torch.ones(4, 1))
    >>> objective = ReplicaObjective(replicas, "mse", batch)
    >>> objective.points.shape, objective.losses().shape, objective.gradients().shape
    (torch.Size([5, 3]), torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        model: nn.Module | Replicas,
        loss: Loss,
        data: Any,
        *,
        parameters: str | Sequence[str] = "*",
        dtype: torch.dtype = torch.float64,
        batch_size: int | None = None,
        per_replica_targets: bool = False,
        check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module | Replicas):
            raise UsageError(
                f"A {type(model).__name__} is not a model. Give a torch.nn.Module, "
                "Replicas(module, stacked_tensors), or Replicas.stack(modules)."
            )
        self.single = isinstance(model, nn.Module)
        self.per_replica_targets = per_replica_targets
        replicas = Replicas.stack([model]) if isinstance(model, nn.Module) else model
        device = tensors_of(replicas.module)[
            select_parameters(replicas.module, parameters)[0]
        ].device
        if per_replica_targets:
            data = _samples_first(data, len(replicas))
        samples = loss.samples if isinstance(loss, Closure) else None
        self.batches = read_batches(
            data, device=device, dtype=dtype, batch_size=batch_size, samples=samples
        )
        self.spent = 0.0
        # The checks of a single objective are made at a replica whose loss is finite,
        # if there is one.
        options: dict[str, Any] = {"parameters": parameters, "dtype": dtype}
        self.base = Objective(
            replicas.module,
            loss,
            self._data_of(0),
            tensors={name: tensor[0] for name, tensor in replicas.tensors.items()},
            check=False,
            **options,
        )
        self.batches = self._counted(len(replicas))
        stacked = {
            name: self._moved(tensor) for name, tensor in replicas.tensors.items()
        }
        # A tensor that the replicas share counts for each of them.
        tensors = {
            name: value.expand(len(replicas), *value.shape)
            for name, value in self.base.values.items()
        }
        own = {name: stacked.pop(name) for name in tensors if name in stacked}
        self.points = self.base.flatten(tensors | own)
        self._others = stacked
        self._batched = len(self) > 1
        self._twice_differentiable = False  # not known yet
        self.notes: tuple[str, ...] = ()
        self._probe()
        if check:
            finite = self.losses().isfinite().nonzero().flatten().tolist()
            chosen = finite[0] if finite else 0
            checked = Objective(
                replicas.module,
                loss,
                self._data_of(chosen),
                tensors={
                    name: tensor[chosen] for name, tensor in replicas.tensors.items()
                },
                **options,
            )
            self.base._pristine = checked._pristine
            self.base.reads_model = checked.reads_model
            self.base._uses = checked._uses
            if not per_replica_targets:
                self.batches = checked.batches
            self.notes = checked.notes + self.notes
        self.spent = 0.0

    def __len__(self) -> int:
        """Return K."""
        return len(self.points)

    def subset(self, replicas: Tensor) -> ReplicaObjective:
        """Return the objective of some replicas, (k,) numbers, with the same data."""
        part = copy.copy(self)
        part.points = self.points[replicas]
        part._others = {name: tensor[replicas] for name, tensor in self._others.items()}
        part._batched = self._batched and len(replicas) > 1
        part.spent = 0.0
        if self.per_replica_targets:
            items = tuple(
                (split(b)[0], split(b)[1][:, replicas]) for b in self.batches.items
            )
            part.batches = replace(self.batches, items=items)
        return part

    def tensors(self, points: Tensor) -> dict[str, Tensor]:
        """Return all replicas' parameters, and buffers that differ, (K, ...)."""
        return {**self._others, **self.base.unflatten(points)}

    def per_replica(
        self,
        function: Callable[[LossOf, dict[str, Tensor]], Tensor],
        points: Tensor,
        batch: Any,
    ) -> Tensor:
        """Stack ``function(loss, tensors)`` of each replica; call inside `quiet`.

        ``loss`` takes the chosen parameters by name and gives the replica's loss on the
        batch; ``tensors`` are those parameters at its row of points (K, P).
        """

        def one(
            chosen: dict[str, Tensor], others: dict[str, Tensor], *parts: Any
        ) -> Tensor:
            whole = parts[0] if len(parts) == 1 else parts
            return function(
                lambda t: self.base.batch_loss({**others, **t}, whole), chosen
            )

        chosen = self.base.unflatten(points)
        if self._batched:
            axes = (None, 1) if self.per_replica_targets else (None,)
            parts = split(batch) if self.per_replica_targets else (batch,)
            return vmap(one, in_dims=(0, 0, *axes))(chosen, self._others, *parts)
        rows = [
            one(
                {name: tensor[k] for name, tensor in chosen.items()},
                {name: tensor[k] for name, tensor in self._others.items()},
                self._seen_by(k, batch),
            )
            for k in range(len(points))
        ]
        return torch.stack(rows)

    def batch_losses(self, points: Tensor, batch: Any) -> Tensor:
        """Return the losses (K,) on one batch of `batches` at points (K, P).

        They are differentiable; call it inside `quiet`.
        """
        return self.per_replica(lambda loss, tensors: loss(tensors), points, batch)

    def losses(self, points: Tensor | None = None) -> Tensor:
        """Return the losses (K,) over all data at points (K, P).

        Without points, they are the losses at the replicas' own.
        """
        points = self.points if points is None else points
        with self.quiet():
            total = sum(
                weight * self.batch_losses(points, batch).detach()
                for batch, weight in self.batches
            )
        self.spent += len(points) / 3
        return torch.as_tensor(total)

    def losses_and_gradients(
        self, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (K,) and gradients (K, P) over all data."""
        points = self.points if points is None else points
        if self._one_by_one(points):
            each = [
                self._single(k).losses_and_gradients(points[k : k + 1])
                for k in range(len(points))
            ]
            self.spent += len(points)
            return torch.cat([loss for loss, _ in each]), torch.cat(
                [gradient for _, gradient in each]
            )
        losses, gradients = points.new_zeros(len(points)), torch.zeros_like(points)
        for batch, weight in self.batches:
            leaf = points.detach().clone().requires_grad_()
            with self.quiet():
                value = self.batch_losses(leaf, batch)
                # Replicas share nothing, so the gradient of the sum holds the gradient
                # of each.
                gradients += weight * self._derivative(value, leaf)
            losses += weight * value.detach()
        self.spent += len(points)
        return losses, gradients

    def gradients(self, points: Tensor | None = None) -> Tensor:
        """Return the gradients (K, P) over all data."""
        return self.losses_and_gradients(points)[1]

    def products(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Return each replica's Hessian times its row of vectors (K, P).

        They come from a double backward pass.
        """
        return self.gradients_and_products(points, lambda _: vectors)[1]

    def gradients_and_products(
        self, points: Tensor, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return gradients and Hessian products (K, P).

        The vectors are chosen from the gradients.

        With one batch the gradient's graph is built once; with several, a first pass
        finds the gradients.
        """
        if len(self.batches) == 1 and not self._one_by_one(points):
            with self.quiet():
                leaf, found = self._graph(points, self.batches.items[0])
                self.spent += 3 * len(points)
                return found.detach(), self._backward(
                    leaf, found, choose(found.detach())
                )
        gradients = self.gradients(points)
        vectors, products = choose(gradients), torch.zeros_like(points)
        if self._one_by_one(points):
            for k in range(len(points)):
                products[k] = self._single(k).products(
                    points[k : k + 1], vectors[k : k + 1]
                )[0]
            self.spent += 3 * len(points)
            return gradients, products
        for batch, weight in self.batches:
            with self.quiet():
                products += weight * self._backward(
                    *self._graph(points, batch), vectors
                )
        self.spent += 3 * len(points)
        return gradients, products

    def _one_by_one(self, points: Tensor) -> bool:
        """Return whether a graph may span one replica only.

        Models that are not batched may read weights again.
        """
        return len(points) > 1 and not self._batched

    def _single(self, replica: int) -> ReplicaObjective:
        return self.subset(torch.tensor([replica]))

    def _counted(self, replicas: int) -> Batches:
        """Return the batches with what their means are over."""
        counted = self.base.batches
        if not self.per_replica_targets:
            return counted
        if len(self.batches) > 1 and counted.count is not None:
            for batch in self.batches.items:
                if (
                    len(
                        {
                            counted.count(self._seen_by(k, batch))
                            for k in range(replicas)
                        }
                    )
                    > 1
                ):
                    raise UsageError(
                        "The number of ignored targets differs between replicas, so "
                        "batches weigh differently for each replica. Give all data as "
                        "one batch."
                    )
        return self.batches

    def _graph(self, points: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        leaf = points.detach().clone().requires_grad_()
        with self.quiet():
            value = self.batch_losses(leaf, batch)
            gradients = self._derivative(value, leaf, create_graph=True)
        if not self._twice_differentiable:
            if has_dead_end([gradients]):
                raise UsageError(ONCE_ONLY)
            self._twice_differentiable = True
        return leaf, gradients

    def _derivative(
        self, value: Tensor, leaf: Tensor, *, create_graph: bool = False
    ) -> Tensor:
        if not value.requires_grad:
            self.base.gradients_of(value, {})  # raises the error that says why
        return torch.autograd.grad(
            value.sum(), leaf, create_graph=create_graph, materialize_grads=True
        )[0]

    def _backward(self, leaf: Tensor, gradients: Tensor, vectors: Tensor) -> Tensor:
        if not gradients.requires_grad:  # the loss is linear in every parameter
            return torch.zeros_like(leaf)
        with self.quiet():
            return torch.autograd.grad(
                gradients, leaf, vectors, materialize_grads=True
            )[0].detach()

    def quiet(self) -> Any:
        """See `Objective.quiet`."""
        return self.base.quiet()

    def _seen_by(self, replica: int, batch: Any) -> Any:
        if not self.per_replica_targets:
            return batch
        inputs, target = split(batch)
        return inputs, target[:, replica]

    def _data_of(self, replica: int) -> Any:
        """Return the batches as one replica sees them.

        It is an iterator, because a list of tensors would be one batch.
        """
        return iter([self._seen_by(replica, batch) for batch in self.batches.items])

    def _moved(self, tensor: Tensor) -> Tensor:
        return torch.as_tensor(
            move(tensor.detach(), self.base.device, self.base.dtype)
        ).clone()

    def _probe(self) -> None:
        """Find out whether loss and gradient can be batched over replicas."""
        if not self._batched:
            return
        try:
            self._graph(self.points, self.batches.items[0])
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError | UsageError):
                raise
            self._batched = False
            self.notes += (
                ONE_BY_ONE.format(why=str(error).strip().splitlines()[0][:120]),
            )


class ForwardDifferentiable(TorchFunctionMode):
    """Writes the mean squared error out, so that its gradient has a forward derivative.

    The forward derivative of PyTorch's ``mse_loss_backward`` (2.13) writes into an
    immutable zero and raises "ZeroTensors are immutable" when the target is a constant.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        options = {
            name: value for name, value in (kwargs or {}).items() if value is not None
        }
        reduction = options.pop("reduction", "mean")
        if function is mse_loss and not options and reduction in ("mean", "sum"):
            squares = (args[0] - args[1]).square()
            return squares.mean() if reduction == "mean" else squares.sum()
        return function(*args, **(kwargs or {}))


def _samples_first(data: Any, replicas: int) -> list[Any]:
    """Lay out targets (K, samples, ...) as (samples, K, ...).

    Batches are cut by samples.
    """
    turned = []
    for place, batch in enumerate([data] if is_batch(data) else data):
        inputs, target = split(batch)
        if target.ndim < 2 or len(target) != replicas:
            raise UsageError(
                f"The target of batch {place} has shape {tuple(target.shape)}; with "
                f"per_replica_targets it needs ({replicas}, samples, ...): one row per "
                "replica."
            )
        turned.append((inputs, target.transpose(0, 1)))
    return turned
