"""The table of instruments: their calls, and their results against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from nablab import instruments as I
from tests.instruments.battery.case import (
    EITHER,
    REFUSAL,
    VALUE,
    Answer,
    Case,
    Model,
    run,
    split,
)
from tests.instruments.battery.truth import Truth

ERRORS = 4  # standard errors that a random estimate may lie off


@dataclass(frozen=True)
class Row:
    """An instrument of the table.

    Attributes:
        measure: Calls it on a case.
        check: Raises AssertionError unless the result agrees with the truth.
        answer: What it must answer for a row of the table of models that does not say.
    """

    measure: Callable[[Case], Any]
    check: Callable[[Any, Truth, Case], None]
    answer: Callable[[Model], Answer] = lambda row: row.answer


def close(found: Any, right: Any, scale: float, truth: Truth, what: str) -> None:
    """Equal to within the tolerance of the row, times a scale."""
    found, right = (np.asarray(part, dtype=np.float64) for part in (found, right))
    assert found.shape == right.shape, (
        f"{what}: shape {found.shape}, right {right.shape}"
    )
    apart = float(np.abs(found - right).max(initial=0.0))
    allowed = truth.case.row.tolerance * scale + 1e-12
    assert apart <= allowed, (
        f"{what}: off by {apart:.3g} (allowed {allowed:.3g}): {_short(found)}, right "
        f"{_short(right)}"
    )


def near(found: float, right: float, error: float, slack: float, what: str) -> None:
    """Equal to within the standard errors that a random estimate states."""
    allowed = ERRORS * error + slack
    assert abs(found - right) <= allowed, (
        f"{what}: {found:.6g} ± {error:.2g}, right {right:.6g}"
    )


def _short(values: Any) -> str:
    return np.array2string(values.reshape(-1)[:4], precision=6)


def _options(case: Case) -> dict[str, Any]:
    return {} if case.row.dtype is None else {"dtype": case.row.dtype}


def _on(name: str, **options: Any) -> Callable[[Case], Any]:
    def measure(case: Case) -> Any:
        return getattr(I, name)(
            case.model, case.loss, case.data, **options, **_options(case)
        )

    return measure


# Gradients


def _check_gradient_norm(found: Any, truth: Truth, case: Case) -> None:
    size = 1 + abs(truth.value)
    close(found.loss, truth.value, size, truth, "loss")
    close(found.norm, float(truth.slope.norm()), size, truth, "norm")
    parts = dict(zip(truth.names, truth.slope.split(truth.sizes), strict=True))
    assert list(found.parts) == truth.names
    close(
        list(found.parts.values()),
        [float(p.norm()) for p in parts.values()],
        size,
        truth,
        "parts",
    )


def _check_sample_norms(found: Any, truth: Truth, case: Case) -> None:
    _check_gradient_norm(found, truth, case)
    right = truth.sample_norms()
    close(
        _ordered(found.sample_norms, case),
        _ordered(right, case),
        1 + max(right),
        truth,
        "samples' norms",
    )


def _ordered(values: Any, case: Case) -> Any:
    """A loader that shuffles gives its samples in another order every time."""
    return np.sort(values) if isinstance(case.data, DataLoader) else values


def _record(case: Case) -> Any:
    monitor = I.GradientMonitor(case.model)
    monitor.record()
    return monitor.history()


def _check_history(found: Any, truth: Truth, case: Case) -> None:
    """It reads gradients of the user's training step, in the dtype of the weights."""
    right = float(truth.slope.norm())
    rounding = max(torch.finfo(p.dtype).eps for p in case.model.parameters())
    assert abs(found.norms[0] - right) <= 100 * rounding * (1 + right), (
        found.norms,
        right,
    )


def _sensitivity(case: Case) -> Any:
    return I.input_sensitivity(case.model, case.data, **_options(case))


def _check_sensitivity(found: Any, truth: Truth, case: Case) -> None:
    right = truth.input_norms()
    close(
        _ordered(found.norms, case),
        _ordered(right, case),
        1 + max(right),
        truth,
        "norms of Jacobians",
    )


# Curvature


def _dense(kind: str) -> Callable[[Case], Any]:
    def measure(case: Case) -> Any:
        operator = getattr(I, kind)(case.model, case.loss, case.data, **_options(case))
        return (
            (operator @ torch.eye(operator.shape[0], dtype=operator.dtype))
            .double()
            .numpy()
        )

    return measure


def _check_hessian(found: Any, truth: Truth, case: Case) -> None:
    close(found, truth.hessian, 1 + truth.norm, truth, "Hessian")


def _check_gauss_newton(found: Any, truth: Truth, case: Case) -> None:
    right = truth.gauss_newton
    close(found, right, 1 + float(right.abs().max()), truth, "Gauss-Newton matrix")


def _check_matrix(found: Any, truth: Truth, case: Case) -> None:
    assert found.names == tuple(truth.names)
    _check_hessian(found.matrix, truth, case)


def _check_eigenvalues(found: Any, truth: Truth, case: Case) -> None:
    assert found.converged, found.notes
    right = truth.eigenvalues
    slack = case.row.tolerance * (1 + truth.norm)
    ends = [float(right[-1]), float(right[0])]
    for value, residual, end in zip(found.values, found.residuals, ends, strict=True):
        assert abs(value - end) <= residual + slack, (
            f"eigenvalue {value:.6g}, right {end:.6g}"
        )
    if found.others is not None and len(right) > 2:
        low, high = found.others
        assert low - slack <= float(right[1]), (
            f"others from {low:.6g}, right {float(right[1]):.6g}"
        )
        assert high + slack >= float(right[-2]), (
            f"others to {high:.6g}, right {float(right[-2]):.6g}"
        )


def _check_trace(found: Any, truth: Truth, case: Case) -> None:
    slack = case.row.tolerance * (1 + truth.norm) * len(truth.point)
    near(
        found.value, float(truth.hessian.trace()), found.standard_error, slack, "trace"
    )


def _check_diagonal(found: Any, truth: Truth, case: Case) -> None:
    right = truth.hessian.diagonal().numpy()
    slack = case.row.tolerance * (1 + truth.norm)
    assert found.values.shape == right.shape
    errors = found.standard_errors if not found.exact else np.zeros_like(right)
    away = np.abs(found.values - right) - slack
    # Of P entries the farthest may lie farther off than one alone; layers are few.
    assert (away <= (ERRORS + 2) * errors).all(), f"diagonal off by {away.max():.3g}"
    for name, part in zip(
        truth.names, np.split(right, np.cumsum(truth.sizes)[:-1]), strict=True
    ):
        error, room = found.layer_errors[name], slack * max(len(part), 1)
        near(
            found.layers[name],
            float(part.sum()),
            error,
            room,
            f"sum over the diagonal of {name}",
        )


def _check_density(found: Any, truth: Truth, case: Case) -> None:
    right, slack = truth.eigenvalues, case.row.tolerance * (1 + truth.norm)
    held = found.weights > 1e-9
    assert found.nodes[held].min() >= float(right[0]) - slack, (
        "nodes below the spectrum"
    )
    assert found.nodes[held].max() <= float(right[-1]) + slack, (
        "nodes above the spectrum"
    )
    means = (found.weights * found.nodes).sum(axis=1)
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    near(float(means.mean()), float(right.mean()), error, slack, "mean of the density")


def _check_inertia(found: Any, truth: Truth, case: Case) -> None:
    right = truth.eigenvalues.numpy()
    close(np.sort(found.eigenvalues), right, 1 + truth.norm, truth, "eigenvalues")
    doubt = max(case.row.tolerance * (1 + truth.norm), float(found.noise_floor))
    above, below = int((right > doubt).sum()), int((right < -doubt).sum())
    free = len(right) - above - below  # too small for the truth to tell their signs
    assert above <= found.positive <= above + free, (
        f"positive {found.positive}, right {above} to {above + free}"
    )
    assert below <= found.negative <= below + free, (
        f"negative {found.negative}, right {below} to {below + free}"
    )


def _check_critical_point(found: Any, truth: Truth, case: Case) -> None:
    point = torch.as_tensor(np.asarray(found.point, dtype=np.float64))
    assert point.shape == truth.point.shape
    size = 1 + abs(truth.value)
    close(found.loss_before, truth.value, size, truth, "loss at the start")
    close(
        found.gradient_norm_before,
        float(truth.slope.norm()),
        size,
        truth,
        "gradient at the start",
    )
    close(found.loss, truth.loss(point), size, truth, "loss at the end")
    close(
        found.gradient_norm,
        float(truth.gradient(point).norm()),
        size,
        truth,
        "gradient at the end",
    )


# Neighborhoods


def _bounds(truth: Truth, box: torch.Tensor) -> tuple[float, float]:
    """The least and the most that the loss rises in a small box, to second order."""
    slope, bend = truth.slope, truth.hessian
    corner = truth.loss(truth.point + box * slope.sign()) - truth.value
    return corner, float(box @ slope.abs() + box @ bend.abs() @ box / 2)


def _check_worst(
    box: Callable[[Truth, float], torch.Tensor],
) -> Callable[[Any, Truth, Case], None]:
    def check(found: Any, truth: Truth, case: Case) -> None:
        slack = case.row.tolerance * (1 + abs(truth.value))
        close(found.loss, truth.value, 1 + abs(truth.value), truth, "loss")
        least, most = _bounds(truth, box(truth, found.radius))
        rise = found.largest - found.loss
        assert 0.98 * least - slack <= rise <= 1.01 * most + slack, (
            f"rise {rise:.4g}, right {least:.4g} to {most:.4g}"
        )
        stated = 100 * rise / (1 + found.loss) if found.definition == "keskar" else rise
        assert math.isclose(found.sharpness, stated, rel_tol=1e-9, abs_tol=1e-12)

    return check


def _check_average(found: Any, truth: Truth, case: Case) -> None:
    square = found.radius**2
    slack = case.row.tolerance * (1 + abs(truth.value)) + 0.01 * square * float(
        truth.hessian.abs().sum()
    )
    right = square / 2 * float(truth.hessian.trace())
    near(found.sharpness, right, found.standard_error, slack, "average rise")


# Landscapes


def _check_plane(found: Any, truth: Truth, case: Case) -> None:
    directions = torch.as_tensor(np.asarray(found.directions, dtype=np.float64))
    assert directions.shape == (2, len(truth.point))
    for row, column in ((0, 0), (0, 4), (3, 1), found.center):
        moved = (
            truth.point
            + found.alphas[column] * directions[0]
            + found.betas[row] * directions[1]
        )
        right = truth.loss(moved)
        close(
            found.losses[row, column],
            right,
            1 + abs(right),
            truth,
            f"loss at ({row}, {column})",
        )


def _line(case: Case) -> Any:
    return I.interpolate(
        case.model,
        case.other,
        case.loss,
        case.data,
        alphas=[0.25, 0.5],
        **_options(case),
    )


def _check_line(found: Any, truth: Truth, case: Case) -> None:
    losses = next(iter(found.values.values()))["loss"]
    right = [truth.on_line(alpha) for alpha in found.alphas]
    close(losses, right, 1 + max(map(abs, right)), truth, "losses on the line")


def _points(case: Case) -> list[dict[str, torch.Tensor]]:
    ends = [
        {n: p.detach() for n, p in m.named_parameters()}
        for m in (case.model, case.other)
    ]
    corner = {
        name: tensor * torch.arange(tensor.numel()).reshape(tensor.shape)
        for name, tensor in ends[0].items()
    }
    return [*ends, corner]


def _check_path(found: Any, truth: Truth, case: Case) -> None:
    flat = [
        torch.cat([t.reshape(-1).double() for t in point.values()])
        for point in _points(case)
    ]
    path = torch.stack(flat)
    values = torch.linalg.svdvals(path - path.mean(0)).square()[:2]
    close(
        found.explained_variance_ratio,
        values / values.sum(),
        1.0,
        truth,
        "explained variance",
    )


def _check_matching(found: Any, truth: Truth, case: Case) -> None:
    assert found.distance_after <= found.distance_before * (1 + 1e-12)
    matched, other = found.module.double().eval(), truth.other.eval()
    for batch in truth.batches:
        inputs = split(batch)[0]
        with torch.no_grad():
            close(
                run(matched, inputs),
                run(other, inputs),
                1.0,
                truth,
                "outputs of the matched network",
            )


def _check_cost(found: Any, truth: Truth, case: Case) -> None:
    assert found.gradients > 0
    assert found.seconds > 0
    assert found.bytes >= 8 * len(truth.point)


def _needs_outputs(row: Model) -> Answer:
    from nablab.instruments import Closure

    return REFUSAL if isinstance(row.loss, Closure) else row.answer


def _needs_samples(row: Model) -> Answer:
    return EITHER if row.sample is None and row.answer is VALUE else row.answer


def _needs_inputs(row: Model) -> Answer:
    return REFUSAL if row.token_inputs else row.answer


def _needs_layers(row: Model) -> Answer:
    """Expect a request for a specification of models but `nn.Sequential`."""
    return row.answer if row.matchable else REFUSAL


INSTRUMENTS: dict[str, Row] = {
    "gradient_norm": Row(_on("gradient_norm"), _check_gradient_norm),
    "gradient_norm per sample": Row(
        _on("gradient_norm", per_sample=True), _check_sample_norms, _needs_samples
    ),
    "GradientMonitor": Row(_record, _check_history),
    "input_sensitivity": Row(_sensitivity, _check_sensitivity, _needs_inputs),
    "HessianOperator": Row(_dense("HessianOperator"), _check_hessian),
    "GaussNewtonOperator": Row(
        _dense("GaussNewtonOperator"), _check_gauss_newton, _needs_outputs
    ),
    "hessian_matrix": Row(_on("hessian_matrix"), _check_matrix),
    "hessian_eigenvalues": Row(
        _on("hessian_eigenvalues", which="both"), _check_eigenvalues
    ),
    "hessian_trace": Row(_on("hessian_trace", products=30), _check_trace),
    "hessian_diagonal": Row(_on("hessian_diagonal", samples=15), _check_diagonal),
    "spectral_density": Row(_on("spectral_density", steps=20), _check_density),
    "inertia": Row(_on("inertia", neighbors=4), _check_inertia),
    "find_critical_point": Row(
        _on("find_critical_point", max_iterations=4, lbfgs_iterations=2),
        _check_critical_point,
    ),
    "sharpness, keskar": Row(
        _on("sharpness"),
        _check_worst(lambda truth, radius: radius * (truth.point.abs() + 1)),
    ),
    "sharpness, adaptive": Row(
        _on("sharpness", definition="adaptive"),
        _check_worst(lambda truth, radius: radius * truth.point.abs()),
    ),
    "sharpness, average": Row(
        _on("sharpness", definition="average", draws=20), _check_average
    ),
    "loss_plane": Row(_on("loss_plane", resolution=5), _check_plane),
    "interpolate": Row(_line, _check_line),
    "trajectory_pca": Row(lambda case: I.trajectory_pca(_points(case)), _check_path),
    "match_units": Row(
        lambda case: I.match_units(case.model, case.other),
        _check_matching,
        _needs_layers,
    ),
    "cost": Row(
        lambda case: I.cost(
            "hessian_trace", case.model, case.loss, case.data, **_options(case)
        ),
        _check_cost,
    ),
}


def answer(instrument: str, row: Model) -> Answer:
    """What an instrument must answer for a row of the table of models."""
    found = row.answers.get(instrument)
    return INSTRUMENTS[instrument].answer(row) if found is None else found
