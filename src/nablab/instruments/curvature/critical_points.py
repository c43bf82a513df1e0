"""Find points where the gradient is zero, of any kind: minima, saddles and maxima."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.graphs import free_memory
from nablab.instruments.base.losses import Loss
from nablab.instruments.base.measurement import (
    Expected,
    Measurement,
    Size,
    instrument,
    plain,
)
from nablab.instruments.base.objective import select_parameters
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.critical_methods import (
    METHODS,
    Search,
    gradient_norm_descent,
    spectral_norms,
)
from nablab.instruments.curvature.differences import verified
from nablab.instruments.curvature.hessian_matrix import (
    MAX_BYTES,
    FloatArray,
    check_fits,
)
from nablab.instruments.curvature.inertia import BoolArray, IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal[
    "auto",
    "newton-minres",
    "levenberg-marquardt",
    "gradient-norm",
    "saddle-free-newton",
]

# Above, an eigendecomposition per step takes longer than MINRES.
DENSE_PARAMETERS = 2_000
AT_MOST = (
    "At most: a search ends as soon as it gets there, or gets no further. Later "
    "iterations may take more products each than the first ones."
)
FLAT = 1e-3  # at most, where no step helps: gradient-flat
REACHED = "gradient below tolerance"
USED_UP = "iterations used up, at ||Hg|| / (||H|| ||g||) = {flatness:.1e}"
DIVERGED = "diverged: the loss or its gradient at the start is not finite"
GRADIENT_FLAT = (
    "gradient-flat: ||Hg|| / (||H|| ||g||) = {flatness:.1e}: a local minimum of ||g|| "
    "that is not a critical point"
)
STALLED = (
    "stalled: no step lowers ||g|| further, though ||Hg|| / (||H|| ||g||) = "
    "{flatness:.1e}: a kink of the loss, a very narrow valley, or the limit of the "
    "precision"
)


@dataclass(frozen=True, kw_only=True)
class CriticalPoint(Measurement):
    r"""The result of `find_critical_point`.

    For `Replicas`, numbers are arrays (K,) and arrays have a leading axis K.

    Attributes:
        reached: Whether the gradient's norm at `point` is at most the tolerance. Only
            then is it critical.
        reason: Why the search ended there; for replicas, one each.
        point: float64 (P,), the chosen parameters at the end.
        loss: The loss there.
        loss_before: The loss at the start.
        gradient_norm: :math:`\|g\|` there, computed again.
        gradient_norm_before: :math:`\|g\|` at the start.
        flatness: :math:`\|Hg\| / (\|H\|_2 \|g\|)` where the search ended without a
            critical point, else NaN.
        distance: Euclidean distance from the start.
        iterations: Iterations of all methods together.
        history: float64 (iterations + 1,): :math:`\|g\|` from the start; for replicas
            (T + 1, K), NaN after a replica's end.
        method: The method that followed L-BFGS.
        tolerance: The tolerance.
        replicas: The networks at the end, in the dtype of the measurement: in float32
            the rounding of the weights alone would move the gradient away from zero.
            Give it to `inertia`.
    """

    reached: bool | BoolArray
    reason: str | tuple[str, ...]
    point: FloatArray
    loss: float | FloatArray
    loss_before: float | FloatArray
    gradient_norm: float | FloatArray
    gradient_norm_before: float | FloatArray
    flatness: float | FloatArray
    distance: float | FloatArray
    iterations: int | IntArray
    history: FloatArray
    method: str
    tolerance: float
    replicas: Replicas = field(repr=False)

    def network(self, replica: int = 0) -> nn.Module:
        """Return a new module at the end of the search, in the measuring dtype."""
        return self.replicas.network(replica)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types without the networks.

        See `Measurement.to_dict`.
        """
        names = [
            part.name for part in dataclasses.fields(self) if part.name != "replicas"
        ]
        return {name: plain(getattr(self, name)) for name in names}

    def plot(self) -> Figure:
        """Plot the gradient's norm against iterations."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        curves = self.history.reshape(len(self.history), -1)
        reached = np.atleast_1d(self.reached)
        for chosen, color, line, label in (
            (reached, "#0072b2", "-", "critical point reached"),
            (~reached, "#d55e00", "--", "ended elsewhere"),
        ):
            for place, replica in enumerate(np.flatnonzero(chosen)):
                text = f"{chosen.sum()} {label}" if place == 0 else None
                axes.plot(
                    curves[:, replica],
                    line,
                    color=color,
                    linewidth=0.9,
                    alpha=0.8,
                    label=text,
                )
        axes.axhline(
            self.tolerance,
            color="black",
            linestyle=":",
            linewidth=0.9,
            label="tolerance",
        )
        axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("norm of the gradient")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False)
        return figure


def _expected(
    size: Size,
    *,
    method: str = "auto",
    max_iterations: int = 200,
    lbfgs_iterations: int = 100,
    **_: Any,
) -> Expected:
    dense = method in ("levenberg-marquardt", "saddle-free-newton") or (
        method == "auto" and size.parameters <= DENSE_PARAMETERS
    )
    step = (
        2.0 * size.parameters + 40 if dense else 3.0 * min(300, 2 * size.parameters) + 6
    )
    if method == "gradient-norm":
        step = 4.0
    numbers = 4.0 * size.parameters**2 if dense else 50.0 * size.parameters
    return Expected(
        gradients=4.0 * lbfgs_iterations + step * max_iterations, numbers=numbers
    )


def _trials(call: Call) -> Trials:
    """Return trials of few iterations, of L-BFGS and of what follows it."""
    names = "method", "tolerance", "max_iterations", "lbfgs_iterations"
    _check_options(*(call.options[name] for name in names))
    few = [(2, 0), (6, 0), (2, 2)]  # iterations of L-BFGS and of the method behind it
    trials = [
        Trial(
            own,
            {"lbfgs_iterations": own[0], "max_iterations": own[1], "tolerance": 1e-300},
        )
        for own in few
    ]
    wanted = call.options["lbfgs_iterations"], call.options["max_iterations"]
    return Trials(wanted, tuple(trials), notes=(AT_MOST,))


@instrument(expected=_expected, rehearse=by_trials(_trials))
def find_critical_point(
    model: nn.Module | Replicas,
    loss: Loss,
    data: Any,
    *,
    seed: int = 0,
    parameters: str | Sequence[str] = "*",
    dtype: torch.dtype = torch.float64,
    batch_size: int | None = None,
    per_replica_targets: bool = False,
    method: Method = "auto",
    tolerance: float = 1e-8,
    max_iterations: int = 200,
    lbfgs_iterations: int = 100,
    max_bytes: float | None = None,
    check: bool = True,
) -> CriticalPoint:
    r"""Move networks to a point where the gradient of the loss is zero.

    First L-BFGS minimizes :math:`\frac12 \|g\|^2`, whose gradient :math:`Hg` is exact;
    then Newton's method or Levenberg-Marquardt solve :math:`g = 0`. Every step lowers
    :math:`\|g\|`, not the loss: the point found lies near the start and is of any kind,
    which `inertia` tells. A search that ends elsewhere says so: a local minimum of
    :math:`\|g\|` where :math:`Hg = 0` but :math:`g \ne 0` is common (Frye et al. 2021),
    and is where a network in a long valley of the loss ends. ``"saddle-free-newton"``
    goes down such valleys and finds minima. Some losses are lowest at infinite weights:
    the gradient then falls below any tolerance far out, which a large
    `CriticalPoint.distance` shows.

    Replicas are moved together and leave when they are done; one that diverged leaves
    the others untouched.

    Args:
        model: A module, or `Replicas` of one architecture; not changed.
        loss: See `Objective`.
        data: See `Objective`.
        seed: Of the power method that estimates :math:`\|H\|` for the reason.
        parameters: The parameters to move; the gradient is theirs.
        dtype: The dtype to compute in.
        batch_size: Cut batches to bound the memory.
        per_replica_targets: See `ReplicaObjective`.
        method: What follows L-BFGS. ``"levenberg-marquardt"`` takes the exact Hessian
            in every iteration; ``"newton-minres"`` only products with it;
            ``"gradient-norm"`` goes on with L-BFGS; ``"auto"`` is the first for up to
            2,000 parameters, else the second. ``"saddle-free-newton"`` uses the exact
            Hessian to lower the loss, not :math:`\|g\|`, and no L-BFGS before.
        tolerance: The gradient's norm to reach.
        max_iterations: Iterations of the method.
        lbfgs_iterations: Iterations of L-BFGS before it.
        max_bytes: See `hessian_matrix`; for Levenberg-Marquardt.
        check: See `Objective` and `verified`.

    Raises:
        UsageError: An option is out of range, the Hessian would not fit, or the
            gradient is not the derivative of the loss.

    >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    >>> found = find_critical_point(nn.Linear(1, 1), "mse", (x, 3 * x + 1))
    >>> found.reached, found.point.round(6)
    (True, array([3., 1.]))
    """
    _check_options(method, tolerance, max_iterations, lbfgs_iterations)
    chosen = _chosen(model, parameters, method, dtype, max_bytes)
    if chosen in ("levenberg-marquardt", "saddle-free-newton"):
        check_fits(model, parameters, dtype, max_bytes, held=2)
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
    search = Search.start(objective, tolerance)
    if chosen != "saddle-free-newton":
        gradient_norm_descent(search, lbfgs_iterations)
    search.again()  # where L-BFGS makes no more way, a second-order step may
    METHODS[chosen](search, max_iterations)
    return _result(search, replicas=model, method=chosen, seed=seed)


def _result(
    search: Search, *, replicas: nn.Module | Replicas, method: str, seed: int
) -> CriticalPoint:
    objective = search.objective
    losses, gradients = objective.losses_and_gradients(search.points)
    norms = gradients.norm(dim=1)
    reached = norms <= search.tolerance
    flatness = _flatness(search, gradients, ~reached & norms.isfinite(), seed)
    history = torch.stack(search.history)
    module = replicas.module if isinstance(replicas, Replicas) else replicas
    arrays = {
        "reached": reached,
        "point": search.points,
        "loss": losses,
        "loss_before": objective.losses(),
        "gradient_norm": norms,
        "gradient_norm_before": history[0],
        "flatness": flatness,
        "distance": (search.points - objective.points).norm(dim=1),
        "iterations": (~history[1:].isnan()).sum(0),
        "history": history.T,
    }
    fields: dict[str, Any] = {name: _array(tensor) for name, tensor in arrays.items()}
    reasons = tuple(
        _reason(bool(done), bool(stuck), float(norm), float(flat))
        for done, stuck, norm, flat in zip(
            reached, search.stalled, norms, flatness, strict=True
        )
    )
    if objective.single:
        fields = {
            name: value[0].item() if value.ndim == 1 else value[0]
            for name, value in fields.items()
        }
    else:
        fields["history"] = fields["history"].T
    return CriticalPoint(
        **fields,
        reason=reasons[0] if objective.single else reasons,
        method=method,
        tolerance=search.tolerance,
        replicas=Replicas(module, objective.tensors(search.points)),
        gradients=objective.spent,
        notes=objective.notes + (search.chosen.notes if search.chosen else ()),
    )


def _reason(reached: bool, stalled: bool, norm: float, flatness: float) -> str:
    if reached:
        return REACHED
    if not np.isfinite(norm):
        return DIVERGED
    if not stalled:
        return USED_UP.format(flatness=flatness)
    ended = GRADIENT_FLAT if flatness <= FLAT else STALLED
    return ended.format(flatness=flatness)


def _flatness(search: Search, gradients: Tensor, where: Tensor, seed: int) -> Tensor:
    flat = torch.full_like(gradients[:, 0], torch.nan)
    numbers = where.nonzero().flatten()
    if len(numbers):
        part, points = search.objective.subset(numbers), search.points[numbers]
        unit = gradients[numbers] / gradients[numbers].norm(dim=1, keepdim=True)
        flat[numbers] = part.products(points, unit).norm(dim=1) / spectral_norms(
            part, points, seed
        )
        search.pay(part)
    return flat


def _array(tensor: Tensor) -> Any:
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float64) if tensor.is_floating_point() else array


def _chosen(
    model: nn.Module | Replicas,
    parameters: str | Sequence[str],
    method: str,
    dtype: torch.dtype,
    max_bytes: float | None,
) -> str:
    if method != "auto" or not isinstance(model, nn.Module | Replicas):
        return "levenberg-marquardt" if method == "auto" else method
    module = model if isinstance(model, nn.Module) else model.module
    own = dict(module.named_parameters())
    chosen = [own[name] for name in select_parameters(module, parameters)]
    size = sum(parameter.numel() for parameter in chosen)
    allowed = (
        max_bytes
        if max_bytes is not None
        else min(MAX_BYTES, free_memory(chosen[0].device) / 2)
    )
    fits = 3 * size**2 * dtype.itemsize <= allowed
    return (
        "levenberg-marquardt" if size <= DENSE_PARAMETERS and fits else "newton-minres"
    )


def _check_options(
    method: str, tolerance: float, max_iterations: int, lbfgs_iterations: int
) -> None:
    if method not in ("auto", *METHODS):
        raise unknown("method", method, ["auto", *METHODS])
    if not tolerance > 0:
        raise UsageError(
            f"tolerance={tolerance} is impossible: no gradient in floating point is "
            "exactly zero. Give a positive norm such as 1e-8."
        )
    for name, value in (
        ("max_iterations", max_iterations),
        ("lbfgs_iterations", lbfgs_iterations),
    ):
        if value < 0:
            raise UsageError(f"{name}={value} is impossible: it must be at least 0.")
