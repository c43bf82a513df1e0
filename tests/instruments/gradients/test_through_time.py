"""Gradients by the states of a recurrent network, against closed forms and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.gradients.through_time import state_gradient_norms


def test_an_rnn_of_one_unit_has_a_closed_form() -> None:
    layer = nn.RNN(1, 1, batch_first=True).double()
    with torch.no_grad():
        layer.weight_hh_l0.fill_(0.6)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    # At zero tanh has slope 1, so each word multiplies the gradient by 0.6.
    found = state_gradient_norms(
        layer, torch.zeros(2, 9, 1).double(), lambda h: h[:, -1].sum()
    )
    wanted = 0.6 ** torch.arange(8, -1, -1).double()
    torch.testing.assert_close(found, wanted.expand(2, 9))


def test_an_orthogonal_linear_recurrence_keeps_the_norm() -> None:
    torch.manual_seed(0)
    layer = nn.RNN(3, 5, nonlinearity="relu", batch_first=True).double()
    with torch.no_grad():
        # A permutation is orthogonal, and keeps positive states positive.
        layer.weight_hh_l0.copy_(torch.eye(5)[torch.randperm(5)])
        layer.bias_hh_l0.fill_(9)
    x = torch.randn(4, 12, 3).double()
    found = state_gradient_norms(layer, x, lambda h: h[:, -1].sum())
    torch.testing.assert_close(found, torch.full((4, 12), 5**0.5).double())


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_first_state_agrees_with_autograd(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, batch_first=True).double()
    x = torch.randn(2, 6, 3).double()

    def loss_of(h: torch.Tensor) -> torch.Tensor:
        return h.square().sum() + h[:, -1].sum()

    found = state_gradient_norms(layer, x, loss_of)
    _, state = layer(x[:, :1])
    parts = state if isinstance(state, tuple) else (state,)
    parts = tuple(part.detach().requires_grad_() for part in parts)
    rest, _ = layer(x[:, 1:], parts if len(parts) > 1 else parts[0])
    loss = loss_of(torch.cat([parts[0].transpose(0, 1), rest], dim=1))
    slopes = torch.autograd.grad(loss, parts)
    wanted = sum(slope[0].square().sum(-1) for slope in slopes)
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(found[:, 0], wanted.sqrt())


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(2, 2),
        nn.LSTM(2, 2, batch_first=True, bidirectional=True),
        nn.GRU(2, 2, num_layers=2, batch_first=True),
    ],
)
def test_other_layers_are_refused(layer: nn.RNNBase) -> None:
    with pytest.raises(UsageError, match="one layer in one direction"):
        state_gradient_norms(layer, torch.zeros(1, 2, 2), lambda h: h.sum())
