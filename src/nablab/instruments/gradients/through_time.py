"""How far back a recurrent network learns: the gradient by each of its states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nablab.errors import UsageError


def state_gradient_norms(
    layer: nn.RNNBase, x: Tensor, loss_of: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""Compute the norm of the loss's gradient by the state after each word.

    The gradient by an early state is a product of one matrix per word in between
    (Bengio et al. 1994, Pascanu et al. 2013). Where their norms are below one it
    vanishes, :math:`\|\partial L / \partial h_t\| \le c\,\lambda^{T-t}` with
    :math:`\lambda < 1`, and nothing is learned of how words so far back matter.

    The state of an LSTM is the pair (h, c): its memory goes through c.

    Args:
        layer: An `nn.RNN`, `nn.LSTM` or `nn.GRU` of one layer and direction, with
            ``batch_first=True``. In float64 even norms of 1e-200 are told from 0.
        x: Inputs (N, T, inputs), nothing padded.
        loss_of: Gives the sum over texts of the loss, from the states h (N, T, hidden).

    Returns:
        (N, T): norm for each text and word.

    Raises:
        UsageError: The layer is none of these.

    >>> layer = nn.RNN(1, 1, batch_first=True).double()
    >>> x = torch.zeros(1, 5, 1).double()
    >>> state_gradient_norms(layer, x, lambda h: h[:, -1].sum())[0, -1].item()
    1.0
    """
    single = layer.num_layers == 1 and not layer.bidirectional and layer.batch_first
    if not single:
        raise UsageError(
            "Gradients through time are those of one layer in one direction, with "
            f"batch_first=True; got {layer}."
        )
    # One call per word, so that the states in between can be asked for.
    kept: list[tuple[Tensor, ...]] = []
    state = None
    with torch.enable_grad():
        for word in torch.split(x, 1, dim=1):
            _, state = layer(word, state)
            kept.append(state if isinstance(state, tuple) else (state,))
        loss = loss_of(torch.cat([parts[0] for parts in kept]).transpose(0, 1))
        flat = [part for parts in kept for part in parts]
        slopes = torch.autograd.grad(loss, flat, allow_unused=True)
    squares = [
        torch.zeros_like(part[0, :, 0]) if slope is None else slope[0].square().sum(-1)
        for part, slope in zip(flat, slopes, strict=True)
    ]
    per_word = torch.stack(squares).reshape(len(kept), -1, len(x)).sum(1)
    return per_word.sqrt().T
