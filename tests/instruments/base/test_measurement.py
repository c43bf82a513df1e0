"""Results as plain types, and what a call will cost."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from nablab import instruments
from nablab.errors import UsageError
from nablab.instruments.base.measurement import Instrument, Measurement, plain

DATA = torch.randn(40, 3), torch.randn(40, 1)


@dataclass(frozen=True, kw_only=True)
class Inner(Measurement):
    values: np.ndarray
    named: dict[str, float]


def test_results_become_json() -> None:
    result = Inner(
        gradients=1.5,
        values=np.array([1.0, np.nan]),
        named={"a": float("inf")},
        notes=("n",),
    )
    expected = {
        "gradients": 1.5,
        "notes": ["n"],
        "values": [1.0, None],
        "named": {"a": None},
    }
    assert json.loads(json.dumps(result.to_dict())) == expected


def test_long_arrays_give_their_shape() -> None:
    assert plain(np.zeros((50, 50))) == {"shape": [50, 50]}
    assert plain(torch.arange(3)) == [0, 1, 2]
    assert plain((np.float32(1), np.int64(2), True, "text")) == [1.0, 2, True, "text"]


@pytest.mark.parametrize("name", instruments.INSTRUMENTS)
def test_every_instrument_documents_what_it_takes(name: str) -> None:
    chosen = getattr(instruments, name)
    assert isinstance(chosen, Instrument)
    documentation = chosen.__doc__ or ""
    from nablab.cli.measuring import option_facts

    for option in option_facts(name)["options"]:
        assert option["help"], f"{name}: '{option['name']}' is not explained"
    assert "Args:" in documentation
    assert "Raises:" in documentation
    assert ">>>" in documentation
    assert not name.startswith("_")
    assert name in instruments.__all__


def test_a_cost_is_measured_before_the_call() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    small = instruments.cost("hessian_trace", model, "mse", DATA, products=10)
    large = instruments.cost("hessian-trace", model, "mse", DATA, products=40)
    # The graph is kept, so that a vector costs two gradients.
    assert large.gradients - small.gradients == pytest.approx(2 * 30)
    assert small.seconds > 0
    assert small.bytes > 0
    assert json.loads(json.dumps(small.to_dict())).keys() == {
        "gradients",
        "seconds",
        "bytes",
        "notes",
    }


def test_the_bytes_hold_the_copies_of_the_weights_and_the_graph_of_a_product() -> None:
    model = nn.Sequential(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 1))
    size = sum(parameter.numel() for parameter in model.parameters())
    gradient = instruments.cost("gradient_norm", model, "mse", DATA).bytes
    product = instruments.cost("hessian_trace", model, "mse", DATA, products=4).bytes
    assert gradient >= 5 * 4 * size  # values, point, leaves, gradient, and its sum
    assert product > gradient


def test_models_without_a_second_derivative_have_a_cost() -> None:
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 1))
    data = torch.randint(0, 5, (6, 2)), torch.randn(6, 1)
    assert instruments.cost("hessian_trace", model, "mse", data).seconds > 0


def test_the_expected_cost_is_near_what_was_spent() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    for name, options in (
        ("hessian_trace", {"products": 30}),
        ("spectral_density", {"probes": 2, "steps": 20}),
    ):
        expected = instruments.cost(name, model, "mse", DATA, **options).gradients
        spent = getattr(instruments, name)(model, "mse", DATA, **options).gradients
        assert 0.5 * expected < spent < 1.5 * expected


def test_unknown_instruments_and_options_are_said() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(UsageError, match="Did you mean 'hessian_trace'"):
        instruments.cost("hesian_trace", model, "mse", DATA)
    with pytest.raises(
        UsageError,
        match=r"no option of hessian_trace 'prodcts'\. Did you mean 'products'",
    ):
        instruments.cost("hessian_trace", model, "mse", DATA, prodcts=3)
    with pytest.raises(UsageError, match="has no gradient"):
        instruments.cost(
            "hessian_trace", model, lambda output, target: output.detach().mean(), DATA
        )
