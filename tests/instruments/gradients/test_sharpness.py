"""Sharpness against closed forms, SciPy, and the rescaling of ReLU networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.losses import Closure
from nablab.instruments.base.measurement import Size
from nablab.instruments.gradients.sharpness import sharpness


class Weights(nn.Module):
    """A module that is nothing but a vector of weights."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.w


def quadratic(slope: Any, curvature: Any, start: Any) -> Closure:
    """Return f(w) = 1 + slope (w - w0) + (w - w0) A (w - w0) / 2, 1 at the start."""
    b, a, w0 = (
        torch.tensor(part, dtype=torch.float64) for part in (slope, curvature, start)
    )
    matrix = torch.diag(a) if a.ndim == 1 else a

    def value(model: Any, batch: Tensor) -> Tensor:
        step = model() - w0
        return 1 + b @ step + step @ matrix @ step / 2

    return Closure(value)


DATA = torch.zeros(1)
START = [0.5, -2.0, 3.0]


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 2)).double()


def samples() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(17, 3, generator=draw, dtype=torch.float64)
    return x, torch.randn(17, 2, generator=draw, dtype=torch.float64)


def test_the_largest_value_over_the_box_is_at_a_corner() -> None:
    slope, curvature, radius = [0.3, -0.2, 0.1], [4.0, 1.0, 2.0], 0.05
    bound = radius * (np.abs(START) + 1)
    rise = float(np.abs(slope) @ bound + np.square(bound) @ curvature / 2)
    found = sharpness(
        Weights(START), quadratic(slope, curvature, START), DATA, radius=radius
    )
    assert found.sharpness == pytest.approx(100 * rise / 2, rel=1e-9)
    assert found.loss == 1
    assert found.largest == pytest.approx(1 + rise, rel=1e-12)
    assert found.bound_share == 1
    assert found.converged
    assert math.isnan(found.standard_error)


def test_a_maximum_inside_the_box() -> None:
    found = sharpness(
        Weights(START),
        quadratic([0.01, 0.0, 0.0], [-1.0, -1.0, -1.0], START),
        DATA,
        radius=0.1,
        iterations=40,
    )
    assert found.largest - 1 == pytest.approx(0.01**2 / 2, rel=1e-6)
    assert found.bound_share == 0


@pytest.mark.parametrize("definition", ["keskar", "adaptive"])
def test_never_below_zero_and_zero_where_the_model_is_the_top(definition: Any) -> None:
    found = sharpness(
        Weights(START),
        quadratic([0.0] * 3, [-1.0, -2.0, -1.0], START),
        DATA,
        definition=definition,
    )
    assert found.sharpness == 0
    assert any("gradient is exactly 0" in note for note in found.notes)


@pytest.mark.parametrize("definition", ["keskar", "adaptive"])
def test_a_minimum_is_left_although_its_gradient_is_zero(definition: Any) -> None:
    found = sharpness(
        Weights(START),
        quadratic([0.0] * 3, [1.0, 1.0, 1.0], START),
        DATA,
        definition=definition,
        radius=0.1,
    )
    sizes = np.abs(START) + (definition == "keskar")
    truth = float(np.square(0.1 * sizes).sum() / 2) * (
        50 if definition == "keskar" else 1
    )
    assert found.sharpness == pytest.approx(truth, rel=1e-9)


def test_the_subspace_is_a_box_of_its_own() -> None:
    slope, radius = [0.3, -0.2, 0.1], 0.01
    found = sharpness(
        Weights(START),
        quadratic(slope, [0.0] * 3, START),
        DATA,
        radius=radius,
        subspace=2,
        seed=5,
    )
    normal = torch.randn(
        3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).numpy()
    basis = np.linalg.qr(normal)[0]
    bound = radius * (np.abs(np.linalg.pinv(basis) @ START) + 1)
    assert found.largest - 1 == pytest.approx(np.abs(basis.T @ slope) @ bound, rel=1e-9)
    whole = sharpness(
        Weights(START), quadratic(slope, [0.0] * 3, START), DATA, radius=radius
    )
    assert found.sharpness < whole.sharpness


def test_the_search_finds_what_a_hundred_iterations_of_scipy_find() -> None:
    model, (x, y) = network(), samples()
    found = sharpness(model, "mse", (x, y), radius=1e-2)
    point = nn.utils.parameters_to_vector(model.parameters()).detach()
    copy = network()

    def function(step: Any) -> tuple[float, Any]:
        nn.utils.vector_to_parameters(point + torch.from_numpy(step), copy.parameters())
        loss = nn.functional.mse_loss(copy(x), y)
        slopes = torch.autograd.grad(loss, list(copy.parameters()))
        return -float(loss.detach()), -torch.cat(
            [slope.flatten() for slope in slopes]
        ).numpy()

    bound = 1e-2 * (point.abs() + 1).numpy()
    best = minimize(
        function,
        np.zeros(len(point)),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(-bound, bound, strict=True)),
        options={"maxiter": 100, "ftol": 0, "gtol": 0},
    )
    truth = 100 * (-best.fun - found.loss) / (1 + found.loss)
    assert 0.98 * truth < found.sharpness < 1.1 * truth
    assert found.iterations <= 10
    assert (np.diff(found.values) >= 0).all()


def test_the_average_over_gaussian_draws_is_half_the_trace() -> None:
    matrix = np.array([[4.0, 1.0, 0.0], [1.0, -1.0, 0.5], [0.0, 0.5, 2.0]])
    loss, radius = quadratic([3.0, -2.0, 1.0], matrix, START), 0.1
    found = sharpness(
        Weights(START), loss, DATA, definition="average", radius=radius, draws=400
    )
    assert abs(found.sharpness - radius**2 / 2 * 5) < 4 * found.standard_error
    # Pairs cancel the slope, so that the error is the quadratic form's: sigma^2 / 2
    # sqrt(2 |A|_F^2 / n).
    expected = radius**2 / 2 * math.sqrt(2 * np.square(matrix).sum() / 400)
    assert found.standard_error == pytest.approx(expected, rel=0.25)
    assert found.iterations == 400
    relative = sharpness(
        Weights(START),
        loss,
        DATA,
        definition="average",
        radius=radius,
        draws=400,
        relative=True,
    )
    truth = radius**2 / 2 * float(np.square(START) @ np.diag(matrix))
    assert abs(relative.sharpness - truth) < 4 * relative.standard_error


def test_adaptive_balls_of_a_linear_and_a_quadratic_loss() -> None:
    slope, radius = np.array([0.3, -0.2, 0.1]), 0.05
    linear = quadratic(slope.tolist(), [0.0] * 3, START)
    box = sharpness(Weights(START), linear, DATA, definition="adaptive", radius=radius)
    assert box.sharpness == pytest.approx(
        radius * np.abs(slope * START).sum(), rel=1e-10
    )
    assert box.bound_share == pytest.approx(1)
    ball = sharpness(
        Weights(START), linear, DATA, definition="adaptive", radius=radius, norm="l2"
    )
    assert ball.sharpness == pytest.approx(
        radius * np.linalg.norm(slope * START), rel=1e-6
    )
    # A slope along one axis and curvature: the best point lies on that axis' end for
    # the steepest axis.
    curved = quadratic([0.0, 0.0, 0.2], [1.0, 1.0, 5.0], START)
    found = sharpness(
        Weights(START), curved, DATA, definition="adaptive", radius=radius, norm="l2"
    )
    reach = radius * 3.0
    assert found.sharpness == pytest.approx(0.2 * reach + 5 * reach**2 / 2, rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_adaptive_form_sees_functions_not_scales(norm: Any) -> None:
    """A ReLU unit's inputs times 8, its output over 8: the same function."""
    model, scaled, data = network(nn.ReLU), network(nn.ReLU), samples()
    with torch.no_grad():
        scaled[0].weight.mul_(8)
        scaled[0].bias.mul_(8)
        scaled[2].weight.div_(8)
    options: Any = {"definition": "adaptive", "radius": 0.05, "norm": norm}
    first = sharpness(model, "mse", data, **options)
    assert sharpness(scaled, "mse", data, **options).sharpness == pytest.approx(
        first.sharpness, rel=1e-9
    )
    box = sharpness(model, "mse", data, radius=0.05).sharpness
    assert abs(sharpness(scaled, "mse", data, radius=0.05).sharpness / box - 1) > 0.1
    assert first.sharpness > 0.005
    assert first.iterations == 20


@pytest.mark.parametrize("definition", ["keskar", "average", "adaptive"])
def test_ragged_batches_dtypes_and_seeds(definition: Any) -> None:
    model, (x, y) = network(), samples()
    whole = sharpness(model, "mse", (x, y), definition=definition, draws=5)
    ragged = sharpness(
        model, "mse", [(x[:7], y[:7]), (x[7:], y[7:])], definition=definition, draws=5
    )
    assert ragged.sharpness == pytest.approx(whole.sharpness, rel=1e-6)
    again = sharpness(model, "mse", (x, y), definition=definition, draws=5)
    assert again.sharpness == whole.sharpness
    single = sharpness(
        model, "mse", (x, y), definition=definition, draws=5, dtype=torch.float32
    )
    assert single.sharpness == pytest.approx(whole.sharpness, rel=0.05)
    part = sharpness(
        model, "mse", (x, y), definition=definition, draws=5, parameters="2.*"
    )
    assert 0 < part.sharpness < whole.sharpness


@pytest.mark.parametrize("definition", ["keskar", "adaptive"])
def test_a_search_that_is_cut_short_says_so(definition: Any) -> None:
    model, data = network(), samples()
    short = sharpness(
        model, "mse", data, definition=definition, radius=0.3, iterations=1
    )
    assert not short.converged
    assert len(short.values) == 2
    full = sharpness(
        model, "mse", data, definition=definition, radius=0.3, iterations=60
    )
    assert full.converged
    assert full.sharpness >= short.sharpness


def test_the_model_and_the_random_generator_are_left_alone() -> None:
    model, state = network(), torch.get_rng_state()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for definition in ("keskar", "average", "adaptive"):
        sharpness(model, "mse", samples(), definition=definition, draws=2)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_usage_errors() -> None:
    model, data = network(), samples()
    with pytest.raises(
        UsageError, match=r"no definition of sharpness 'kesker'. Did you mean 'keskar'"
    ):
        sharpness(model, "mse", data, definition="kesker")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no norm 'l1'.*linf, l2"):
        sharpness(model, "mse", data, definition="adaptive", norm="l1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"radius=0 is not a neighborhood"):
        sharpness(model, "mse", data, radius=0)
    with pytest.raises(UsageError, match=r"draws=1 is too few: at least 2"):
        sharpness(model, "mse", data, definition="average", draws=1)
    with pytest.raises(UsageError, match=r"subspace is for definition='keskar'"):
        sharpness(model, "mse", data, definition="adaptive", subspace=3)


def test_the_stated_cost_is_the_cost() -> None:
    model, data = network(), samples()
    size = Size(parameters=50, samples=17, outputs=2)
    for definition in ("keskar", "average", "adaptive"):
        found = sharpness(model, "mse", data, definition=definition)  # type: ignore[arg-type]
        # Keskar's search ends before its ten iterations where it reaches a corner of
        # the box.
        least = 0.1 if definition == "keskar" else 0.9
        assert (
            least
            < found.gradients
            / sharpness.expected(size, definition=definition).gradients
            < 1.6
        )


def test_the_figures() -> None:
    worst = sharpness(network(), "mse", samples(), definition="adaptive")
    (axes,) = worst.plot().axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), worst.values)
    assert axes.get_xlabel() == "iterations of the search"
    average = sharpness(network(), "mse", samples(), definition="average")
    (axes,) = average.plot().axes
    assert sum(patch.get_height() for patch in axes.patches) == 50
    assert axes.get_xlabel() == "rise of the loss (radius 0.01)"


@pytest.mark.parametrize("definition", ["keskar", "average", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(definition: str, dtype: torch.dtype) -> None:
    with pytest.raises(
        UsageError, match=r"dtype=b?float16 is impossible.*torch.float32"
    ):
        sharpness(
            nn.Linear(4, 3),
            "mse",
            (torch.ones(5, 4), torch.ones(5, 3)),
            definition=definition,
            dtype=dtype,
        )


@pytest.mark.parametrize(
    ("definition", "weight", "options"),
    [
        ("average", 1e5, {}),
        ("keskar", 1.0, {"radius": 1e-7}),
        ("keskar", 1e4, {"radius": 1e-7, "subspace": 3}),
        ("adaptive", 1.0, {"radius": 1e-6}),
        ("adaptive", 1.0, {"radius": 1e-6, "norm": "l2"}),
    ],
)
def test_steps_that_rounding_swallows_are_noted(
    definition: str, weight: float, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model.weight.data.uniform_(-weight, weight)
    data = torch.randn(6, 4), torch.randn(6, 3)
    coarse = sharpness(model, "mse", data, definition=definition, **options)
    assert any(
        "lost to the rounding of the weights in float32" in note
        for note in coarse.notes
    )
    fine = sharpness(
        model, "mse", data, definition=definition, dtype=torch.float64, **options
    )
    assert not any("lost to the rounding" in note for note in fine.notes)
    usual = sharpness(nn.Linear(4, 3), "mse", data, definition=definition)
    assert usual.notes == ()


def test_a_rise_within_the_rounding_of_the_loss_is_noted() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), (torch.randn(6, 4), torch.randn(6, 3))
    found = sharpness(
        model, lambda o, t: 1e4 + (o - t).square().mean(), data, definition="adaptive"
    )
    assert any("is within the rounding of the loss" in note for note in found.notes)
    usual = sharpness(model, "mse", data, definition="adaptive")
    assert usual.notes == ()
