"""The exact Hessian of a loss, for networks of up to some ten thousand parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import Batches, count_samples, map_tensors, part_of, tensors_in
from nablab.instruments.base.graphs import counting_saved_bytes, free_memory
from nablab.instruments.base.losses import Loss, Penalized, split
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.objective import select_parameters
from nablab.instruments.base.replicas import ForwardDifferentiable, LossOf, ReplicaObjective, Replicas
from nablab.instruments.curvature.dense_hessian import DenseLayer, dense_hessians, dense_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray: TypeAlias = npt.NDArray[np.float64]
Method = Literal["auto", "dense", "forward-over-reverse", "double-backward"]

# On two cores and a network of 571 parameters and 300 samples, 16 columns at once took 1.3 times as long as
# 64, and all 571 took 2.5 times as long: the tangents no longer fit the cache.
COLUMNS = 64
TOGETHER = 4  # replicas in one batch: half the time per network of one; ten were no faster than four
WORKING_BYTES = 2**29  # the tangents of one chunk take at most this, and an eighth of the free memory
PROBES = 8  # random vectors; 24 gradients, against some hundreds or thousands for the matrix
MAX_BYTES = 4 * 10**9
DOUBLE_BACKWARD = (
    "Rows of the Hessian were computed one by one, by double backward passes: this model has no usable "
    "forward-mode derivative ({why})."
)


@dataclass(frozen=True, kw_only=True)
class HessianMatrix(Measurement):
    r"""The result of `hessian_matrix`; for `Replicas`, every array has a leading axis K.

    Attributes:
        matrix: float64 (P, P): :math:`(\hat H + \hat H^\top) / 2` of what was computed.
        asymmetry: :math:`\|\hat H - \hat H^\top\|_F / \|\hat H\|_F`: the rounding error of the computation as
            it shows; 0 for a zero matrix, and by method ``"dense"``, which computes one half.
        rounding: The same from two computations, as an estimate of :math:`\|\hat H - \tilde H\|_F / \|\hat
            H\|_F`: see `rounding_norm`.
        names: The parameters, in the order of the rows.
        sizes: How many rows each of them has.
        method: How it was computed.
    """

    matrix: FloatArray
    asymmetry: float | FloatArray
    rounding: float | FloatArray
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    method: str

    def plot(self) -> Figure:
        """The entries as colors, by parameter; of replicas, the first."""
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure

        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[0]
        largest = float(np.abs(matrix).max()) or 1.0
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.add_subplot()
        # Linear up to a ten-thousandth of the largest entry: early layers stay visible beside late ones.
        scale = SymLogNorm(linthresh=largest * 1e-4, vmin=-largest, vmax=largest)
        image = axes.imshow(matrix, cmap="PuOr_r", norm=scale, interpolation="nearest")
        ends = np.cumsum(self.sizes)
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="#767676", linewidth=0.3)
            axes.axvline(end - 0.5, color="#767676", linewidth=0.3)
        labeled = [place for place, size in enumerate(self.sizes) if size >= 0.03 * ends[-1]]
        axes.set_yticks(
            [ends[i] - self.sizes[i] / 2 - 0.5 for i in labeled], [self.names[i] for i in labeled]
        )
        axes.set_xticks([])
        axes.set_xlabel("parameter (columns in the order of the rows)")
        axes.set_ylabel("parameter")
        figure.colorbar(image, ax=axes, label="entry of the Hessian")
        return figure


def _expected(size: Size, *, chunk: int | None = None, **_: Any) -> Expected:
    chunks = -(-size.parameters // (chunk or COLUMNS))
    return Expected(gradients=2 * size.parameters + chunks, numbers=2.0 * size.parameters**2)


@instrument(expected=_expected)
def hessian_matrix(
    model: nn.Module | Replicas,
    loss: Loss,
    data: Any,
    *,
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype = torch.float64,
    batch_size: int | None = None,
    own_targets: bool = False,
    method: Method = "auto",
    chunk: int | None = None,
    max_bytes: float | None = None,
    check: bool = True,
) -> HessianMatrix:
    r"""The exact Hessian of the mean loss over all data, to rounding error.

    Columns of :math:`H = \nabla^2 f(\theta)` are directional derivatives of the gradient, :math:`H e_j =
    \frac{d}{dt} \nabla f(\theta + t e_j)`, by forward mode over reverse mode (Griewank and Walther 2008,
    section 3.4), a chunk of columns at once. A column costs about two gradients.

    Args:
        model: A module, or `Replicas` of one architecture.
        loss: See `Objective`.
        data: See `Objective`.
        parameters: Names or glob patterns: a diagonal block of the Hessian.
        dtype: The dtype to compute in.
        batch_size: Cut batches to bound the memory.
        own_targets: See `ReplicaObjective`.
        method: ``"auto"`` is ``"dense"`` (see `dense_hessian`) for dense networks measured whole, else
            ``"forward-over-reverse"``, or where an operation of the model has no forward-mode derivative
            ``"double-backward"``, a pass per row; `notes` says so.
        chunk: Columns at once; by default 64, or fewer if they would need too much memory.
        max_bytes: The most that the matrices may take; by default 4 GB, or half of the free memory.
        check: See `Objective`.

    Raises:
        UsageError: The matrix would not fit; the message says what to use instead.

    >>> result = hessian_matrix(nn.Linear(2, 1, bias=False), "mse", (torch.eye(2), torch.ones(2, 1)))
    >>> result.matrix
    array([[1., 0.],
           [0., 1.]])
    """
    check_fits(model, parameters, dtype, max_bytes)
    objective = ReplicaObjective(
        model, loss, data, parameters=parameters, dtype=dtype,
        batch_size=batch_size, own_targets=own_targets, check=check,
    )  # fmt: skip
    matrices = objective.points.new_empty(len(objective), objective.base.size, objective.base.size)
    errors = objective.points.new_empty(2, len(objective))
    for part, found in hessian_blocks(objective, method=method, chunk=chunk):
        matrices[part], errors[0, part] = symmetrized(found)
        errors[1, part] = rounding_norm(objective, part, matrices[part])
    ratios = relative(errors, matrices.flatten(1).norm(dim=1)).cpu().double().numpy()
    arrays = matrices.cpu().double().numpy()
    return HessianMatrix(
        matrix=arrays[0] if objective.single else arrays,
        asymmetry=float(ratios[0, 0]) if objective.single else ratios[0],
        rounding=float(ratios[1, 0]) if objective.single else ratios[1],
        names=objective.base.names,
        sizes=tuple(shape.numel() for shape in objective.base.shapes),
        method=usable_method(objective, method),
        gradients=objective.spent,
        notes=objective.notes,
    )


def hessian_blocks(
    objective: ReplicaObjective,
    *,
    points: Tensor | None = None,
    method: Method = "auto",
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The Hessians of all replicas, a few replicas at a time, so that few of them are held at once.

    Args:
        objective: The networks.
        points: Where, (K, P); by default at their own parameters.
        method: See `hessian_matrix`.
        chunk: See `hessian_matrix`.

    Yields:
        The numbers (k,) of some replicas and their matrices (k, P, P) as computed, not symmetrized.
    """
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk={chunk} is impossible: it must be at least 1.")
    points = objective.points if points is None else points
    compute = METHODS[usable_method(objective, method)]
    columns, together = _sizes(objective, chunk)
    most = max(1, WORKING_BYTES // (2 * objective.base.size**2 * points.itemsize))
    together = most if compute is _dense else min(together, most)  # the dense method cuts its work by itself
    for numbers in torch.split(torch.arange(len(points)), together):
        part = objective.subset(numbers)
        yield numbers, compute(part, points[numbers], columns)
        objective.spent += part.spent


def usable_method(objective: ReplicaObjective, method: str) -> Method:
    """The method to compute by: the one asked for, or the fastest that works for this model.

    Raises:
        UsageError: No such method, or the model lacks the derivative that it needs.
    """
    if method not in ("auto", *METHODS):
        raise unknown("method", method, ["auto", *METHODS])
    dense = method in ("auto", "dense") and _is_dense(objective)
    if method == "dense" and not dense:
        raise UsageError(
            "method='dense' needs a Sequential of Linear layers and elementwise activations, all of whose "
            "parameters are chosen, batches (inputs, target) and a loss(output, target). Use method='auto'."
        )
    if method != "auto" or dense:
        return "dense" if dense else cast(Method, method)
    if DOUBLE_BACKWARD[:40] in " ".join(objective.notes):
        return "double-backward"
    first = objective.subset(torch.arange(1))
    first.products(first.points, torch.ones_like(first.points))  # raises for what has no second derivative
    try:
        why = "" if _modes_agree(first) else "the one it has contradicts reverse mode"
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError | UsageError):
            raise
        why = str(error).strip().splitlines()[0][:120]
    if not why:
        return "forward-over-reverse"
    objective.notes += (DOUBLE_BACKWARD.format(why=why),)
    return "double-backward"


def _modes_agree(objective: ReplicaObjective) -> bool:
    """Whether forward and reverse mode give the same derivative of the gradient along a random vector.

    A function of the user's own may state a wrong derivative for one of them.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, objective.base.size, generator=generator, dtype=torch.float64)
    vector = vector.to(objective.points)
    forward = _derivatives_along(objective, objective.points, vector)[:, 0]
    reverse = objective.products(objective.points, vector)
    gap = (forward - reverse).norm()
    return bool(gap <= torch.finfo(vector.dtype).eps ** 0.5 * reverse.norm()) or not bool(gap.isfinite())


def symmetrized(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric part of matrices (k, P, P), and the Frobenius norm (k,) of each ``H - H.T``."""
    differences = (matrices - matrices.mT).flatten(1).norm(dim=1)
    return (matrices + matrices.mT) / 2, differences


def rounding_norm(objective: ReplicaObjective, numbers: Tensor, matrices: Tensor, *, seed: int = 0) -> Tensor:
    r"""How much rounding changes Hessians: an estimate (k,) of :math:`\|\hat H - \tilde H\|_F`.

    :math:`\tilde H` are the Hessians as double backward passes give them with the samples in reverse (of a
    closure's batches, in the same order). For a standard normal vector v,
    :math:`E\|(\hat H - \tilde H) v\|^2 = \|\hat H - \tilde H\|_F^2`; the mean over `PROBES`
    vectors has a relative standard error of about 1/sqrt(2 PROBES) for a difference of low rank, and less for
    one that is noise. Beside rounding, it would show a derivative formula that is wrong.

    Args:
        objective: The networks.
        numbers: Which of them, (k,).
        matrices: Their Hessians (k, P, P) at their own parameters.
        seed: Of the random vectors.
    """
    part = objective.subset(numbers)
    if not part.base.is_closure:
        items = tuple(_reversed(batch) for batch in part.batches.items)
        part.batches = Batches(items, part.batches.samples)
    generator = torch.Generator().manual_seed(seed)
    total = matrices.new_zeros(len(numbers))
    for _ in range(PROBES):
        vector = torch.randn(part.base.size, generator=generator, dtype=torch.float64).to(matrices)
        vectors = vector.expand_as(part.points)  # the same for each, so that none depends on the others
        difference = part.products(part.points, vectors) - (matrices @ vectors[..., None])[..., 0]
        total += difference.square().sum(dim=1) / PROBES
    objective.spent += part.spent
    return total.sqrt()


def relative(norms: Tensor, wholes: Tensor) -> Tensor:
    """Norms as shares of other norms; 0 where both are 0."""
    return torch.where(wholes > 0, norms / wholes.clamp_min(torch.finfo(wholes.dtype).tiny), norms)


def check_fits(
    model: nn.Module | Replicas,
    parameters: str | Sequence[str],
    dtype: torch.dtype,
    max_bytes: float | None,
    *,
    held: int | None = None,
) -> None:
    """Refuse Hessians that would not fit the memory.

    Args:
        model: The network or networks.
        parameters: See `Objective`.
        dtype: The dtype of the matrices.
        max_bytes: The most that they may take.
        held: How many are held at once; by default one per replica. One more is needed to symmetrize.
    """
    if not isinstance(model, nn.Module | Replicas):
        return  # refused with its own message when the objective is made
    module = model if isinstance(model, nn.Module) else model.module
    own = dict(module.named_parameters())
    chosen = [own[name] for name in select_parameters(module, parameters)]
    size = sum(parameter.numel() for parameter in chosen)
    count = (1 if isinstance(model, nn.Module) else len(model)) if held is None else held
    needed = (count + 1) * size**2 * dtype.itemsize
    allowed = max_bytes if max_bytes is not None else min(MAX_BYTES, free_memory(chosen[0].device) / 2)
    if needed > allowed:
        networks = f"{count} networks of " if count > 1 else ""
        raise UsageError(
            f"The Hessian of {networks}{size:,} parameters takes {_gigabytes(needed)} (with one copy to "
            f"symmetrize it); {_gigabytes(allowed)} are allowed. Use hessian_eigenvalues, hessian_trace or "
            "spectral_density, which never form it, choose fewer parameters= such as one layer's, or give a "
            "larger max_bytes=."
        )


def _reversed(batch: Any) -> Any:
    length = count_samples(batch)
    return map_tensors(batch, lambda t: t.flip(0) if t.ndim and len(t) == length else t)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"


def _sizes(objective: ReplicaObjective, chunk: int | None) -> tuple[int, int]:
    """Columns and replicas at once."""
    first = objective.subset(torch.arange(1))
    with counting_saved_bytes() as saved:
        for batch in objective.batches.items[:1]:
            first._graph(first.points, batch)
    allowed = min(WORKING_BYTES, free_memory(objective.base.device) / 8)
    fits = max(1, int(allowed / max(1, saved["bytes"])))
    columns = min(chunk or min(COLUMNS, fits), objective.base.size)
    return columns, max(1, min(TOGETHER, fits // columns))


def _forward_over_reverse(objective: ReplicaObjective, points: Tensor, columns: int) -> Tensor:
    size = objective.base.size
    total = points.new_zeros(len(points), size, size)
    for start in range(0, size, columns):
        stop = min(start + columns, size)
        basis = points.new_zeros(stop - start, size)
        basis[torch.arange(stop - start), torch.arange(start, stop)] = 1
        total[:, start:stop] = _derivatives_along(objective, points, basis)
    return total


def _derivatives_along(objective: ReplicaObjective, points: Tensor, directions: Tensor) -> Tensor:
    """The derivatives (K, c, P) of the gradients along directions (c, P), by forward mode."""
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


def _double_backward(objective: ReplicaObjective, points: Tensor, columns: int) -> Tensor:
    size = objective.base.size
    total = points.new_zeros(len(points), size, size)
    for batch, weight in objective.batches:
        with objective.quiet():
            leaf, gradients = objective._graph(points, batch)
            if not gradients.requires_grad:
                continue  # the loss of this batch is linear in every parameter
            for j in range(size):
                row = torch.autograd.grad(
                    gradients[:, j].sum(), leaf, retain_graph=j < size - 1, materialize_grads=True
                )[0]
                total[:, j] += weight * row
    objective.spent += len(points) * (2 * size + 1)
    return total


def _dense(objective: ReplicaObjective, points: Tensor, columns: int) -> Tensor:
    layers = dense_layers(objective.base.model) or ()
    found = _dense_matrices(objective, points, layers)
    if found is None:
        raise RuntimeError("the loss ties samples together on a later batch only")
    units = sum(objective.base.values[layer.weight].shape[0] for layer in layers)
    objective.spent += len(points) * (2 * units + 1)  # a tangent for each unit instead of each parameter
    return found


def _dense_matrices(
    objective: ReplicaObjective, points: Tensor, layers: Sequence[DenseLayer]
) -> Tensor | None:
    total: Tensor | None = None
    loss = objective.base._module.criterion
    for batch, weight in objective.batches:
        x, y = split(batch)
        own = objective.own_targets
        with objective.quiet():
            found = dense_hessians(
                layers,
                objective.base.unflatten(points),
                x,
                y.transpose(0, 1) if own else y,
                loss.loss if isinstance(loss, Penalized) else objective.base.criterion,
                own_targets=own,
            )
        if found is None:
            return None
        total = weight * found if total is None else total.add_(found, alpha=weight)
    if isinstance(loss, Penalized) and total is not None:
        total.diagonal(dim1=1, dim2=2).add_(loss.weight_decay)
    return total


def _is_dense(objective: ReplicaObjective) -> bool:
    base = objective.base
    layers = dense_layers(base.model)
    separate = not base.is_closure or isinstance(base._module.criterion, Penalized)
    if layers is None or not separate or base.dtype not in (torch.float32, torch.float64):
        return False
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    if list(base.names) != names:
        return False
    for batch in objective.batches.items:
        inputs = tensors_in(batch)
        if not isinstance(batch, tuple | list) or len(inputs) != 2 or inputs[0].ndim != 2:
            return False
    few = objective.subset(torch.arange(1))
    few.batches = Batches((part_of(objective.batches.items[0], 0, 2),), (2,))
    return _dense_matrices(few, few.points, layers) is not None


METHODS: Mapping[str, Callable[[ReplicaObjective, Tensor, int], Tensor]] = {
    "dense": _dense,
    "forward-over-reverse": _forward_over_reverse,
    "double-backward": _double_backward,
}
