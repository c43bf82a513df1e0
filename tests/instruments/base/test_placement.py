"""Tensors put into a model are seen everywhere, backward too, and leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nablab.errors import UsageError
from nablab.instruments import (
    Closure,
    HessianOperator,
    Objective,
    gradient_norm,
    hessian_matrix,
    sharpness,
)
from nablab.instruments.base.placement import Placement, copied

DATA = torch.randn(12, 4), torch.randint(0, 3, (12,))


def common_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 4), torch.randint(0, 3, (12,))


# Code that reads the weights in the backward pass


class Checkpointed(nn.Module):
    """Layers that run again in the backward pass, in one of PyTorch's forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "around the first":
            h = checkpoint(lambda v: self.a(v).tanh(), x, use_reentrant=True)
            return self.c(self.b(h).tanh() * h)
        h = self.a(x).tanh()
        gated = {
            "none": lambda f, v: f(v),
            "not reentrant": lambda f, v: checkpoint(f, v, use_reentrant=False),
            "reentrant": lambda f, v: checkpoint(f, v, use_reentrant=True),
            "own function": lambda f, v: ReadsItsLayerAgain.apply(
                v, self.b.weight, self.b.bias, self.b
            ),
        }[self.form]
        return self.c(gated(lambda v: self.b(v).tanh() * v, h))


class ReadsItsLayerAgain(torch.autograd.Function):
    """tanh(layer(v)) * v, whose backward pass reads the layer's own weights."""

    @staticmethod
    def forward(ctx, v, weight, bias, layer):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(v)
        ctx.layer = layer
        return torch.tanh(F.linear(v, weight, bias)) * v

    @staticmethod
    def backward(ctx, slope):  # type: ignore[no-untyped-def]
        (v,) = ctx.saved_tensors
        weight, bias = ctx.layer.weight, ctx.layer.bias
        gate = torch.tanh(F.linear(v, weight, bias))
        inner = slope * v * (1 - gate**2)
        return slope * gate + inner @ weight, inner.T @ v, inner.sum(0), None


FORMS = ["not reentrant", "reentrant", "own function", "around the first"]


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_asked_for_in_the_backward_pass_too(form: str) -> None:
    data = common_data()
    objective = Objective(Checkpointed(form), "cross_entropy", data)
    away = objective.gradient(objective.point + 0.5)
    assert float(away.norm()) == pytest.approx(0.82966, abs=2e-5)
    assert float(away[0]) == pytest.approx(-0.0196, abs=1e-4)
    plain = Objective(Checkpointed("none"), "cross_entropy", data)
    torch.testing.assert_close(away, plain.gradient(plain.point + 0.5))


@pytest.mark.parametrize("form", ["not reentrant", "reentrant", "around the first"])
def test_curvature_through_checkpointing_is_that_without(form: str) -> None:
    data = common_data()
    found, plain = (
        hessian_matrix(
            Checkpointed(kind), "cross_entropy", data, dtype=torch.float64
        ).matrix
        for kind in (form, "none")
    )
    assert found == pytest.approx(plain, abs=1e-12)
    assert found.trace() == pytest.approx(plain.trace())


def test_sharpness_through_checkpointing() -> None:
    found = sharpness(
        Checkpointed("not reentrant"), "cross_entropy", common_data(), radius=0.1
    )
    assert found.sharpness == pytest.approx(18.901, rel=2e-3)


def test_the_reentrant_form_is_reentrant_again_afterwards() -> None:
    model, (x, y) = Checkpointed("reentrant"), common_data()
    Objective(model, "cross_entropy", (x, y)).gradient()
    loss = F.cross_entropy(model(x), y)
    assert any("CheckpointFunctionBackward" in name for name in _names(loss))
    loss.backward()
    assert model.b.weight.grad is not None


def _names(value: Tensor) -> set[str]:
    waiting, found = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(node.name())
            waiting += [following for following, _ in node.next_functions]
    return found


# Models in which a tensor stands in several places


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.o = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.c = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.c(self.b(self.a(x).tanh()).tanh()).tanh())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.o = nn.Linear(4, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.decoder(self.encoder(x).tanh()).tanh())


class Listed(nn.Module):
    """Parameters in a list, and a submodule in another that PyTorch does not know."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.o = nn.Linear(4, 5), nn.Linear(5, 3)
        self.weights = {"first": [self.a.weight]}
        self.layers = [nn.Linear(5, 5).requires_grad_(False)]
        self.scale = torch.tensor(2.0)
        self.features: list[Tensor] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        h = (self.scale * F.linear(x, self.weights["first"][0], self.a.bias)).tanh()
        self.features.append(h)
        self.calls += 1
        return self.o(self.layers[0](h))


class KeepsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = torch.nn.utils.weight_norm(nn.Linear(4, 5))
        self.o = nn.Linear(5, 3)
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        self.penalty = h.square().mean()
        return self.o(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.r, self.o = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(torch.stack([x, x.flip(1)], dim=1))[0][:, -1])


MODELS: list[Callable[[], nn.Module]] = [
    Aliased,
    Tied,
    Listed,
    KeepsFeatures,
    Recurrent,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_model_itself(
    build: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    model, (x, y) = build(), common_data()
    found = Objective(model, "cross_entropy", (x, y), dtype=dtype)
    gradient = found.unflatten(found.gradient())
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradient[name].float(), parameter.grad, rtol=1e-4, atol=1e-6
            )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("build", MODELS)
def test_the_model_holds_the_same_objects_afterwards(
    build: Callable[[], nn.Module],
) -> None:
    model, (x, y) = build(), common_data()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x)  # features and normalized weights are there before
    before = _everything(model)
    gradient_norm(model, "cross_entropy", (x, y), dtype=torch.float64)
    with pytest.raises(ZeroDivisionError):
        Objective(model, _failing_after(3), (x, y), check=False).gradient()
    assert _everything(model) == before
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert not any(
        torch.equal(w, p)
        for w, p in zip(weights, model.parameters(), strict=True)
        if p.grad is not None
    )


def _failing_after(calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError

    return loss


def _everything(model: nn.Module) -> list[tuple[str, object]]:
    """Who stands where, by identity, and the contents."""
    found: list[tuple[str, object]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            found += [
                (f"{name}.{key}", (id(t), t.dtype, t.tolist()))
                for key, t in table.items()
                if t is not None
            ]
        for key, value in module.__dict__.items():
            if isinstance(value, list):
                found += [(f"{name}.{key}", [id(part) for part in value])]
            elif key not in ("_parameters", "_buffers"):
                found += [(f"{name}.{key}", id(value))]
    return found


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_model_that_keeps_features_can_be_copied() -> None:
    model, (x, _) = KeepsFeatures(), common_data()
    expected = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    torch.testing.assert_close(copied(model)(x), expected)


def test_a_scripted_module_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(UsageError, match="Give the module that it was scripted from"):
        Placement(scripted)


# State that is reached past the arguments


def penalty(model: nn.Module) -> Tensor:
    return 0.1 * torch.stack([p.square().sum() for p in model.parameters()]).sum()


def test_a_loss_that_holds_the_model_sees_its_weights() -> None:
    model, data = Aliased().double(), common_data()
    inside = Closure(
        lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]) + penalty(m)
    )
    holding = Objective(
        model, lambda o, t: F.cross_entropy(o, t) + penalty(model), data
    )
    given = Objective(model, inside, data)
    for point in (given.point, given.point + 0.3):
        torch.testing.assert_close(holding.gradient(point), given.gradient(point))
    assert holding.reads_model
    assert not Objective(model, "cross_entropy", data).reads_model


def test_a_loss_that_holds_the_parameters_themselves_is_refused() -> None:
    model, data = Aliased(), common_data()
    held = list(model.parameters())
    with pytest.raises(
        UsageError, match=r"reads the parameter 'a.weight' itself.*model.parameters\(\)"
    ):
        Objective(
            model, lambda o, t: F.cross_entropy(o, t) + held[0].square().sum(), data
        )


# Parameters of unusual shapes


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 3)
        self.logit_scale = nn.Parameter(torch.tensor(1.3))
        self.nothing = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_scale.exp() * self.l(x) + self.nothing.sum()


def test_parameters_without_axes_and_without_elements() -> None:
    model, (x, y) = Scaled(), common_data()
    objective = Objective(model, "cross_entropy", (x, y), dtype=torch.float64)
    assert objective.size == 16
    gradient = objective.unflatten(objective.gradient())
    F.cross_entropy(model(x), y).backward()
    assert float(gradient["logit_scale"]) == pytest.approx(
        float(model.logit_scale.grad), rel=1e-5
    )
    assert gradient["nothing"].shape == (0, 3)
    operator = HessianOperator(model, "cross_entropy", (x, y), dtype=torch.float64)
    dense = hessian_matrix(model, "cross_entropy", (x, y)).matrix
    torch.testing.assert_close(
        operator @ torch.eye(16).double(), torch.from_numpy(dense)
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_sparse_gradients_are_those_of_the_dense_form(seed: int) -> None:
    torch.manual_seed(seed)
    ids, y = torch.randint(0, 7, (9, 2)), torch.randint(0, 3, (9,))
    norms = []
    for sparse in (True, False):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3)
        )
        norms.append(gradient_norm(model, "cross_entropy", (ids, y)).norm)
        assert model[0].sparse is sparse
    assert norms[0] == norms[1]


def test_weights_that_the_forward_pass_changes_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(4, 3)
    )
    data = torch.randint(0, 7, (9, 1)), torch.randint(0, 3, (9,))
    for within_bounds in (False, True):
        if within_bounds:
            model(data[0])
        with pytest.raises(
            UsageError,
            match=r"changes the parameter '0.weight' in place.*max_norm=None",
        ):
            hessian_matrix(model, "cross_entropy", data)
    assert Objective(model, "cross_entropy", data, parameters="2.*").size == 15
    model[0].max_norm = None
    assert Objective(model, "cross_entropy", data).size == 43

    class Clipping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    with pytest.raises(
        UsageError, match=r"changes the parameter 'weight' in place.*changed copy"
    ):
        Objective(Clipping(4, 3), "cross_entropy", common_data())


def test_complex_weights_are_refused_with_the_form_that_works() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
            self.o = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o((x.to(self.w.dtype) @ self.w).abs())

    x, y = common_data()
    with pytest.raises(UsageError, match=r"'w' is complex.*view_as_real"):
        gradient_norm(Complex(), "cross_entropy", (x, y))
    assert gradient_norm(Complex(), "cross_entropy", (x, y), parameters="o.*").norm > 0


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32_and_said(kind: torch.dtype) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    data = common_data()
    half = sharpness(model.to(kind), "cross_entropy", data)
    same = sharpness(model.float(), "cross_entropy", data)
    assert half.sharpness == pytest.approx(same.sharpness, rel=1e-4)
    assert any("measured in float32" in note for note in half.notes)
    with pytest.raises(UsageError, match="is impossible: differences would be lost"):
        Objective(model, "cross_entropy", data, dtype=kind)


def test_models_of_mixed_precision_are_measured_in_the_widest() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).to(self.b.weight.dtype))

    assert Objective(Mixed(), "cross_entropy", common_data()).dtype == torch.float64
