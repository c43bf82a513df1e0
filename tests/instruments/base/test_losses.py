"""Losses of one's own: closures over batches of any form, and weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments import HessianOperator, Objective, Penalized, hessian_matrix
from tests.instruments.networks import case


def test_weight_decay_is_what_adam_and_sgd_descend() -> None:
    model, _, (x, y) = case("dense")
    objective = Objective(model, Penalized("mse", 0.3), (x, y), dtype=torch.float64)
    plain = Objective(model, "mse", (x, y), dtype=torch.float64)
    assert objective.loss() == pytest.approx(
        plain.loss() + 0.15 * float(plain.point.square().sum())
    )
    torch.testing.assert_close(
        objective.gradient(), plain.gradient() + 0.3 * plain.point
    )
    before = plain.point.clone()
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    nn.functional.mse_loss(model(x.double()), y.double()).backward()
    optimizer.step()
    after = torch.cat(
        [parameter.detach().flatten() for parameter in model.parameters()]
    )
    torch.testing.assert_close(after, before - 0.1 * objective.gradient())


def test_weight_decay_adds_to_the_diagonal_on_the_fast_path_too() -> None:
    model, _, data = case("dense")
    penalized = hessian_matrix(model, Penalized("mse", 0.3), data)
    assert penalized.method == "dense"
    plain = hessian_matrix(model, "mse", data)
    difference = torch.from_numpy(penalized.matrix - plain.matrix)
    torch.testing.assert_close(
        difference, 0.3 * torch.eye(len(difference), dtype=torch.float64)
    )
    operator = HessianOperator(model, Penalized("mse", 0.3), data, dtype=torch.float64)
    torch.testing.assert_close(
        operator @ torch.eye(32).double(), torch.from_numpy(penalized.matrix)
    )


def test_impossible_penalties_and_unknown_losses_are_said() -> None:
    with pytest.raises(UsageError, match="weight_decay=-1 is impossible"):
        Penalized("mse", -1)
    with pytest.raises(UsageError, match="Did you mean 'mse'"):
        Penalized("mes", 1)
