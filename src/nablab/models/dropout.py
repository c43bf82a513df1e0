"""Dropout in a network that was written without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def with_dropout(network: nn.Module, share: float) -> nn.Module:
    """Put dropout behind every activation of a network (Srivastava et al. 2014).

    In training each output of an activation is set to 0 with a probability and the
    others are divided by what is left, so that their mean stays. The parameters keep
    their names.

    Args:
        network: Changed in place; its activations must be modules, such as `nn.ReLU`.
        share: The probability, from 0 to below 1.

    Returns:
        The network.

    Raises:
        UsageError: The network has no activation among its modules.

    >>> from nablab.models import dense
    >>> [type(part).__name__ for part in with_dropout(dense((9, 4, 2)), 0.5)[1]]
    ['LeakyReLU', 'Dropout']
    """
    from torch import nn

    kinds = (
        nn.ReLU,
        nn.LeakyReLU,
        nn.ELU,
        nn.GELU,
        nn.SiLU,
        nn.Tanh,
        nn.Sigmoid,
    )
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]
    if not places:
        raise UsageError(
            f"{type(network).__name__} has no activation among its modules, so there "
            "is no place for dropout. Write activations as modules, such as nn.ReLU(), "
            "or leave the kind dropout out."
        )
    for parent, name, child in places:
        setattr(parent, name, nn.Sequential(child, nn.Dropout(share)))
    return network
