"""What a convolutional network shows of itself: its first filters and their maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def first_convolution(network: nn.Module) -> nn.Conv2d | None:
    """Return the first convolution in the order of definition; None without one.

    >>> first_convolution(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None
    True
    """
    return next(
        (part for part in network.modules() if isinstance(part, nn.Conv2d)), None
    )


@torch.no_grad()
def outputs_inside(network: nn.Module, part: nn.Module, x: Tensor) -> Tensor:
    """Compute what one part of a network gives while the network is evaluated.

    The network's mode, its weights and its hooks are afterwards what they were.

    Args:
        network: The network.
        part: A module inside it.
        x: Inputs (N, ...).

    Returns:
        What the part gave on its first call, such as feature maps (N, C, H, W).

    Raises:
        ValueError: The network does not use the part on these inputs.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> outputs_inside(network, network[0], torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 2, 2, 2])
    """
    found: list[Tensor] = []
    modes = {module: module.training for module in network.modules()}
    hook = part.register_forward_hook(lambda _part, _given, out: found.append(out))
    try:
        network.eval()(x)
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not found:
        raise ValueError("the network does not use this part")
    return found[0].detach().clone()


def activated(network: nn.Module, part: nn.Module) -> nn.Module:
    """Return the activation that directly follows a part of a chain; else the part.

    Args:
        network: `nn.Sequential`, nested or not, or any other module.
        part: A module inside it.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    >>> activated(network, network[0])
    ReLU()
    """
    leaves = [each for each in network.modules() if not list(each.children())]
    place = next((i for i, leaf in enumerate(leaves) if leaf is part), len(leaves))
    after = leaves[place + 1] if place + 1 < len(leaves) else part
    return after if type(after).__module__ == "torch.nn.modules.activation" else part
