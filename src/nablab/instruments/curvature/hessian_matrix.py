"""The exact Hessian of a loss, for networks of up to some ten thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.graphs import free_memory
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.objective import select_parameters
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.differences import ByDifferences, verified
from nablab.instruments.curvature.hessian_methods import (
    COLUMNS,
    Method,
    choose_way,
    hessian_blocks,
)
from nablab.instruments.curvature.matrices import NOT_FINITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray: TypeAlias = npt.NDArray[np.float64]
# This many random vectors take 24 gradients, against some hundreds or thousands for
# the matrix.
PROBES = 8
CHECK = 7  # gradients: two products with one graph and a difference, in `verified`
CHOICE = 6  # gradients: one product by forward mode and one by reverse, in `choose_way`
FURTHER = 64.0  # a second step of the weights, in units of their last digit
KINK = (
    "The point lies on a kink of the loss, to rounding: the last digit of a weight "
    "decides between different Hessians. This is the one on the side that PyTorch "
    "takes."
)
IMPRECISE = (
    "Two computations of the Hessian differ by {error:.1g} of its norm, which rounding "
    "and noise_floor count: the loss is computed in few digits somewhere, or a "
    "derivative is wrong."
)
# Trials take at least this many samples, and a part of many: their matrices tell what
# that of all costs.
FEW_SAMPLES = 8
MAX_BYTES = 4 * 10**9


@dataclass(frozen=True, kw_only=True)
class HessianMatrix(Measurement):
    r"""The result of `hessian_matrix`.

    For `Replicas`, every array has a leading axis K.

    Attributes:
        matrix: float64 (P, P): :math:`(\hat H + \hat H^\top) / 2` of what was computed.
        asymmetry: :math:`\|\hat H - \hat H^\top\|_F / \|\hat H\|_F`: the rounding error
            of the computation as it shows; 0 for a zero matrix, and by method
            ``"dense"``, which computes one half.
        rounding: The same from two computations, as an estimate of :math:`\|\hat H -
            \tilde H\|_F / \|\hat H\|_F`: see `rounding_norm`.
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
        """Plot the entries as colors, by parameter; of replicas, the first."""
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure

        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[0]
        largest = float(np.abs(matrix).max()) or 1.0
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.add_subplot()
        # Linear up to a ten-thousandth of the largest entry: early layers stay visible
        # beside late ones.
        scale = SymLogNorm(linthresh=largest * 1e-4, vmin=-largest, vmax=largest)
        image = axes.imshow(matrix, cmap="PuOr_r", norm=scale, interpolation="nearest")
        ends = np.cumsum(self.sizes)
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="#767676", linewidth=0.3)
            axes.axvline(end - 0.5, color="#767676", linewidth=0.3)
        labeled = [
            place for place, size in enumerate(self.sizes) if size >= 0.03 * ends[-1]
        ]
        axes.set_yticks(
            [ends[i] - self.sizes[i] / 2 - 0.5 for i in labeled],
            [self.names[i] for i in labeled],
        )
        axes.set_xticks([])
        axes.set_xlabel("parameter (columns in the order of the rows)")
        axes.set_ylabel("parameter")
        figure.colorbar(image, ax=axes, label="entry of the Hessian")
        return figure


def _expected(
    size: Size, *, chunk: int | None = None, method: str = "auto", **_: Any
) -> Expected:
    chunks = -(-size.parameters // (chunk or COLUMNS))
    columns = 2 * size.parameters + chunks
    gradients = columns + CHECK + CHOICE * (method == "auto") + 3 * PROBES
    return Expected(gradients=gradients, numbers=2.0 * size.parameters**2)


def on_few_samples(call: Call) -> Trials:
    """Return trial calls with an eighth and a fourth of the samples.

    Of few samples, the trial is the call itself.
    """
    total = sum(call.sets.samples())
    few = max(FEW_SAMPLES, total // FEW_SAMPLES)
    counts = (few, 2 * few) if total >= 4 * few else (total,)
    trials = tuple(Trial((count,), samples=count) for count in counts)
    return Trials((total,), trials, bytes_until=(total,))


@instrument(expected=_expected, rehearse=by_trials(on_few_samples))
def hessian_matrix(
    model: nn.Module | Replicas,
    loss: Loss,
    data: Any,
    *,
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype = torch.float64,
    batch_size: int | None = None,
    per_replica_targets: bool = False,
    method: Method = "auto",
    chunk: int | None = None,
    max_bytes: float | None = None,
    check: bool = True,
) -> HessianMatrix:
    r"""Compute the exact Hessian of the mean loss over all data, to rounding error.

    Columns of :math:`H = \nabla^2 f(\theta)` are directional derivatives of the
    gradient, :math:`H e_j = \frac{d}{dt} \nabla f(\theta + t e_j)`, by forward mode
    over reverse mode (Griewank and Walther 2008, section 3.4), a chunk of columns at
    once. A column costs about two gradients.

    Args:
        model: A module, or `Replicas` of one architecture.
        loss: See `Objective`.
        data: See `Objective`.
        parameters: Names or glob patterns: a diagonal block of the Hessian.
        dtype: The dtype to compute in.
        batch_size: Cut batches to bound the memory.
        per_replica_targets: See `ReplicaObjective`.
        method: ``"auto"`` is ``"dense"`` (see `dense_hessian`) for dense networks
            measured whole, else ``"forward-over-reverse"``, or where an operation of
            the model has no forward-mode derivative ``"double-backward"``, a pass per
            row; or where the second derivative is missing or wrong
            ``"finite-difference"``, central differences of the gradient. `notes` says
            so.
        chunk: Columns at once; by default 64, or fewer if they would need too much
            memory.
        max_bytes: The most that the matrices may take; by default 4 GB, or half of the
            free memory.
        check: See `Objective` and `verified`.

    Raises:
        UsageError: The matrix would not fit; the message says what to use instead. The
            loss has no finite second derivative, or a gradient that is not its
            derivative.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> result = hessian_matrix(model, "mse", (torch.eye(2), torch.ones(2, 1)))
    >>> result.matrix
    array([[1., 0.],
           [0., 1.]])
    """
    check_fits(model, parameters, dtype, max_bytes)
    objective = ReplicaObjective(
        model,
        loss,
        data,
        parameters=parameters,
        dtype=dtype,
        batch_size=batch_size,
        per_replica_targets=per_replica_targets,
        check=check,
    )
    objective = verified(objective, model, loss, parameters=parameters, check=check)
    way = choose_way(objective, method)
    matrices = objective.points.new_empty(
        len(objective), objective.base.size, objective.base.size
    )
    errors = objective.points.new_empty(2, len(objective))
    for part, found in hessian_blocks(objective, way, chunk=chunk):
        require_finite(found, part)
        matrices[part], errors[0, part] = symmetrized(found)
        errors[1, part] = rounding_norm(objective, part, matrices[part])
    errors = relative(errors, matrices.flatten(1).norm(dim=1))
    notes = objective.notes + way.notes + precision_notes(errors[0], errors[1])
    ratios = errors.cpu().double().numpy()
    arrays = matrices.cpu().double().numpy()
    return HessianMatrix(
        matrix=arrays[0] if objective.single else arrays,
        asymmetry=float(ratios[0, 0]) if objective.single else ratios[0],
        rounding=float(ratios[1, 0]) if objective.single else ratios[1],
        names=objective.base.names,
        sizes=tuple(shape.numel() for shape in objective.base.shapes),
        method=way.method,
        gradients=objective.spent,
        notes=notes,
    )


def require_finite(matrices: Tensor, numbers: Tensor) -> None:
    """Refuse Hessians (k, P, P) of replicas (k,) that hold NaN or infinities.

    Raises:
        UsageError: As the summary says.
    """
    # A sum is finite only if its terms are, and is ten times as fast as a look at each.
    if bool(matrices.flatten(1).sum(dim=1).isfinite().all()):
        return
    finite = matrices.isfinite().flatten(1).all(dim=1).cpu()
    if not bool(finite.all()):
        bad = int((~matrices.isfinite()).sum())
        raise UsageError(
            NOT_FINITE.format(
                what=f"The Hessian of replica {int(numbers[~finite][0])}", bad=bad
            )
        )


def symmetrized(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return symmetric parts (k, P, P) and the norms (k,) of ``H - H.T``.

    The norms are Frobenius'.
    """
    parts, differences = torch.empty_like(matrices), matrices.new_empty(len(matrices))
    # One matrix after the other stays in the cache: half the time of all at once.
    for place, matrix in enumerate(matrices):
        transposed = matrix.mT.contiguous()
        difference = (matrix - transposed).reshape(1, -1)
        differences[place] = difference.norm(dim=1)[0]
        torch.add(matrix, transposed, out=parts[place]).div_(2)
    return parts, differences


def rounding_norm(
    objective: ReplicaObjective, numbers: Tensor, matrices: Tensor, *, seed: int = 0
) -> Tensor:
    r"""Estimate rounding errors (k,) of Hessians, :math:`\|\hat H - \tilde H\|_F`.

    :math:`\tilde H` are the Hessians as double backward passes give them with every
    weight moved by its last digit, up or down by chance: the same loss to rounding,
    whatever it is, with all rounding errors redrawn. For a standard normal vector v,
    :math:`E\|(\hat H - \tilde H) v\|^2 = \|\hat H - \tilde H\|_F^2`; the mean over
    `PROBES` vectors has a relative standard error of about 1/sqrt(2 PROBES) for a
    difference of low rank, and less for one that is noise. Beside rounding, it shows
    where two methods of differentiation contradict each other.

    Where the last digit decides on which side of a kink the point lies (an activation's
    input that is 0 to rounding, but not by zero weights), the Hessian jumps. Weights
    then stay where they are, and a note says so.

    Args:
        objective: The networks.
        numbers: Which of them, (k,).
        matrices: Their Hessians (k, P, P) at their own parameters.
        seed: Of the random vectors.
    """
    part = objective.subset(numbers)
    if isinstance(part, ByDifferences):
        part.stretch = 2.0  # another step, so that its error shows
    probes = _probes(part, seed)
    epsilon = torch.finfo(matrices.dtype).eps
    found = _distances(part, matrices, probes, epsilon)
    suspect = found > epsilon**0.5 * matrices.flatten(1).norm(dim=1)
    if bool(suspect.any()):
        # What a kink adds does not grow with the step of the weights, and is gone
        # without a step.
        further = _distances(part, matrices, probes, FURTHER * epsilon)
        still = _distances(part, matrices, probes, 0.0)
        kinked = suspect & (further < FURTHER**0.5 * found) & (still < found / FURTHER)
        found = torch.where(kinked, still, found)
        if bool(kinked.any()) and KINK not in objective.notes:
            objective.notes += (KINK,)
    objective.spent += part.spent
    return found


def _probes(part: ReplicaObjective, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw random vectors (P,) with random signs (P,) each."""
    generator = torch.Generator().manual_seed(seed)
    size, like = part.base.size, part.points
    return [
        (
            torch.randn(size, generator=generator, dtype=torch.float64).to(like),
            (2 * torch.randint(0, 2, (size,), generator=generator) - 1).to(like),
        )
        for _ in range(PROBES)
    ]


def _distances(
    part: ReplicaObjective,
    matrices: Tensor,
    probes: Sequence[tuple[Tensor, Tensor]],
    step: float,
) -> Tensor:
    """Return distances (k,) to products with weights moved by ``step``.

    The root mean square over probes; the step is a share of each weight.
    """
    total = matrices.new_zeros(len(matrices))
    for vector, signs in probes:
        # The vectors are the same for each, so that none depends on the others.
        vectors = vector.expand_as(part.points)
        # Three times the vector has another mantissa, so that products round otherwise
        # where points do not move.
        product = part.products(part.points * (1 + step * signs), 3 * vectors) / 3
        difference = product - (matrices @ vectors[..., None])[..., 0]
        total += difference.square().sum(dim=1) / len(probes)
    return total.sqrt()


def precision_notes(asymmetry: Tensor, rounding: Tensor) -> tuple[str, ...]:
    """Note Hessians whose relative error (k,) is above half of the digits."""
    worst = float(torch.maximum(asymmetry, rounding).max())
    return (
        (IMPRECISE.format(error=worst),)
        if worst > torch.finfo(rounding.dtype).eps ** 0.5
        else ()
    )


def relative(norms: Tensor, wholes: Tensor) -> Tensor:
    """Return norms as shares of other norms; 0 where both are 0."""
    return torch.where(
        wholes > 0, norms / wholes.clamp_min(torch.finfo(wholes.dtype).tiny), norms
    )


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
        held: How many are held at once; by default one per replica. One more is needed
            to symmetrize.
    """
    if not isinstance(model, nn.Module | Replicas):
        return  # refused with its own message when the objective is made
    module = model if isinstance(model, nn.Module) else model.module
    own = dict(module.named_parameters())
    chosen = [own[name] for name in select_parameters(module, parameters)]
    size = sum(parameter.numel() for parameter in chosen)
    replicas = 1 if isinstance(model, nn.Module) else len(model)
    count = replicas if held is None else held
    needed = (count + 1) * size**2 * dtype.itemsize
    allowed = (
        max_bytes
        if max_bytes is not None
        else min(MAX_BYTES, free_memory(chosen[0].device) / 2)
    )
    if needed > allowed:
        networks = f"{count} networks of " if count > 1 else ""
        raise UsageError(
            f"The Hessian of {networks}{size:,} parameters takes {_gigabytes(needed)} "
            f"(with one copy to symmetrize it); {_gigabytes(allowed)} are allowed. Use "
            "hessian_eigenvalues, hessian_trace or spectral_density, which never form "
            "it, choose fewer parameters= such as one layer's, or give a larger "
            "max_bytes=."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
