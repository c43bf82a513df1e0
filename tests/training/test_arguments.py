"""What people hand to a training by habit is refused in one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nablab import training
from nablab.errors import UsageError

X, Y = torch.randn(20, 3), torch.randn(20, 1)


def build() -> nn.Module:
    return nn.Linear(3, 1)


def fit(**options: Any) -> training.Training:
    chosen = {"build": build, "data": (X, Y), "seeds": [0], "steps": 2, **options}
    return training.fit(chosen.pop("build"), chosen.pop("data"), **chosen)


def mean(net: nn.Module, batch: Any, moment: Any) -> dict[str, torch.Tensor]:
    return {"loss": net(batch["x"]).mean()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adam"},
            "optimizer='adam' is not an optimizer spec.*training.Adam",
        ),
        ({"optimizer": torch.optim.Adagrad}, "optimizer=Adagrad is not an.*Learner"),
        (
            {"optimizer": torch.optim.Adam(build().parameters())},
            "optimizer=Adam is not an optimizer specification. Give one",
        ),
        ({"data": DataLoader(TensorDataset(X, Y))}, "pair .*got a DataLoader"),
        ({"data": {"x": X, "y": Y}}, "pair .*got a dict"),
        ({"data": (X, Y, Y)}, "pair .*got a tuple"),
        ({"data": ((X, X), Y)}, "x must be one tensor.*a tuple of several.*Minimize"),
        ({"data": (X, [Y, Y])}, "y must be one tensor.*a list of several"),
        ({"data": ({"a": X}, Y)}, "x must be one tensor.*a dict of several"),
        ({"build": build()}, "this is Linear itself.*lambda: Linear"),
        ({"build": "mlp"}, "A function that builds .* got a str"),
        ({"seeds": 3}, r"seeds=3 is not a sequence of seeds.*range\(3\)"),
        ({"seeds": "012"}, "seeds='012' is not a sequence of seeds"),
    ],
)
def test_what_a_training_cannot_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(**options)


def test_learners_need_a_function_too() -> None:
    with pytest.raises(UsageError, match="this is Linear itself"):
        training.Minimize(build(), mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [(X, Y), [X, Y], (X.numpy(), Y.numpy())])
@pytest.mark.parametrize("make", [tuple, list, lambda seeds: range(len(seeds))])
def test_what_it_takes(data: Any, make: Callable[[Any], Any]) -> None:
    assert len(fit(data=data, seeds=make([0, 1]))) == 2
    rows = [[1.0, 2.0, 3.0]] * 4, [[0.0]] * 4
    assert len(fit(data=rows)) == 1
