"""Dropout that is put into a network written without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.models import dense, with_dropout


def test_parameters_keep_their_names_and_values() -> None:
    plain, dropping = dense((5, 4, 3, 2)), with_dropout(dense((5, 4, 3, 2)), 0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(7, 5)
    assert torch.equal(plain(x), dropping.eval()(x))


def test_only_hidden_values_are_dropped_and_their_mean_stays() -> None:
    net = with_dropout(nn.Sequential(nn.Identity(), nn.ReLU()), 0.25)
    x = torch.ones(100, 100)
    assert net(x).unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert net(x).mean().item() == pytest.approx(1, abs=0.03)


def test_activations_inside_blocks_are_found() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation = nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.activation(x)
            return found

    net = with_dropout(nn.Sequential(nn.Linear(2, 2), Block()), 0.5)
    assert sum(isinstance(part, nn.Dropout) for part in net.modules()) == 1


def test_a_network_without_activations_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has no activation among its modules"):
        with_dropout(nn.Linear(2, 2), 0.5)
