"""Targets: exact values at the points where they are known, and one clear error for
everything else.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nablab import data
from nablab.data.functions.expressions import FUNCTIONS
from nablab.data.functions.targets import sawtooth, tent
from nablab.errors import UsageError


@pytest.mark.parametrize(
    ("name", "low", "high", "points"),
    [
        ("sinc", -1, 1, 300),
        ("sign_sin", -1, 1, 300),
        ("quadratic_sine", -2, 2, 4_000),
        ("sine_plus_x", 1, 10, 100_000),
        ("cosine_over_x", 1, 5, 2_000),
        ("sawtooth", 0, 1, 257),
        ("sawtooth-3", 0, 1, 129),
        ("x**2", -1, 1, 300),
    ],
)
def test_known_targets_have_their_domain_and_number_of_points(
    name: str, low: float, high: float, points: int
) -> None:
    target = data.target(name)
    x, y = target.train()
    assert x.shape == y.shape == (points, 1)
    assert x.dtype == y.dtype == torch.float32
    assert (x[0].item(), x[-1].item()) == (low, high)
    assert target.name == name


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("sinc", [0.0, 0.2, 0.1, -0.1], [1.0, 0.0, 2 / np.pi, 2 / np.pi]),
        ("sign_sin", [-1.0, -0.2, 0.0, 0.2, 0.4, 1.0], [0.0] * 6),
        ("sign_sin", [0.1, 0.3, -0.1, -0.3, 0.9], [1.0, -1.0, -1.0, 1.0, 1.0]),
        ("quadratic_sine", [0.0, np.pi / 2], [0.0, 1 + np.pi**2 / 4]),
        ("sine_plus_x", [np.pi, np.pi / 2], [np.pi, 1 + np.pi / 2]),
        ("cosine_over_x", [np.pi, np.pi / 2], [-1 / np.pi, 0.0]),
        (
            "sawtooth-2",
            [0.0, 0.25, 0.5, 0.75, 1.0, 0.125],
            [0.0, 1.0, 0.0, 1.0, 0.0, 0.5],
        ),
    ],
)
def test_values_in_closed_form(name: str, x: list[float], y: list[float]) -> None:
    truth = data.target(name).truth(x)
    assert truth.dtype == np.float64
    np.testing.assert_allclose(truth, y, atol=1e-15)


def test_sign_sin_agrees_with_its_definition_away_from_the_jumps() -> None:
    x = np.linspace(-1, 1, 1001) + 1e-4
    np.testing.assert_array_equal(
        data.target("sign_sin").truth(x), np.sign(np.sin(5 * np.pi * x))
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_a_sawtooth_has_the_stated_teeth_and_pieces(depth: int) -> None:
    x = np.arange(2 ** (depth + 3) + 1) / 2 ** (depth + 3)
    y = sawtooth(depth)(x)
    slopes = np.sign(np.diff(y))
    assert (y == 1).sum() == 2 ** (depth - 1)
    assert 1 + (slopes[1:] != slopes[:-1]).sum() == 2**depth
    # exact: all is dyadic
    assert np.all(np.abs(np.diff(y)) == 2**depth / 2 ** (depth + 3))


@given(st.floats(0, 1))
def test_the_tent_map_is_symmetric_and_stays_inside(x: float) -> None:
    y = tent(np.array([x, 1 - x]))
    assert 0 <= y.min() <= y.max() <= 1
    assert y[0] == pytest.approx(y[1], abs=1e-15)


@pytest.mark.parametrize("name", ["sinc", "sign_sin", "x**2@0..1@11"])
def test_held_out_points_lie_midway_between_training_points(name: str) -> None:
    target = data.target(name)
    x, _ = target.train()
    x_held, y_held = target.held_out()
    assert len(x_held) == len(x) - 1
    torch.testing.assert_close(x_held, (x[1:] + x[:-1]) / 2, atol=1e-7, rtol=0)
    np.testing.assert_allclose(
        y_held[:, 0], target.truth(target.midpoints()), rtol=1e-6
    )


def test_the_number_of_points_can_be_given() -> None:
    target = data.target("sinc")
    assert len(target.train(50)[0]) == 50
    assert len(target.held_out(50)[0]) == 49


@pytest.mark.parametrize(
    ("spec", "low", "high", "points"),
    [
        ("x*sin(x)@-3..3@400", -3, 3, 400),
        ("x*sin(x) @ 1_000 @ -3 .. 3", -3, 3, 1000),
        ("x@-pi..2*pi", -np.pi, 2 * np.pi, 300),
        ("sinc@-1.5..1.5", -1.5, 1.5, 300),
    ],
)
def test_the_domain_and_the_points_are_written_after_at_signs(
    spec: str, low: float, high: float, points: int
) -> None:
    target = data.target(spec)
    assert (target.low, target.high, target.points) == (low, high, points)


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("sin(5*pi*x)/x + 1", lambda x: np.sin(5 * np.pi * x) / x + 1),
        ("-x**2", lambda x: -(x**2)),
        ("2**-x", lambda x: 2.0**-x),
        ("1", np.ones_like),
        ("e**x - exp(x)", lambda x: np.e**x - np.exp(x)),
        ("min(x, 0) + max(x, 1)", lambda x: np.minimum(x, 0) + np.maximum(x, 1)),
        ("sinc(5*pi*x)", lambda x: np.sinc(5 * x)),
        (
            "floor(x) + abs(x) + sign(x) + tanh(x)",
            lambda x: np.floor(x) + np.abs(x) + np.sign(x) + np.tanh(x),
        ),
        ("relu(x - .5e0)", lambda x: np.maximum(x - 0.5, 0)),
    ],
)
def test_expressions_compute_what_numpy_computes(text: str, python: object) -> None:
    x = np.linspace(0.1, 3, 50)
    np.testing.assert_allclose(
        data.parse_expression(text)(x), python(x), rtol=1e-14, atol=1e-14
    )  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sin(x", r"'sin\(x' is not an expression"),
        ("", r"is not an expression"),
        ("x^2", r"'x\^2' in 'x\^2' is not allowed. A power is written x\*\*2"),
        ("x.real", r"'x.real' in 'x.real' is not allowed"),
        ("__import__('os').system('ls')", r"is not allowed"),
        ("sin(x, y=1)", r"'sin\(x, y=1\)' in .* is not allowed"),
        ("'a'*3", r"''a'' in"),
        ("1j*x", r"'1j' in"),
        ("True + x", r"'True' in"),
        ("x if x else 1", r"is not allowed. An expression may hold numbers, x, pi, e"),
        ("lambda: 1", r"is not allowed"),
        ("x > 1", r"'x > 1' in"),
        ("x // 2", r"'x // 2' in"),
        ("[x]", r"'\[x\]' in"),
        ("sin(y)", r"no name in 'sin\(y\)' 'y'.*Choices: x, pi, e"),
        ("sine(x)", r"no function in 'sine\(x\)' 'sine'. Did you mean 'sin'"),
        ("open(x)", r"no function in 'open\(x\)' 'open'"),
        ("sin + x", r"'sin' in .* needs an argument, such as sin\(x\)"),
        ("min(x)", r"min in .* takes 2 values, not 1"),
        ("sin(x, x)", r"sin in .* takes 1 value, not 2"),
        ("sin()(x)", r"is not allowed"),
        ("x+" * 150 + "x", r"at most 200 characters; this one has 301"),
        ("-" * 60 + "x", r"nested more than 40 levels"),
        ("(" * 99 + "x" + ")" * 99, None),
        ("x\0", r"is not an expression"),
    ],
)
def test_what_is_not_on_the_list_is_refused(text: str, message: str | None) -> None:
    if message is None:  # parentheses leave no trace in the tree
        assert data.parse_expression(text)(np.array([2.0])) == 2.0
        return
    with pytest.raises(UsageError, match=message):
        data.parse_expression(text)


@given(st.text(alphabet="x12.+-*/()sincoepmaxlg,@_ \"'[]", max_size=40))
def test_any_text_gives_numbers_or_a_usage_error(text: str) -> None:
    try:
        target = data.target(text)
    except UsageError:
        return
    assert np.isfinite(target.truth(target.grid())).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "sinx",
            r"no target 'sinx'. Did you mean 'sinc'\? Choices: sinc, .*expression of x",
        ),
        ("sawtooth-99", r"sawtooth-1 to sawtooth-16 exist"),
        ("sawtooth-0", r"sawtooth-1 to sawtooth-16 exist"),
        (
            "1/x@-1..1@3",
            r"'1/x@-1..1@3' is -?inf at x = 0 \(1 of 5 points have no usable value\)",
        ),
        ("sqrt(x)", r"is nan at x = -1 .*sqrt\(x\)@LOW..HIGH"),
        ("9**9**9 + x", r"is inf at x = -1"),
        ("1e300*x@1..2", r"is 1e\+300 at x = 1"),  # float32 cannot hold it
        ("sin(5*pi*x)/x", r"is nan at x = 0"),
        ("x@3..-3", r"The domain 3..-3 of 'x@3..-3' is empty"),
        ("x@1..1", r"is empty"),
        ("x@0..x", r"'x' is not an end of a domain"),
        ("x@0..1/0", r"'1/0' is not an end of a domain"),
        (
            "x@1",
            r"'@1' in 'x@1' is neither a domain such as @-3..3 nor a number of points",
        ),
        ("x@many", r"'@many' in"),
        ("x@2000000", r"to 1,000,000"),
    ],
)
def test_an_impossible_target_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.target(spec)


def test_the_depth_of_a_sawtooth_is_read_from_its_name() -> None:
    assert data.sawtooth_depth("sawtooth-12@0..0.5") == 12
    assert data.sawtooth_depth("sawtooth") == 4
    assert data.sawtooth_depth("sinc") is None


def test_every_function_of_the_list_works_on_arrays() -> None:
    x = np.linspace(0.1, 0.9, 7)
    for name, (arity, _) in FUNCTIONS.items():
        assert (
            data.parse_expression(f"{name}({', '.join(['x'] * arity)})")(x).shape
            == x.shape
        )


def test_the_package_imports_nothing_until_it_is_used() -> None:
    code = (
        "import sys; from nablab import data, models; print({'torch', 'numpy'} & "
        "set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'tarket'"):
        _ = data.tarket
    assert set(data.__all__) <= set(dir(data))
