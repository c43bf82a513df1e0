"""How many eigenvalues of the exact Hessian are positive, zero and negative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import Expected, Measurement, Size, instrument
from nablab.instruments.base.rehearsals import by_trials
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.differences import verified
from nablab.instruments.curvature.hessian_matrix import (
    CHECK,
    CHOICE,
    PROBES,
    FloatArray,
    check_fits,
    on_few_samples,
    precision_notes,
    relative,
    require_finite,
    rounding_norm,
    symmetrized,
)
from nablab.instruments.curvature.hessian_methods import (
    COLUMNS,
    Method,
    choose_way,
    hessian_blocks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

RADII = (1e-3, 1e-2, 1e-1)
NEIGHBORS = 200  # a share of one half is known to +-.07
POSITIVE, NEGATIVE, ZERO = "#0072b2", "#d55e00", "#767676"
LARGEST_RESIDUAL = 1.0  # ||Hg|| / (||H|| ||g||) cannot exceed it


@dataclass(frozen=True, kw_only=True)
class Inertia(Measurement):
    r"""The result of `inertia`.

    For `Replicas`, numbers are arrays (K,) and arrays have a leading axis K.

    Attributes:
        positive: Eigenvalues above the noise floor.
        zero: Eigenvalues that rounding could have moved to either side of zero.
        negative: Eigenvalues below minus the noise floor.
        uncertain: Eigenvalues between a tenth of the noise floor and ten times it, on
            either side: those whose class another noise factor could change.
        minimal_ratio: positive / P.
        minimal_ratio_nonzero: positive / (positive + negative); NaN if both are zero.
        eigenvalues: float64 (P,), ascending.
        noise_floor: See `inertia`.
        noise_factor: c in the noise floor.
        asymmetry: :math:`\|\hat H - \hat H^\top\|_F`.
        rounding: The estimate of `rounding_norm`.
        loss: The mean loss.
        gradient_norm: :math:`\|g\|`.
        flatness: :math:`\|Hg\| / (\|H\|_2 \|g\|)`, between 0 and 1; NaN if g or H is
            zero.
        radii: (R,), distances of the neighbors.
        neighbors: How many at each distance.
        neighbor_ratio: float64 (R,), the share of them with a higher loss.
        neighbor_interval: float64 (R, 2), Wilson's 95 % interval of it.
    """

    positive: int | IntArray
    zero: int | IntArray
    negative: int | IntArray
    uncertain: int | IntArray
    minimal_ratio: float | FloatArray
    minimal_ratio_nonzero: float | FloatArray
    eigenvalues: FloatArray
    noise_floor: float | FloatArray
    noise_factor: float
    asymmetry: float | FloatArray
    rounding: float | FloatArray
    loss: float | FloatArray
    gradient_norm: float | FloatArray
    flatness: float | FloatArray
    radii: FloatArray
    neighbors: int
    neighbor_ratio: FloatArray
    neighbor_interval: FloatArray

    @property
    def triple(self) -> tuple[int, int, int] | IntArray:
        """(positive, zero, negative); for replicas, int64 (K, 3)."""
        if isinstance(self.positive, int):
            return int(self.positive), int(self.zero), int(self.negative)
        return np.stack([self.positive, self.zero, self.negative], axis=1).astype(
            np.int64
        )

    def is_critical(self, gradient_tolerance: float = 1e-8) -> bool | BoolArray:
        """Return whether the gradient is zero to the tolerance.

        A small `flatness` is not a substitute: it says that the gradient lies where the
        Hessian is flat, which makes a local minimum of the gradient's norm, seldom one
        that is zero (Frye et al. 2021).
        """
        verdict = np.asarray(self.gradient_norm) <= gradient_tolerance
        return bool(verdict) if verdict.ndim == 0 else verdict

    def plot(self) -> Figure:
        """Plot the spectrum with its noise floor.

        For replicas, plot the minimal ratio against the loss.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        if self.eigenvalues.ndim == 1:
            self._draw_spectrum(axes)
        else:
            self._draw_ratios(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False)
        return figure

    def _draw_spectrum(self, axes: Axes) -> None:
        values, floor = self.eigenvalues, float(self.noise_floor)
        groups = (
            (values > floor, POSITIVE, "o", f"{self.positive} positive"),
            (np.abs(values) <= floor, ZERO, "x", f"{self.zero} zero"),
            (values < -floor, NEGATIVE, "v", f"{self.negative} negative"),
        )
        sizes = np.abs(values)
        # What lies far below the floor says nothing: it is drawn at the lower end, as
        # exact zeros are.
        least = floor * 1e-6 if floor > 0 else 1.0
        # Zeros stand to the right of both signs.
        first_zero = max(self.positive, self.negative)
        for chosen, color, marker, label in groups:
            ranks = np.arange(1, chosen.sum() + 1) + (
                first_zero if marker == "x" else 0
            )
            heights = np.maximum(np.sort(sizes[chosen])[::-1], least)
            axes.plot(ranks, heights, marker, color=color, markersize=2.5, label=label)
        if floor > 0:
            axes.axhline(
                floor,
                color="black",
                linestyle="--",
                linewidth=0.8,
                label=f"noise floor {floor:.1e}",
            )
        axes.set_yscale("log")
        axes.set_xlabel("rank by absolute value among eigenvalues of its sign")
        axes.set_ylabel("absolute value of the Hessian's eigenvalue")

    def _draw_ratios(self, axes: Axes) -> None:
        loss, ratio = np.asarray(self.loss), np.asarray(self.minimal_ratio)
        critical = np.asarray(self.is_critical())
        for chosen, color, marker, label in (
            (critical, POSITIVE, "o", "critical points (gradient norm at most 1e-8)"),
            (~critical, ZERO, "x", "other points"),
        ):
            axes.plot(
                loss[chosen],
                ratio[chosen],
                marker,
                color=color,
                ms=5,
                label=f"{chosen.sum()} {label}",
            )
        if (loss > 0).all():
            axes.set_xscale("log")
        axes.set_ylim(max(0.0, ratio.min() - 0.05), 1.02)
        axes.set_xlabel("loss")
        axes.set_ylabel("minimal ratio (positive eigenvalues / parameters)")


def _expected(
    size: Size,
    *,
    chunk: int | None = None,
    neighbors: int = NEIGHBORS,
    radii: Sequence[float] = RADII,
    method: str = "auto",
    **_: Any,
) -> Expected:
    columns = 2 * size.parameters + -(-size.parameters // (chunk or COLUMNS))
    around = neighbors * len(radii) / 3
    checks = CHECK + CHOICE * (method == "auto") + 3 * PROBES
    return Expected(
        gradients=columns + checks + 1 + around, numbers=3.0 * size.parameters**2
    )


@instrument(expected=_expected, rehearse=by_trials(on_few_samples))
def inertia(
    model: nn.Module | Replicas,
    loss: Loss,
    data: Any,
    *,
    seed: int = 0,
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype = torch.float64,
    batch_size: int | None = None,
    per_replica_targets: bool = False,
    noise_factor: float = 1.0,
    absolute_floor: float = 0.0,
    neighbors: int = NEIGHBORS,
    radii: Sequence[float] = RADII,
    method: Method = "auto",
    chunk: int | None = None,
    max_bytes: float | None = None,
    check: bool = True,
) -> Inertia:
    r"""Count the positive, zero and negative eigenvalues of the exact Hessian.

    An eigenvalue is zero if its absolute value is at most the noise floor

    .. math:: c \, \varepsilon \, P \max_i |\lambda_i| + \|\hat H - \hat H^\top\|_F +
    \|\hat H - \tilde H\|_F

    By Weyl's inequality an error E of the matrix moves no eigenvalue by more than
    :math:`\|E\|_2 \le \|E\|_F`. The first term bounds the error of the eigenvalue
    solver, whose backward error is a modest function of P times :math:`\varepsilon
    \|H\|_2` (LAPACK Users' Guide, section 4.7); P itself, c = 1, is the convention of
    matrix ranks in NumPy and MATLAB. The other terms are the rounding of the Hessian
    itself, measured: its asymmetry, and its distance to the same Hessian computed in
    another way with every weight moved by its last digit (`rounding_norm`). Without a
    floor, half of the zero eigenvalues count as positive.

    The certificate of the point is the gradient's norm; `Inertia.flatness` tells
    gradient-flat points, where descent on :math:`\|g\|^2` stops without a critical
    point (Frye et al., "Critical point-finding methods reveal gradient-flat regions of
    deep network losses", Neural Computation 2021).

    The definition by sampling stands beside it: the share of random neighbors, uniform
    on spheres about the point, with a higher loss. It answers another question: the
    loss of a neighbor is ruled by the trace of the Hessian, and a few large positive
    eigenvalues hide many small negative ones. Where the gradient is not zero, it tends
    to one half as the radius shrinks.

    The floor is that of the point as it is given. Where the gradient is not quite zero,
    an eigenvalue that is zero at the critical point nearby may be as large as the
    distance to it times the third derivatives; ``absolute_floor`` takes such
    eigenvalues out.

    Units without influence and piecewise linear activations (ReLU) have eigenvalues
    that are exactly zero; at a kink the second derivative is that of the side which
    PyTorch takes.

    Args:
        model: A module, or `Replicas` of one architecture.
        loss: See `Objective`.
        data: See `Objective`.
        seed: Of the neighbors and of the vectors of `rounding_norm`.
        parameters: Names or glob patterns: the inertia of a diagonal block.
        dtype: The dtype to compute in.
        batch_size: Cut batches to bound the memory.
        per_replica_targets: See `ReplicaObjective`.
        noise_factor: c.
        absolute_floor: Added to the noise floor.
        neighbors: Neighbors at each radius; 0 leaves the sampling out.
        radii: Euclidean distances of the neighbors.
        method: See `hessian_matrix`.
        chunk: See `hessian_matrix`.
        max_bytes: See `hessian_matrix`; few matrices are held at once.
        check: See `Objective` and `verified`.

    Raises:
        UsageError: An option is out of range, the Hessian would not fit or is not
            finite, or the gradient is not the derivative of the loss.

    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    >>> result = inertia(nn.Linear(2, 1, bias=False), "mse", (x, x[:, :1]))
    >>> result.triple, result.minimal_ratio
    ((1, 1, 0), 0.5)
    """
    _check_options(noise_factor, absolute_floor, neighbors, radii)
    check_fits(model, parameters, dtype, max_bytes, held=1)
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
    losses, gradients = objective.losses_and_gradients()
    found = {
        "eigenvalues": torch.empty_like(objective.points),
        **{
            name: torch.empty_like(losses)
            for name in ("asymmetry", "rounding", "flatness")
        },
    }
    sizes = torch.empty_like(losses)
    for part, raw in hessian_blocks(objective, way, chunk=chunk):
        require_finite(raw, part)
        matrices, found["asymmetry"][part] = symmetrized(raw)
        sizes[part] = matrices.flatten(1).norm(dim=1)
        found["rounding"][part] = rounding_norm(objective, part, matrices, seed=seed)
        found["eigenvalues"][part] = torch.stack(
            in_threads(torch.linalg.eigvalsh, matrices)
        )
        found["flatness"][part] = flatness(
            matrices, gradients[part], found["eigenvalues"][part]
        )
    arrays = {name: tensor.cpu().double().numpy() for name, tensor in found.items()}
    arrays["loss"] = losses.cpu().double().numpy()
    arrays["gradient_norm"] = gradients.norm(dim=1).cpu().double().numpy()
    counts = _counts(
        arrays, noise_factor, absolute_floor, torch.finfo(objective.base.dtype).eps
    )
    errors = relative(torch.stack([found["asymmetry"], found["rounding"]]), sizes)
    notes = objective.notes + way.notes + precision_notes(errors[0], errors[1])
    higher = _higher_neighbors(objective, losses, neighbors, radii, seed)
    fields: dict[str, Any] = {**arrays, **counts, **_shares(higher, neighbors)}
    if objective.single:
        fields = {
            name: value[0].item() if value.ndim == 1 else value[0]
            for name, value in fields.items()
        }
    return Inertia(
        **fields,
        radii=np.asarray(radii, dtype=np.float64),
        neighbors=neighbors,
        noise_factor=noise_factor,
        gradients=objective.spent,
        notes=notes,
    )


def flatness(matrices: Tensor, gradients: Tensor, eigenvalues: Tensor) -> Tensor:
    r"""Return :math:`\|Hg\| / (\|H\|_2 \|g\|)` (k,), NaN for 0 / 0.

    The matrices are (k, P, P), the gradients (k, P).
    """
    # Gradients are scaled first: the square of 1e-200 is zero.
    directions = gradients / gradients.norm(dim=1, keepdim=True)
    products: Tensor = (matrices @ directions[..., None])[..., 0].norm(dim=1)
    return (products / eigenvalues.abs().amax(dim=1)).clamp_max(LARGEST_RESIDUAL)


def in_threads(function: Callable[[Tensor], Any], matrices: Tensor) -> list[Any]:
    """Return ``function(matrix)`` of each (k, P, P), each on one thread.

    Small eigenvalue problems gain nothing from threads inside LAPACK: on two cores,
    eight of 571 rows took 12 ms each in a pool of two, 16 ms on one thread, 24 ms on
    two threads each.
    """
    before = torch.get_num_threads()
    if matrices.is_cuda or before == 1 or len(matrices) == 1:
        return [function(matrix) for matrix in matrices]
    try:
        with ThreadPoolExecutor(
            before, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(function, matrices))
    finally:
        torch.set_num_threads(before)


def wilson_interval(
    higher: npt.NDArray[Any], trials: int, level: float = 0.95
) -> FloatArray:
    """Return Wilson's score interval (..., 2) of a share, from counts (Wilson 1927).

    >>> wilson_interval(np.array(10), 10).round(3)
    array([0.722, 1.   ])
    """
    z = float(norm.ppf((1 + level) / 2))
    share = np.asarray(higher, dtype=np.float64) / trials
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = (
        z
        / (1 + z**2 / trials)
        * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    )
    return np.stack(
        [np.maximum(center - half, 0.0), np.minimum(center + half, 1.0)], axis=-1
    )


def _counts(
    arrays: dict[str, FloatArray], factor: float, least: float, epsilon: float
) -> dict[str, npt.NDArray[Any]]:
    values = arrays["eigenvalues"]
    size = values.shape[1]
    solver = factor * epsilon * size * np.abs(values).max(axis=1)
    floor = least + solver + arrays["asymmetry"] + arrays["rounding"]
    positive = (values > floor[:, None]).sum(axis=1)
    negative = (values < -floor[:, None]).sum(axis=1)
    near = (np.abs(values) > floor[:, None] / 10) & (
        np.abs(values) < floor[:, None] * 10
    )
    with np.errstate(invalid="ignore"):
        nonzero = positive / (positive + negative)
    return {
        "noise_floor": floor,
        "positive": positive,
        "negative": negative,
        "zero": size - positive - negative,
        "uncertain": near.sum(axis=1),
        "minimal_ratio": positive / size,
        "minimal_ratio_nonzero": nonzero,
    }


def _higher_neighbors(
    objective: ReplicaObjective,
    losses: Tensor,
    neighbors: int,
    radii: Sequence[float],
    seed: int,
) -> IntArray:
    """Count each replica's neighbors with a higher loss, (K, R).

    R is the number of radii.
    """
    generator = torch.Generator().manual_seed(seed)
    higher = torch.zeros(len(objective), len(radii), dtype=torch.int64)
    for _ in range(neighbors):
        # The same directions for every replica, so that none depends on which others
        # are measured.
        direction = torch.randn(
            objective.base.size, generator=generator, dtype=torch.float64
        )
        step = (direction / direction.norm()).to(objective.points)
        for place, radius in enumerate(radii):
            higher[:, place] += (
                objective.losses(objective.points + radius * step) > losses
            ).cpu()
    return higher.numpy()


def _shares(higher: IntArray, neighbors: int) -> dict[str, FloatArray]:
    if neighbors == 0:
        return {
            "neighbor_ratio": np.full(higher.shape, np.nan),
            "neighbor_interval": np.full((*higher.shape, 2), np.nan),
        }
    return {
        "neighbor_ratio": higher / neighbors,
        "neighbor_interval": wilson_interval(higher, neighbors),
    }


def _check_options(
    noise_factor: float, absolute_floor: float, neighbors: int, radii: Sequence[float]
) -> None:
    if not noise_factor >= 0:
        raise UsageError(
            f"noise_factor={noise_factor} is impossible: it multiplies the rounding "
            "error of the eigenvalue solver and must be at least 0; 1 is the "
            "convention of matrix ranks."
        )
    if not absolute_floor >= 0:
        raise UsageError(
            f"absolute_floor={absolute_floor} is impossible: it must be at least 0."
        )
    if neighbors < 0:
        raise UsageError(
            f"neighbors={neighbors} is impossible: give 0 to leave the "
            "sampling out, or more."
        )
    if not all(0 < radius < float("inf") for radius in radii):
        raise UsageError(
            f"radii={tuple(radii)} are impossible: distances must be "
            "positive and finite."
        )
