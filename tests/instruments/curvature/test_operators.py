"""Products with the Hessian and the Gauss-Newton matrix against dense truth."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments import Closure, GaussNewtonOperator, HessianOperator, Objective
from nablab.instruments.curvature import operators
from tests.instruments.networks import CASES, Sine, case


def dense(objective: Objective) -> Tensor:
    """The Hessian as the Jacobian of the gradient.

    Not torch.func.hessian: it differentiates a backward pass that runs under vmap,
    which is wrong through layer norm in PyTorch 2.13 (by 0.07 on the transformer here).
    """

    def gradient(vector: Tensor) -> Tensor:
        def total(v: Tensor) -> Tensor:
            tensors = objective.unflatten(v)
            return sum(
                weight * objective.batch_loss(tensors, batch)
                for batch, weight in objective.batches
            )

        return torch.func.grad(total)(vector)

    with objective.quiet():
        return torch.func.jacrev(gradient)(objective.point)


def matrix(operator: HessianOperator | GaussNewtonOperator) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_hessian_of_every_kind_of_network(name: str, cache: bool) -> None:
    model, loss, data = case(name)
    operator = HessianOperator(model, loss, data, dtype=torch.float64, cache=cache)
    assert operator.method == "double-backward"
    truth = dense(Objective(model, loss, data, dtype=torch.float64))
    torch.testing.assert_close(matrix(operator), truth, rtol=1e-9, atol=1e-12)


def test_linear_regression_has_the_hessian_of_the_textbook() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    y = torch.randn(50, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    expected = 2 / 50 * x.T @ x
    torch.testing.assert_close(matrix(HessianOperator(model, "mse", (x, y))), expected)
    torch.testing.assert_close(
        matrix(GaussNewtonOperator(model, "mse", (x, y))), expected
    )


def test_logistic_regression_has_the_hessian_of_the_textbook() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    y = (torch.arange(50)[:, None] % 2).double()
    model = nn.Linear(4, 1, bias=False).double()
    p = torch.sigmoid(model(x)).detach()
    expected = (x * p * (1 - p)).T @ x / 50
    torch.testing.assert_close(
        matrix(HessianOperator(model, "binary_cross_entropy", (x, y))), expected
    )
    torch.testing.assert_close(
        matrix(GaussNewtonOperator(model, "binary_cross_entropy", (x, y))), expected
    )


def test_softmax_regression_has_the_hessian_of_the_textbook() -> None:
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 4
    model = nn.Linear(3, 4, bias=False).double()
    p = torch.softmax(model(x), dim=1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", curvature, x, x).reshape(12, 12) / 30
    torch.testing.assert_close(
        matrix(HessianOperator(model, "cross_entropy", (x, y))), expected
    )
    torch.testing.assert_close(
        matrix(GaussNewtonOperator(model, "cross_entropy", (x, y))), expected
    )


@pytest.mark.parametrize(
    "name", ["dense", "convolutional", "tied weights", "two inputs"]
)
def test_gauss_newton_against_jacobians(name: str) -> None:
    model, loss, data = case(name)
    operator = GaussNewtonOperator(model, loss, data, dtype=torch.float64)
    objective = operator.objective
    batch = objective.batches.items[0]

    def outputs(vector: Tensor) -> Tensor:
        return objective.batch_outputs(objective.unflatten(vector), batch)

    jacobian = torch.func.jacrev(outputs)(objective.point)
    at = outputs(objective.point).detach()
    bend = torch.func.hessian(lambda o: objective.criterion(o, batch[-1]))(at)
    size = at.numel()
    jacobian, bend = jacobian.reshape(size, -1), bend.reshape(size, size)
    torch.testing.assert_close(
        matrix(operator), jacobian.T @ bend @ jacobian, rtol=1e-9, atol=1e-12
    )
    assert torch.linalg.eigvalsh(matrix(operator)).min() > -1e-12


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_ragged_batches_weigh_by_their_samples(kind: type[HessianOperator]) -> None:
    model, loss, (x, y) = case("dense")
    whole = matrix(kind(model, loss, (x, y), dtype=torch.float64))
    ragged = matrix(
        kind(model, loss, [(x[:5], y[:5]), (x[5:], y[5:])], dtype=torch.float64)
    )
    torch.testing.assert_close(ragged, whole, rtol=1e-12, atol=1e-14)
    plain = 0.5 * sum(
        matrix(kind(model, loss, (x[a:b], y[a:b]), dtype=torch.float64))
        for a, b in ((0, 5), (5, 7))
    )
    # An unweighted mean over batches is another matrix.
    assert (plain - whole).abs().max() > 1e-3


def test_one_layer_is_a_block_of_the_whole() -> None:
    model, loss, data = case("dense")
    whole = matrix(HessianOperator(model, loss, data, dtype=torch.float64))
    block = matrix(
        HessianOperator(model, loss, data, dtype=torch.float64, parameters="2.*")
    )
    torch.testing.assert_close(block, whole[-block.shape[0] :, -block.shape[0] :])


def test_a_block_of_vectors_is_its_vectors() -> None:
    model, loss, data = case("dense")
    operator = HessianOperator(model, loss, data)
    block = torch.randn(operator.shape[0], 3)
    columns = torch.stack([operator @ column for column in block.T], dim=1)
    torch.testing.assert_close(operator @ block, columns)


def test_scipy_finds_its_eigenvalues() -> None:
    model, loss, data = case("dense")
    operator = HessianOperator(model, loss, data, dtype=torch.float64)
    found = eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(matrix(operator))[-3:]
    np.testing.assert_allclose(np.sort(found), expected.numpy(), rtol=1e-10)


def test_without_a_second_derivative_differences_are_taken_and_it_is_said() -> None:
    rough, exact = Sine(exact=False), Sine(exact=True)
    exact.load_state_dict(rough.state_dict())
    data = torch.randn(9, 3), torch.randn(9, 1)
    operator = HessianOperator(rough, "mse", data, dtype=torch.float64)
    assert operator.method == "finite-difference"
    assert any("central differences" in note for note in operator.notes)
    expected = matrix(HessianOperator(exact, "mse", data, dtype=torch.float64))
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-6, atol=1e-8)


def test_gauss_newton_without_a_derivative_of_the_backward_pass() -> None:
    rough, exact = Sine(exact=False), Sine(exact=True)
    exact.load_state_dict(rough.state_dict())
    data = torch.randn(9, 3), torch.randn(9, 1)
    operator = GaussNewtonOperator(rough, "mse", data, dtype=torch.float64)
    assert any("central differences of the outputs" in note for note in operator.notes)
    expected = matrix(GaussNewtonOperator(exact, "mse", data, dtype=torch.float64))
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-6, atol=1e-8)


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1)
    operator = HessianOperator(
        model,
        lambda output, target: output.mean(),
        (torch.randn(5, 3), torch.randn(5, 1)),
    )
    assert (operator @ torch.ones(4) == 0).all()
    assert (
        GaussNewtonOperator(
            model, lambda o, t: o.mean(), (torch.randn(5, 3), torch.randn(5, 1))
        )
        @ torch.ones(4)
        == 0
    ).all()


def test_products_cost_what_the_arithmetic_says() -> None:
    model, loss, data = case("dense")
    for cache, price in ((True, 2), (False, 3)):
        operator = HessianOperator(
            model, loss, data, cache=cache, method="double-backward", check=False
        )
        assert operator.gradients_per_product == price
        operator @ torch.ones(operator.shape[0])
        begin = operator.objective.spent
        operator @ torch.ones(operator.shape[0])
        assert operator.objective.spent - begin == pytest.approx(price)
    block = torch.ones(operator.shape[0], 4)
    begin = operator.objective.spent
    operator @ block
    assert operator.objective.spent - begin == pytest.approx(4 * 2 + 1)


def test_the_graph_is_kept_only_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = case("dense")
    assert HessianOperator(model, loss, data).cached
    monkeypatch.setattr(operators, "free_memory", lambda device: 1000)
    assert not HessianOperator(model, loss, data).cached


def test_large_batches_are_cut_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, (x, y) = case("convolutional")
    x, y = x.repeat(10, 1, 1, 1), y.repeat(10)
    monkeypatch.setattr(operators, "CACHE_BYTES", 20_000)
    operator = HessianOperator(model, loss, (x, y), dtype=torch.float64)
    assert len(operator.objective.batches) > 1
    assert operator.objective.batches.items[0][0].stride() == (36, 1, 6, 1)
    asked = HessianOperator(model, loss, (x, y), dtype=torch.float64, batch_size=70)
    assert asked.objective.batches.samples == (70,)
    torch.testing.assert_close(matrix(operator), matrix(asked), rtol=1e-10, atol=1e-13)


def test_batches_that_are_no_mean_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CACHE_BYTES", 100)
    x, y = torch.randn(99, 3), (torch.arange(99) > 20).long()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]))
    own = HessianOperator(
        nn.Linear(3, 2), lambda output, target: loss(output, target), (x, y)
    )
    assert own.objective.batches.samples == (99,)
    # This loss weighs by the weights of its targets.
    known = HessianOperator(nn.Linear(3, 2), loss, (x, y))
    assert len(known.objective.batches) > 1


class Viewing(nn.Module):
    """Its view() does not take another memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(2, 3, 3), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.convolution(x)).view(len(x), -1))


def test_a_model_that_needs_its_layout_keeps_it() -> None:
    x, y = torch.randn(7, 2, 6, 6), torch.arange(7) % 2
    operator = HessianOperator(Viewing(), "cross_entropy", (x, y), dtype=torch.float64)
    assert operator.method == "double-backward"
    assert operator.objective.batches.items[0][0].is_contiguous()


class Raising(torch.autograd.Function):
    """The identity, whose derivative raises an error when it is differentiated."""

    @staticmethod
    def forward(context, x: Tensor, depth: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.depth = depth
        return x.clone()

    @staticmethod
    def backward(context, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        if context.depth:
            raise RuntimeError("the second derivative is not implemented")
        return Raising.apply(slope, 1), None


class RaisingConvolution(nn.Module):
    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)
        self.head = nn.Linear(48, 2)
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.convolution(x))
        return self.head(
            (hidden if self.exact else Raising.apply(hidden, 0)).flatten(1)
        )


def test_a_convolution_whose_second_derivative_raises_is_measured_by_differences() -> (
    None
):
    rough, exact = RaisingConvolution(exact=False), RaisingConvolution(exact=True)
    exact.load_state_dict(rough.state_dict())
    data = torch.randn(7, 2, 6, 6), torch.arange(7) % 2
    operator = HessianOperator(rough, "cross_entropy", data, dtype=torch.float64)
    assert operator.method == "finite-difference"
    vector = torch.randn(operator.shape[0], dtype=torch.float64)
    expected = (
        HessianOperator(exact, "cross_entropy", data, dtype=torch.float64) @ vector
    )
    torch.testing.assert_close(operator @ vector, expected, rtol=1e-6, atol=1e-7)


def test_operators_leave_nothing_behind() -> None:
    model, loss, data = case("convolutional")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    HessianOperator(model, loss, data) @ torch.ones(62)
    before = tensors()
    for _ in range(4):
        HessianOperator(model, loss, data) @ torch.ones(62)
        GaussNewtonOperator(model, loss, data) @ torch.ones(62)
    assert tensors() == before


def test_bad_vectors_and_closures_are_refused() -> None:
    model, loss, data = case("dense")
    with pytest.raises(
        UsageError, match=r"shape \(3,\) does not fit a matrix of shape \(32, 32\)"
    ):
        HessianOperator(model, loss, data) @ torch.ones(3)
    model, loss, data = case("dictionary")
    with pytest.raises(UsageError, match="needs outputs and loss apart"):
        GaussNewtonOperator(model, loss, data)
    pair = nn.Sequential(nn.Linear(2, 2))
    pair.forward = lambda x: (x, x)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="returns a tuple"):
        GaussNewtonOperator(
            pair,
            lambda o, t: o[0].mean(),
            (torch.ones(3, 2), torch.ones(3, 2)),
            check=False,
        )


def test_a_quadratic_gives_its_matrix_back() -> None:
    root = torch.randn(6, 6, dtype=torch.float64)
    symmetric = root + root.T
    model = nn.ParameterList([nn.Parameter(torch.randn(6, dtype=torch.float64))])
    loss = Closure(lambda module, batch: 0.5 * module[0] @ batch @ module[0])
    torch.testing.assert_close(
        matrix(HessianOperator(model, loss, symmetric)), symmetric
    )
