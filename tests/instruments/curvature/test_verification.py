"""Wrong second derivatives are found first, and right ones are not suspected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from nablab.errors import UsageError
from nablab.instruments import (
    Closure,
    GaussNewtonOperator,
    HessianOperator,
    find_critical_point,
    hessian_matrix,
    hessian_trace,
    inertia,
)


class Written(nn.Module):
    """Weight norm written out, as the truth for PyTorch's own."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)), w.clone()


def normed(own: bool) -> nn.Module:
    torch.manual_seed(1)
    convolution = nn.Conv2d(1, 2, 3)
    if own:
        weight_norm(convolution)
    else:
        parametrize.register_parametrization(convolution, "weight", Written())
    return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(10, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (10,))


class Bent(torch.autograd.Function):
    """A sine whose first derivative is right and whose second is not."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return slope * WrongCosine.apply(*context.saved_tensors)


class WrongCosine(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return -1.01 * slope * context.saved_tensors[0].sin()


class WrongTranspose(torch.autograd.Function):
    """A sine whose backward pass is not linear in the slope, by autograd's account."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return Doubled.apply(slope) * context.saved_tensors[0].cos()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return x.clone()

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return 2 * slope


class Rounded(torch.autograd.Function):
    """A straight-through estimator: rounds forward, and is the identity backward."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return (x * 4).round() / 4

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return slope


class Layered(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Linear(3, 5)
        self.last = nn.Linear(5, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def points() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(9, 3, dtype=torch.float64), torch.randn(
        9, 2, dtype=torch.float64
    )


WRONG: dict[str, Callable[[bool], tuple[nn.Module, Any, Any]]] = {
    "PyTorch's weight norm": lambda own: (normed(own), "cross_entropy", images()),
    "a function of the user": lambda own: (
        Layered(Bent.apply if own else torch.sin),
        "mse",
        points(),
    ),
    "a backward pass": lambda own: (
        Layered(WrongTranspose.apply if own else torch.sin),
        "mse",
        points(),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WRONG)
def test_products_with_a_wrong_second_derivative_are_differences_and_it_is_said(
    name: str, dtype: torch.dtype
) -> None:
    (wrong, loss, data), (right, _, _) = WRONG[name](True), WRONG[name](False)
    found = HessianOperator(wrong, loss, data, dtype=dtype)
    truth = HessianOperator(right, loss, data, dtype=torch.float64)
    assert found.method == "finite-difference"
    assert truth.method == "double-backward"
    assert any("second derivative is wrong" in note for note in found.notes)
    vector = torch.randn(
        found.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    digits = 1e-7 if dtype == torch.float64 else 2e-2
    expected = truth @ vector
    assert (found @ vector - expected).norm() < digits * expected.norm()


@pytest.mark.parametrize("name", WRONG)
def test_hessians_with_a_wrong_second_derivative_are_right(name: str) -> None:
    (wrong, loss, data), (right, _, _) = WRONG[name](True), WRONG[name](False)
    found, truth = hessian_matrix(wrong, loss, data), hessian_matrix(right, loss, data)
    assert found.method == "finite-difference"
    assert any("second derivative is wrong" in note for note in found.notes)
    np.testing.assert_allclose(
        found.matrix, truth.matrix, atol=1e-8 * np.abs(truth.matrix).max()
    )
    error = np.linalg.norm(found.matrix - truth.matrix) / np.linalg.norm(truth.matrix)
    # The differences' own error is counted.
    assert error < 3 * (found.rounding + found.asymmetry)


def test_weight_norm_has_the_inertia_and_trace_of_the_same_written_out() -> None:
    data = images()
    found = inertia(normed(True), "cross_entropy", data, parameters="0.*", neighbors=0)
    truth = inertia(normed(False), "cross_entropy", data, parameters="0.*", neighbors=0)
    assert found.triple == truth.triple
    assert found.noise_floor > 1e-11
    trace = hessian_trace(
        normed(True), "cross_entropy", data, parameters="0.*", products=100
    )
    assert trace.value == pytest.approx(truth.eigenvalues.sum(), rel=1e-6)


def test_a_critical_point_is_found_by_differences() -> None:
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    model = nn.Sequential(nn.Linear(1, 1))
    loss = Closure(
        lambda module, batch: Bent.apply(module(batch[0]) - batch[1] - 1.5).mean()
    )
    found = find_critical_point(
        model, loss, (x, 3 * x), tolerance=1e-6, lbfgs_iterations=20
    )
    assert any("second derivative is wrong" in note for note in found.notes)
    assert found.reached
    assert (
        torch.cos(torch.as_tensor(found.point[0] - 3) * x + found.point[1] - 1.5).mean()
        < 1e-6
    )


def test_a_wrong_method_that_is_asked_for_is_refused_or_said() -> None:
    model, data = Layered(Bent.apply), points()
    with pytest.raises(
        UsageError,
        match="method='double-backward' cannot be used: its second derivative is",
    ):
        hessian_matrix(model, "mse", data, method="double-backward")
    operator = HessianOperator(model, "mse", data, method="double-backward")
    assert any("may be wrong: for the Hessian" in note for note in operator.notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_that_is_no_derivative_is_refused(dtype: torch.dtype) -> None:
    model, data = Layered(lambda x: Rounded.apply(x.tanh())), points()
    for kind in (HessianOperator, hessian_matrix, inertia, find_critical_point):
        with pytest.raises(UsageError, match="not the derivative of its loss"):
            kind(model, "mse", data, dtype=dtype)
    assert (
        HessianOperator(model, "mse", data, dtype=dtype, check=False).method
        == "double-backward"
    )


def test_gauss_newton_with_a_wrong_derivative_of_the_backward_pass() -> None:
    data = points()
    found = GaussNewtonOperator(
        Layered(WrongTranspose.apply), "mse", data, dtype=torch.float64
    )
    assert any("differences of the outputs" in note for note in found.notes)
    truth = GaussNewtonOperator(Layered(torch.sin), "mse", data, dtype=torch.float64)
    assert truth.notes == ()
    vector = torch.randn(found.shape[0], dtype=torch.float64)
    torch.testing.assert_close(found @ vector, truth @ vector, rtol=1e-6, atol=1e-8)


def test_gauss_newton_with_a_loss_of_wrong_curvature() -> None:
    model, data = Layered(torch.sin), points()
    found = GaussNewtonOperator(
        model, lambda o, t: Bent.apply(o - t).mean(), data, dtype=torch.float64
    )
    assert any("second derivative is wrong" in note for note in found.notes)
    truth = GaussNewtonOperator(
        model, lambda o, t: (o - t).sin().mean(), data, dtype=torch.float64
    )
    vector = torch.randn(found.shape[0], dtype=torch.float64)
    torch.testing.assert_close(found @ vector, truth @ vector, rtol=1e-6, atol=1e-8)


def test_gauss_newton_refuses_a_backward_pass_that_is_no_transpose() -> None:
    model = Layered(lambda x: Rounded.apply(x.tanh()) + x)
    with pytest.raises(UsageError, match="not the derivative of its loss"):
        GaussNewtonOperator(
            Layered(lambda x: Scaled.apply(x) + x.sin()), "mse", points()
        )
    assert GaussNewtonOperator(model, "mse", points(), check=False).shape == (32, 32)


class Scaled(torch.autograd.Function):
    """A square whose backward pass is that of another function."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return slope.flip(0) * context.saved_tensors[0]


def without_biases(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


class Casting(nn.Module):
    """Normalizes in float32, whatever the rest is in, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        return self.last(
            (hidden + F.layer_norm(hidden.float(), (20,)).to(hidden.dtype)).relu()
        )


def dense(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 30),
        kind(),
        nn.Linear(30, 20),
        kind(),
        nn.Linear(20, 4),
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: dense(nn.ReLU),
    "relu, no biases": lambda: without_biases(dense(nn.ReLU)),
    "gelu": lambda: dense(nn.GELU),
    "soft shrinkage": lambda: dense(nn.Softshrink),
    "convolution": convolutional,
    "convolution, no biases": lambda: without_biases(convolutional()),
    "casting": Casting,
    "layer norm": lambda: nn.Sequential(
        nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_raise_no_alarm(name: str, dtype: torch.dtype) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = ORDINARY[name]()
        for parameter in model.parameters():
            parameter.data *= (0.03, 1.0, 30.0)[seed % 3]
        # There are zeros, as at the rims of digits.
        x = torch.randn(200, 12) * (torch.rand(200, 12) > 0.3)
        operator = HessianOperator(
            model, "cross_entropy", (x, torch.arange(200) % 4), dtype=dtype
        )
        assert operator.method == "double-backward"
        assert operator.notes == ()


def test_what_the_check_costs() -> None:
    torch.manual_seed(0)
    data = torch.randn(50, 12), torch.arange(50) % 4
    costs = [
        HessianOperator(
            dense(nn.Tanh), "cross_entropy", data, method=method, cache=True
        ).objective.spent
        for method in ("double-backward", "finite-difference")
    ]
    # The check takes 16 of the samples.
    assert costs[0] - costs[1] == pytest.approx(7 * 16 / 50)


def test_a_batch_of_several_is_checked_by_itself() -> None:
    x, y = torch.randn(60, 12), torch.arange(60) % 4
    ragged = [(x[:10], y[:10]), (x[10:], y[10:])]
    operator = HessianOperator(
        dense(nn.Tanh), "cross_entropy", ragged, method="double-backward", cache=True
    )
    whole = HessianOperator(
        dense(nn.Tanh), "cross_entropy", ragged, method="finite-difference", cache=True
    )
    assert operator.objective.spent - whole.objective.spent == pytest.approx(7 / 6)


def test_a_second_derivative_that_raises_is_replaced_by_differences() -> None:
    class Bags(nn.Module):
        """PyTorch's bags of embeddings have no second derivative."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bags, self.head = nn.EmbeddingBag(6, 3, mode="mean"), nn.Linear(3, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.bags(tokens).tanh())

    class Plain(Bags):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(F.embedding(tokens, self.bags.weight).mean(1).tanh())

    data = (
        torch.randint(0, 6, (8, 4), generator=torch.Generator().manual_seed(1)),
        torch.arange(8) % 2,
    )
    found = hessian_matrix(Bags(), "cross_entropy", data)
    truth = hessian_matrix(Plain(), "cross_entropy", data)
    assert any("has no second derivative" in note for note in found.notes)
    np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-8)
    triple = inertia(Plain(), "cross_entropy", data, neighbors=0).triple
    assert inertia(Bags(), "cross_entropy", data, neighbors=0).triple == triple


def test_distances_are_differentiated_by_differences() -> None:
    centers = nn.ParameterList([nn.Parameter(torch.randn(3, 2, dtype=torch.float64))])
    x = torch.randn(7, 2, dtype=torch.float64)
    found = hessian_matrix(
        centers, Closure(lambda m, b: torch.cdist(b, m[0]).square().mean()), x
    )
    np.testing.assert_allclose(found.matrix, 2 / 3 * np.eye(6), atol=1e-7)


@pytest.mark.parametrize("kind", [hessian_matrix, inertia])
def test_a_second_derivative_that_is_not_a_number_is_refused(kind: Any) -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.zero_()
    root = Closure(
        lambda module, batch: module.weight.abs().pow(1.5).sum() + module(batch).mean()
    )
    with pytest.raises(
        UsageError, match=r"NaN or infinite.*no finite second derivative here"
    ):
        kind(model, root, torch.ones(3, 2), method="double-backward")


@pytest.mark.parametrize(
    "kind", [HessianOperator, GaussNewtonOperator, hessian_matrix, inertia]
)
def test_half_precision_is_refused_in_one_sentence(kind: Any) -> None:
    with pytest.raises(
        UsageError, match=r"dtype=bfloat16 is impossible.*torch.float32"
    ):
        kind(
            nn.Linear(2, 1),
            "mse",
            (torch.ones(3, 2), torch.ones(3, 1)),
            dtype=torch.bfloat16,
        )


class Inside(nn.Module):
    """Differentiates itself by `torch.func` in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(
            torch.func.grad(lambda one: self.linear(one).tanh().sum())
        )(x)[:, :3]


class Outside(Inside):
    def forward(self, x: Tensor) -> Tensor:
        slopes = 1 - self.linear(x).tanh().square()
        return (slopes @ self.linear.weight)[:, :3]


def test_functional_derivatives_inside_the_forward_pass() -> None:
    data = (
        torch.randn(12, 4, generator=torch.Generator().manual_seed(2)),
        torch.arange(12) % 3,
    )
    found = HessianOperator(Inside(), "cross_entropy", data, dtype=torch.float64)
    truth = HessianOperator(Outside(), "cross_entropy", data, dtype=torch.float64)
    assert found.method == "double-backward"
    vector = torch.ones(found.shape[0], dtype=torch.float64)
    torch.testing.assert_close(found @ vector, truth @ vector, rtol=1e-10, atol=1e-12)
    triple = inertia(Outside(), "cross_entropy", data, neighbors=0).triple
    assert inertia(Inside(), "cross_entropy", data, neighbors=0).triple == triple


def test_a_model_compiled_without_a_second_derivative() -> None:
    class Compiled(torch.autograd.Function):
        """A backward pass that cannot be differentiated, as from `torch.compile`."""

        @staticmethod
        def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            context.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            if torch.is_grad_enabled():
                raise RuntimeError("does not currently support double backward")
            return slope * context.saved_tensors[0].cos()

    model, data = Layered(Compiled.apply), points()
    vector = torch.ones(32, dtype=torch.float64)
    for kind in (HessianOperator, GaussNewtonOperator):
        found = kind(model, "mse", data, dtype=torch.float64)
        assert any(
            "does not currently support double backward" in note for note in found.notes
        )
        truth = kind(Layered(torch.sin), "mse", data, dtype=torch.float64)
        torch.testing.assert_close(found @ vector, truth @ vector, rtol=1e-6, atol=1e-8)
    matrix = hessian_matrix(model, "mse", data)
    np.testing.assert_allclose(
        matrix.matrix, hessian_matrix(Layered(torch.sin), "mse", data).matrix, atol=1e-8
    )


def test_a_penalty_that_the_gauss_newton_matrix_leaves_out_is_said() -> None:
    held: dict[str, nn.Module] = {}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (
            F.mse_loss(output, target) + 0.1 * held["model"].first.weight.square().sum()
        )

    held["model"] = model = Layered(torch.sin)
    found = GaussNewtonOperator(model, loss, points(), dtype=torch.float64)
    assert any("also past the outputs" in note for note in found.notes)
    assert (
        GaussNewtonOperator(
            Layered(torch.sin), "mse", points(), dtype=torch.float64
        ).notes
        == ()
    )
