"""Input sensitivity against closed forms and PyTorch's jacobian, and refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import Size
from nablab.instruments.gradients.sensitivity import input_sensitivity


def network(inputs: int = 6, outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, outputs)
    ).double()


def points(count: int = 9, inputs: int = 6) -> Tensor:
    return torch.randn(
        count, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def jacobians(model: nn.Module, x: Tensor, softmax: bool = False) -> Tensor:
    """(N, C, D) by PyTorch's own function, one sample after the other."""

    def outputs(one: Tensor) -> Tensor:
        found = model(one[None])
        return (found.softmax(1) if softmax else found).flatten()

    rows = [torch.autograd.functional.jacobian(outputs, one) for one in x]
    return torch.stack([row.reshape(row.shape[0], -1) for row in rows])


class LeNet(nn.Module):
    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.view = view
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x)
        return self.head(found.view(len(x), -1) if self.view else found.flatten(1))


def test_a_linear_model_in_closed_form() -> None:
    model = nn.Linear(6, 4).double()
    x = points()
    weight = model.weight.detach()
    result = input_sensitivity(model, x)
    np.testing.assert_allclose(
        result.norms, np.full(9, float(weight.norm())), rtol=1e-12
    )
    np.testing.assert_array_equal(result.errors, 0)
    spectral = input_sensitivity(model, x, norm="spectral")
    assert spectral.mean == pytest.approx(
        float(torch.linalg.matrix_norm(weight, 2)), rel=1e-12
    )
    y = torch.randn(9, 4).double()
    slopes = 2 / 4 * (x @ weight.T + model.bias.detach() - y) @ weight
    gradient = input_sensitivity(model, (x, y), norm="loss-gradient", loss="mse")
    np.testing.assert_allclose(gradient.norms, slopes.norm(dim=1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("of", ["logits", "probabilities"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_against_functional_jacobian(of: Any, norm: Any) -> None:
    model, x = network(), points()
    truth = jacobians(model, x, softmax=of == "probabilities")
    expected = torch.linalg.matrix_norm(truth, "fro" if norm == "frobenius" else 2)
    result = input_sensitivity(model, x, norm=norm, of=of)
    np.testing.assert_allclose(result.norms, expected.numpy(), rtol=1e-10)
    assert result.method == "reverse"
    assert result.converged
    assert result.mean == pytest.approx(result.norms.mean())
    assert result.standard_error == pytest.approx(result.norms.std(ddof=1) / 3)
    assert result.root_mean_square == pytest.approx(math.sqrt(np.mean(result.norms**2)))


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_few_inputs_use_forward_mode(norm: Any) -> None:
    model, x = network(2, 9), points(5, 2)
    expected = torch.linalg.matrix_norm(
        jacobians(model, x), "fro" if norm == "frobenius" else 2
    )
    result = input_sensitivity(model, x, norm=norm)
    assert result.method == "forward"
    np.testing.assert_allclose(result.norms, expected.numpy(), rtol=1e-10)


def test_a_model_without_forward_mode_falls_back_and_says_so() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            context.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(context: Any, slope: Tensor) -> Tensor:
            return 2 * context.saved_tensors[0] * slope

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 9).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(Square.apply(x))

    model, x = Model(), points(3, 2)
    result = input_sensitivity(model, x)
    assert result.method == "reverse"
    assert any("no forward-mode derivative" in note for note in result.notes)
    np.testing.assert_allclose(
        result.norms, jacobians(model, x).flatten(1).norm(dim=1).numpy(), rtol=1e-12
    )


@pytest.mark.parametrize("view", [False, True])
def test_convolutions_in_any_layout(view: bool) -> None:
    torch.manual_seed(0)
    model = LeNet(view)
    x = torch.randn(7, 1, 28, 28)
    result = input_sensitivity(model, x, batch_size=3)
    truth = jacobians(model, x).flatten(1).norm(dim=1)
    np.testing.assert_allclose(result.norms, truth.numpy(), rtol=1e-5)
    assert 11 / 3 <= result.gradients < 5


def test_batches_of_any_size_give_the_same_norms() -> None:
    model, x, y = network(), points(), torch.randn(9, 4).double()
    whole = input_sensitivity(model, (x, y), norm="loss-gradient", loss="mse").norms
    ragged = [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]
    np.testing.assert_allclose(
        input_sensitivity(model, ragged, norm="loss-gradient", loss="mse").norms,
        whole,
        rtol=1e-12,
    )
    exact = input_sensitivity(model, x).norms
    np.testing.assert_allclose(
        input_sensitivity(model, ragged).norms, exact, rtol=1e-12
    )
    np.testing.assert_allclose(
        input_sensitivity(model, x, batch_size=2).norms, exact, rtol=1e-12
    )
    data = torch.utils.data.TensorDataset(x, y)
    np.testing.assert_allclose(input_sensitivity(model, data).norms, exact, rtol=1e-12)
    np.testing.assert_allclose(
        input_sensitivity(model, iter([x[:4], x[4:]])).norms, exact, rtol=1e-12
    )


def test_loss_gradients_of_cross_entropy() -> None:
    model, x, y = network(), points(), torch.arange(9) % 4
    result = input_sensitivity(
        model, (x, y), norm="loss-gradient", loss="cross_entropy"
    )
    for i in range(9):
        one = x[i : i + 1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            nn.functional.cross_entropy(model(one), y[i : i + 1]), one
        )
        assert result.norms[i] == pytest.approx(float(slope.norm()), rel=1e-10)


def test_projections_are_unbiased_and_their_errors_are_right() -> None:
    model, x = network(6, 30), points(400)
    exact = input_sensitivity(model, x, method="exact")
    result = input_sensitivity(model, x, method="projections", projections=25)
    assert result.method == "projections"
    # Squares are unbiased: over 400 x 25 projections the root mean square is good to
    # about 1 %.
    assert result.root_mean_square == pytest.approx(exact.root_mean_square, rel=0.02)
    deviations = (result.norms - exact.norms) / result.errors
    assert 0.85 < float(np.sqrt(np.mean(deviations**2))) < 1.25
    same = input_sensitivity(model, x, method="projections", projections=25)
    np.testing.assert_array_equal(result.norms, same.norms)
    other = input_sensitivity(model, x, method="projections", projections=25, seed=1)
    assert not np.allclose(result.norms, other.norms, rtol=1e-3)


def test_many_inputs_and_outputs_are_projected_and_said() -> None:
    model, x = network(300, 300), points(4, 300)
    result = input_sensitivity(model, x)
    assert result.method == "projections"
    assert any(
        "300 outputs" in note and "method='exact'" in note for note in result.notes
    )
    exact = input_sensitivity(model, x, method="exact")
    assert exact.method == "reverse"
    assert (np.abs(result.norms - exact.norms) < 5 * result.errors).all()


def test_power_iteration() -> None:
    model, x = network(70, 80), points(5, 70)
    truth = torch.linalg.matrix_norm(jacobians(model, x), 2).numpy()
    result = input_sensitivity(
        model, x, norm="spectral", iterations=500, tolerance=1e-6
    )
    assert result.method == "power iteration"
    assert result.converged
    np.testing.assert_allclose(result.norms, truth, rtol=1e-8)
    early = input_sensitivity(model, x, norm="spectral", iterations=2, tolerance=1e-6)
    assert not early.converged
    assert (early.norms <= truth * (1 + 1e-12)).all()


def test_softmax_outputs_of_one_model_two_ways() -> None:
    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).softmax(1)

    model, x = Probabilities(), points()
    np.testing.assert_allclose(
        input_sensitivity(model, x).norms,
        input_sensitivity(model.inner, x, of="probabilities").norms,
        rtol=1e-12,
    )


def test_several_inputs_frozen_weights_and_recurrent_networks() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(3, 4, batch_first=True)

        def forward(self, sequence: Tensor, scale: Tensor, place: Tensor) -> Tensor:
            return self.recurrent(sequence)[0][torch.arange(len(place)), place] * scale

    torch.manual_seed(0)
    model = Two().double().requires_grad_(False)
    x = torch.randn(3, 5, 3).double()
    scale = torch.rand(3, 1).double()
    place = torch.tensor([0, 4, 2])
    result = input_sensitivity(model, {"sequence": x, "scale": scale, "place": place})
    for i in range(3):
        parts = torch.autograd.functional.jacobian(
            lambda a, b, i=i: model(a, b, place[i : i + 1])[0],
            (x[i : i + 1], scale[i : i + 1]),
        )
        truth = math.sqrt(sum(float(part.square().sum()) for part in parts))
        assert result.norms[i] == pytest.approx(truth, rel=1e-10)
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def test_samples_that_mix_are_refused() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - x.mean(0))

    with pytest.raises(
        UsageError, match=r"depend on other samples of its batch.*model\.eval\(\)"
    ):
        input_sensitivity(Centered(), points())
    with pytest.raises(UsageError, match=r"model\.eval\(\)"):
        input_sensitivity(
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double(), points()
        )
    with pytest.raises(UsageError, match=r"random.*model\.eval\(\)"):
        input_sensitivity(
            nn.Sequential(nn.Linear(6, 40), nn.Dropout()).double(), points()
        )

    def total(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum()

    with pytest.raises(UsageError, match=r"not the mean over its samples"):
        input_sensitivity(
            network(), (points(), torch.zeros(9, 4)), norm="loss-gradient", loss=total
        )


def test_usage_errors() -> None:
    model, x = network(), points()
    with pytest.raises(
        UsageError, match=r"no norm 'frobenus'. Did you mean 'frobenius'"
    ):
        input_sensitivity(model, x, norm="frobenus")  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"needs loss=: a name such as 'cross_entropy'"
    ):
        input_sensitivity(model, (x, x), norm="loss-gradient")
    with pytest.raises(UsageError, match=r"needs targets"):
        input_sensitivity(model, x, norm="loss-gradient", loss="mse")
    with pytest.raises(UsageError, match=r"no floating-point tensor.*embeddings"):
        input_sensitivity(nn.Embedding(5, 3), torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(UsageError, match=r"at least 2 projections"):
        input_sensitivity(model, x, method="projections", projections=1)
    with pytest.raises(UsageError, match=r"logits of at least two classes.*\(9, 1\)"):
        input_sensitivity(network(6, 1), x, of="probabilities")

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() * 2

    with pytest.raises(UsageError, match=r"do not depend on the inputs.*detached"):
        input_sensitivity(Rounded(), x)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(
        UsageError, match=r"returns a tuple for 9 samples.*Wrap the model"
    ):
        input_sensitivity(Pair(), x)


def test_nothing_is_changed() -> None:
    model, x = network(), points()
    before, state = x.clone(), torch.get_rng_state()
    with torch.no_grad():
        input_sensitivity(model, x, method="projections")
        input_sensitivity(model, x, norm="spectral")
    assert torch.equal(before, x)
    assert not x.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert list(model._modules) == ["0", "1", "2"]


def test_the_expected_cost_and_the_figure() -> None:
    size = Size(parameters=10, samples=9, outputs=4)
    assert input_sensitivity.expected(size).gradients == pytest.approx(5 / 3)
    assert input_sensitivity.expected(
        size, norm="loss-gradient"
    ).gradients == pytest.approx(2 / 3)
    result = input_sensitivity(network(), points(200))
    assert 5 / 3 <= result.gradients < 2.1
    (axes,) = result.plot().axes
    assert axes.get_xlabel() == "frobenius norm of the Jacobian in the input"
    assert sum(patch.get_height() for patch in axes.patches[:20]) == 200
    assert axes.lines[0].get_xdata()[0] == pytest.approx(result.mean)
