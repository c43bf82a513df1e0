"""Ways to compute Hessians, and which are right and fast for a given model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import Batches, part_of, tensors_in
from nablab.instruments.base.graphs import free_memory
from nablab.instruments.base.losses import Penalized, split
from nablab.instruments.base.replica_objective import (
    ForwardDifferentiable,
    LossOf,
    ReplicaObjective,
)
from nablab.instruments.curvature.dense_hessian import (
    DenseLayer,
    dense_hessians,
    dense_layers,
)
from nablab.instruments.curvature.differences import ByDifferences
from nablab.instruments.curvature.operators import kept_bytes

Method = Literal[
    "auto", "dense", "forward-over-reverse", "double-backward", "finite-difference"
]

# On two cores and a network of 571 parameters and 300 samples, 16 columns at once took
# 1.3 times as long as 64, and all 571 took 2.5 times as long: the tangents no longer
# fit the cache.
COLUMNS = 64
# This many replicas in one batch take half the time per network of one; ten were no
# faster than four.
REPLICAS_TOGETHER = 4
# The tangents of one chunk take at most this, and an eighth of the free memory.
WORKING_BYTES = 2**29
# The dense method and a product by autograd differ by rounding only, or the loss holds
# a part that the method does not see; a weak penalty is a small part.
SAME = 1e4  # roundoffs
DOUBLE_BACKWARD = (
    "Rows of the Hessian were computed one by one, by double backward passes: this "
    "model has no usable forward-mode derivative ({why})."
)
BY_FORWARD_MODE = (
    "The Hessian itself was computed by forward mode, which agrees with those "
    "differences and is exact; `rounding` is the distance to them."
)
PAST_ARGUMENTS = (
    "The fast method for dense networks was not used: it does not give what "
    "differentiating the loss gives. A loss that reaches the model past its arguments, "
    "such as a penalty on its weights, does this."
)
TIED = (
    "The fast method for dense networks was not used: the loss is not a sum over the "
    "samples of a batch, so that samples are tied together."
)


@dataclass
class Way:
    """How Hessians are computed.

    Attributes:
        method: The method; it changes where a later batch shows that it does not apply.
        notes: Why it is that one.
    """

    method: Method
    notes: tuple[str, ...] = ()


def choose_way(objective: ReplicaObjective, method: str) -> Way:
    """Return the requested method, or the fastest that is right for this model.

    Args:
        objective: The networks; its products are taken as right (see `verified`).
        method: See `hessian_matrix`.

    Raises:
        UsageError: No such method, or the model lacks the derivative that it needs.
    """
    if method not in ("auto", *METHODS):
        raise unknown("method", method, ["auto", *METHODS])
    if method == "finite-difference":
        return Way("finite-difference")
    if method == "double-backward" and isinstance(objective, ByDifferences):
        raise UsageError(
            f"method='double-backward' cannot be used: {objective.why}. Leave method= "
            "out, which takes differences of gradients where nothing better is there."
        )
    notes: tuple[str, ...] = ()
    if method in ("auto", "dense") and _looks_dense(objective):
        same = _dense_agrees(objective)
        if same:
            return Way("dense")
        notes = (PAST_ARGUMENTS,) if same is not None else ()
    if method == "dense":
        raise UsageError(
            "method='dense' needs a Sequential of Linear layers and elementwise "
            "activations, all of whose parameters are chosen, batches (inputs, target) "
            "and a loss(output, target) that is a mean over samples and sees nothing "
            "else. Use method='auto'."
        )
    if method in ("double-backward", "forward-over-reverse"):
        return Way(
            "double-backward" if method == "double-backward" else "forward-over-reverse"
        )
    return _general_way(objective, notes)


def _general_way(objective: ReplicaObjective, notes: tuple[str, ...]) -> Way:
    """Return forward mode if it matches the products, else the products."""
    differences = isinstance(objective, ByDifferences)
    first = objective.subset(torch.arange(1))
    try:
        other = "differences of gradients" if differences else "reverse mode"
        why = "" if _modes_agree(first) else f"the one it has contradicts {other}"
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError | UsageError):
            raise
        why = str(error).strip().splitlines()[0][:120]
    objective.spent += first.spent
    if not why:
        return Way(
            "forward-over-reverse", (*notes, BY_FORWARD_MODE) if differences else notes
        )
    if differences:
        return Way("finite-difference", notes)
    return Way("double-backward", (*notes, DOUBLE_BACKWARD.format(why=why)))


def _modes_agree(objective: ReplicaObjective) -> bool:
    """Return whether forward mode gives the derivative along a random vector.

    A function of the user's own may state a wrong derivative for one of them. A fourth
    of the digits must agree: models that cast to float32 inside have no more than half
    of them.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(
        1, objective.base.size, generator=generator, dtype=torch.float64
    )
    vector = vector.to(objective.points)
    forward = _derivatives_along(objective, objective.points, vector)[:, 0]
    reverse = objective.products(objective.points, vector)
    gap = (forward - reverse).norm()
    return bool(
        gap <= torch.finfo(vector.dtype).eps ** 0.25 * reverse.norm()
    ) or not bool(gap.isfinite())


def hessian_blocks(
    objective: ReplicaObjective,
    way: Way,
    *,
    points: Tensor | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the Hessians of all replicas, a few replicas at a time.

    So few of them are held at once.

    Args:
        objective: The networks.
        way: From `choose_way`; it may change.
        points: Where, (K, P); by default at their own parameters.
        chunk: See `hessian_matrix`.

    Yields:
        The numbers (k,) of some replicas and their matrices (k, P, P) as computed, not
        symmetrized.
    """
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk={chunk} is impossible: it must be at least 1.")
    points = objective.points if points is None else points
    columns, together = _sizes(objective, way, chunk)
    waiting = torch.arange(len(points))
    while len(waiting):
        numbers = waiting[:together]
        part = objective.subset(numbers)
        found = METHODS[way.method](part, points[numbers], columns)
        objective.spent += part.spent
        if found is None:
            general = _general_way(objective, (TIED,))
            way.method, way.notes = general.method, way.notes + general.notes
            columns, together = _sizes(objective, way, chunk)
            continue
        yield numbers, found
        waiting = waiting[len(numbers) :]


def _sizes(objective: ReplicaObjective, way: Way, chunk: int | None) -> tuple[int, int]:
    """Return how many columns and replicas to take at once."""
    size = objective.base.size
    most = max(1, WORKING_BYTES // (2 * size**2 * objective.points.itemsize))
    # `dense_hessians` cuts its work by itself.
    if way.method in ("dense", "finite-difference"):
        return 1, most
    first = objective.subset(torch.arange(1))
    batch = objective.batches.items[0]

    def linearize() -> None:
        leaf = first.points.detach().clone().requires_grad_()
        value = first.batch_losses(leaf, batch).sum()
        if value.requires_grad:
            torch.autograd.grad(
                value, leaf, create_graph=not isinstance(objective, ByDifferences)
            )

    with objective.quiet():
        kept = kept_bytes(linearize)
    if kept is None:
        return min(chunk or COLUMNS, size), 1
    allowed = min(WORKING_BYTES, free_memory(objective.base.device) / 8)
    fits = max(1, int(allowed / max(1, kept)))
    columns = min(chunk or min(COLUMNS, fits), size)
    return columns, min(most, max(1, min(REPLICAS_TOGETHER, fits // columns)))


# --- the methods ---
#
# Each gives the Hessians of networks at points (K, P), a number of columns at once, or
# None where it does not apply.


def _forward_over_reverse(
    objective: ReplicaObjective, points: Tensor, columns: int
) -> Tensor:
    size = objective.base.size
    total = points.new_zeros(len(points), size, size)
    for start in range(0, size, columns):
        stop = min(start + columns, size)
        basis = points.new_zeros(stop - start, size)
        basis[torch.arange(stop - start), torch.arange(start, stop)] = 1
        total[:, start:stop] = _derivatives_along(objective, points, basis)
    return total


def _derivatives_along(
    objective: ReplicaObjective, points: Tensor, directions: Tensor
) -> Tensor:
    """Return the gradients' derivatives (K, c, P) by forward mode.

    The directions are (c, P).
    """
    flatten, unflatten = objective.base.flatten, objective.base.unflatten
    total = points.new_zeros(len(points), *directions.shape)

    def rows(loss: LossOf, tensors: dict[str, Tensor]) -> Tensor:
        def row(direction: Tensor) -> Tensor:
            return flatten(jvp(grad(loss), (tensors,), (unflatten(direction),))[1])

        return vmap(row)(directions)

    for batch, weight in objective.batches:
        with objective.quiet(), ForwardDifferentiable():
            total += weight * objective.per_replica(rows, points, batch)
    objective.spent += len(points) * (2 * len(directions) + 1)
    return total


def _double_backward(
    objective: ReplicaObjective, points: Tensor, columns: int
) -> Tensor:
    size = objective.base.size
    total = points.new_zeros(len(points), size, size)
    for batch, weight in objective.batches:
        with objective.quiet():
            leaf, gradients = objective._graph(points, batch)
            if not gradients.requires_grad:
                continue  # the loss of this batch is linear in every parameter
            for j in range(size):
                row = torch.autograd.grad(
                    gradients[:, j].sum(),
                    leaf,
                    retain_graph=j < size - 1,
                    materialize_grads=True,
                )[0]
                total[:, j] += weight * row
    objective.spent += len(points) * (2 * size + 1)
    return total


def _finite_difference(
    objective: ReplicaObjective, points: Tensor, columns: int
) -> Tensor:
    if not isinstance(objective, ByDifferences):
        spent, objective = objective, ByDifferences.of(objective, "")
        matrices = _finite_difference(objective, points, columns)
        spent.spent = objective.spent
        return matrices
    size = objective.base.size
    total = points.new_zeros(len(points), size, size)
    for j in range(size):
        unit = torch.zeros_like(points)
        unit[:, j] = 1
        total[:, j] = objective.products(points, unit)
    return total


def _dense(objective: ReplicaObjective, points: Tensor, columns: int) -> Tensor | None:
    layers = dense_layers(objective.base.model) or ()
    found = _dense_matrices(objective, points, layers)
    units = sum(objective.base.values[layer.weight].shape[0] for layer in layers)
    # There is a tangent for each unit instead of each parameter.
    objective.spent += len(points) * (2 * units + 1)
    return found


def _dense_matrices(
    objective: ReplicaObjective, points: Tensor, layers: Sequence[DenseLayer]
) -> Tensor | None:
    total: Tensor | None = None
    loss = objective.base._module.criterion
    for batch, weight in objective.batches:
        x, y = split(batch)
        own = objective.per_replica_targets
        with objective.quiet():
            found = dense_hessians(
                layers,
                objective.base.unflatten(points),
                x,
                y.transpose(0, 1) if own else y,
                loss.loss if isinstance(loss, Penalized) else objective.base.criterion,
                per_replica_targets=own,
            )
        if found is None:
            return None
        if total is None:
            total = found if weight == 1 else found.mul_(weight)
        else:
            total.add_(found, alpha=weight)
    if isinstance(loss, Penalized) and total is not None:
        total.diagonal(dim1=1, dim2=2).add_(loss.weight_decay)
    return total


def _looks_dense(objective: ReplicaObjective) -> bool:
    """Return whether model, parameters and batches suit the dense method."""
    base = objective.base
    layers = dense_layers(base.model)
    separate = not base.is_closure or isinstance(base._module.criterion, Penalized)
    if (
        layers is None
        or not separate
        or base.dtype not in (torch.float32, torch.float64)
    ):
        return False
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    if list(base.names) != names:
        return False
    for batch in objective.batches.items:
        inputs = tensors_in(batch)
        if (
            not isinstance(batch, tuple | list)
            or len(inputs) != 2
            or inputs[0].ndim != 2
        ):
            return False
    return True


def _dense_agrees(objective: ReplicaObjective) -> bool | None:
    """Return whether the dense method is right on two samples.

    It is None if the method does not apply.
    """
    few = objective.subset(torch.arange(1))
    few.batches = Batches((part_of(objective.batches.items[0], 0, 2),), (2,))
    try:
        matrix = _dense_matrices(
            few, few.points, dense_layers(objective.base.model) or ()
        )
        if matrix is None:
            return None
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(
            1, objective.base.size, generator=generator, dtype=torch.float64
        )
        vector = vector.to(few.points)
        product = few.products(few.points, vector)
    # The loss of two samples by themselves is unavailable.
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None
    gap = (product - (matrix @ vector[..., None])[..., 0]).norm()
    few_roundoffs = SAME * torch.finfo(vector.dtype).eps
    return bool(gap <= few_roundoffs * product.norm()) or not bool(gap.isfinite())


METHODS: Mapping[str, Callable[[ReplicaObjective, Tensor, int], Tensor | None]] = {
    "dense": _dense,
    "forward-over-reverse": _forward_over_reverse,
    "double-backward": _double_backward,
    "finite-difference": _finite_difference,
}
