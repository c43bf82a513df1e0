"""Neurons, two layers and margins: against autograd, an SVM, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nablab.from_scratch.gates import GATES, Gate, with_constant
from nablab.from_scratch.margins import maximum_margin, separable_points
from nablab.from_scratch.neurons import Loss, Perceptron, SigmoidUnit, sigmoid
from nablab.from_scratch.two_layers import TwoLayers

LOSSES: list[Loss] = ["cross-entropy", "squared error"]


def loss_of(outputs: torch.Tensor, targets: torch.Tensor, loss: Loss) -> torch.Tensor:
    if loss == "cross-entropy":
        return torch.nn.functional.binary_cross_entropy(outputs, targets)
    return 0.5 * (outputs - targets).square().mean()


def test_gates_are_what_they_are_called() -> None:
    rows = {name: gate.inputs.astype(bool) for name, gate in GATES.items()}
    a, b = rows["and"].T
    assert np.array_equal(GATES["and"].values, a & b)
    assert np.array_equal(GATES["or"].values, a | b)
    assert np.array_equal(GATES["nand"].values, ~(a & b))
    assert np.array_equal(GATES["nor"].values, ~(a | b))
    assert np.array_equal(GATES["xor"].values, a ^ b)
    a, b, c = rows["not-xor-and"].T
    assert np.array_equal(GATES["not-xor-and"].values, ~((a ^ b) & c))


@pytest.mark.parametrize("gate", GATES.values(), ids=lambda gate: gate.name)
def test_a_gate_is_separable_if_a_plane_parts_it(gate: Gate) -> None:
    margin = maximum_margin(with_constant(gate.inputs), 2 * gate.values - 1)
    assert (margin > 0) == gate.separable


def test_the_sigmoid_never_overflows() -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = sigmoid(np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0]))
    expected = torch.sigmoid(torch.tensor([-1000.0, -1, 0, 1, 1000]).double())
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_a_unit_is_that_of_autograd(loss: Loss) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), (rng.random(7) > 0.5).astype(float)
    unit = SigmoidUnit(rng.normal(size=3), loss)
    weights = torch.tensor(unit.weights, requires_grad=True)
    outputs = torch.sigmoid(torch.tensor(x) @ weights)
    loss_of(outputs, torch.tensor(y), loss).backward()
    np.testing.assert_allclose(unit.gradient(x, y), weights.grad, atol=1e-12)
    before = unit.weights
    unit.step(x, y, 0.5)
    np.testing.assert_allclose(before - unit.weights, 0.5 * weights.grad, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden_units", [1, 2, 8])
def test_the_gradients_of_two_layers_are_those_of_autograd(
    loss: Loss, hidden_units: int
) -> None:
    rng = np.random.default_rng(hidden_units)
    x, y = rng.normal(size=(5, 3)), (rng.random(5) > 0.5).astype(float)
    net = TwoLayers.start(3, hidden_units, rng, loss)
    hidden = torch.tensor(net.hidden, requires_grad=True)
    output = torch.tensor(net.output, requires_grad=True)
    activations = torch.sigmoid(torch.tensor(x) @ hidden[:, :-1].T + hidden[:, -1])
    outputs = torch.sigmoid(activations @ output[:-1] + output[-1])
    np.testing.assert_allclose(net.predict(x), outputs.detach(), atol=1e-12)
    loss_of(outputs, torch.tensor(y), loss).backward()
    by_hidden, by_output = net.gradients(x, y)
    np.testing.assert_allclose(by_hidden, hidden.grad, atol=1e-12)
    np.testing.assert_allclose(by_output, output.grad, atol=1e-12)


def test_a_perceptron_adds_what_it_got_wrong() -> None:
    neuron = Perceptron(np.zeros(2))
    assert neuron.learn(np.array([1.0, 2.0]), -1.0)  # a sum of 0 is wrong
    assert neuron.weights.tolist() == [-1.0, -2.0]
    assert not neuron.learn(np.array([1.0, 2.0]), -1.0)
    assert neuron.mistakes == 1
    assert neuron.predict(np.array([[1.0, 1.0], [-1.0, -1.0]])).tolist() == [-1.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 30),
    dimensions=st.integers(1, 6),
    margin=st.floats(0.05, 0.6),
)
def test_mistakes_stay_under_novikoffs_bound(
    seed: int, count: int, dimensions: int, margin: float
) -> None:
    rng = np.random.default_rng(seed)
    points, classes = separable_points(count, dimensions, margin, rng)
    found = maximum_margin(points, classes)
    assert found >= margin * (1 - 1e-9)
    neuron = Perceptron(np.zeros(dimensions))
    while sum([neuron.learn(x, y) for x, y in zip(points, classes, strict=True)]):
        pass
    radius = np.linalg.norm(points, axis=1).max()
    assert neuron.mistakes <= (radius / found) ** 2
    assert np.array_equal(neuron.predict(points), classes)


def test_the_maximum_margin_is_that_of_quadratic_programming() -> None:
    from scipy.optimize import minimize

    points, classes = separable_points(40, 3, 0.1, np.random.default_rng(5))
    signed = classes[:, None] * points
    found = minimize(
        lambda w: 0.5 * w @ w,
        np.ones(3),
        jac=lambda w: w,
        constraints={"type": "ineq", "fun": lambda w: signed @ w - 1},
        method="SLSQP",
        tol=1e-12,
    )
    theirs = 1 / np.linalg.norm(found.x)
    assert maximum_margin(points, classes) == pytest.approx(theirs, rel=1e-6)


def test_margins_by_hand() -> None:
    line = np.array([[2.0, 0.0], [-3.0, 0.0]])
    assert maximum_margin(line, np.array([1.0, -1.0])) == pytest.approx(2.0)
    square = np.array([[3.0, 1.0], [3.0, -1.0], [-4.0, 2.0]])
    assert maximum_margin(square, np.array([1.0, 1.0, -1.0])) == pytest.approx(3.0)
    assert maximum_margin(line, np.array([1.0, 1.0])) == 0.0


def test_points_lie_in_the_ball_and_outside_the_gap() -> None:
    points, classes = separable_points(200, 2, 0.3, np.random.default_rng(0))
    assert points.shape == (200, 2)
    assert np.linalg.norm(points, axis=1).max() <= 1 + 1e-12
    assert maximum_margin(points, classes) >= 0.3 - 1e-9
    assert set(classes.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_points_are_uniform_outside_the_gap(dimensions: int) -> None:
    """Against points that are drawn in the whole ball, without those in the gap."""
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(3)
    points, classes = separable_points(3_000, dimensions, 0.3, rng)
    assert abs(classes.mean()) < 0.06
    cube = rng.uniform(-1, 1, size=(60_000, dimensions))
    ball = cube[np.linalg.norm(cube, axis=1) <= 1]
    kept = ball[np.abs(ball[:, 0]) >= 0.3]
    signed = classes[:, None] * points
    # the best plane is nearly the one they were drawn with
    normal = signed.mean(0) / np.linalg.norm(signed.mean(0))
    assert ks_2samp(signed @ normal, np.abs(kept[:, 0])).pvalue > 1e-3
    lengths = np.linalg.norm(points, axis=1), np.linalg.norm(kept, axis=1)
    assert ks_2samp(*lengths).pvalue > 1e-3


def test_a_wide_gap_in_many_dimensions_is_drawn_at_once() -> None:
    points, classes = separable_points(20, 1_000, 0.6, np.random.default_rng(0))
    assert np.linalg.norm(points, axis=1).max() <= 1 + 1e-12
    assert maximum_margin(points, classes) >= 0.6 - 1e-9
    with pytest.raises(ValueError, match="take a smaller one, or fewer dimensions"):
        separable_points(20, 1_000, 0.9, np.random.default_rng(0))
