"""Dense (fully connected) networks, written by their widths.

1-10-10-1 has two hidden layers of ten units.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from nablab.errors import UsageError, unknown
from nablab.models.fields import Activation as Activation

if TYPE_CHECKING:
    from torch import nn

Widths = Sequence[int] | str

MOST_UNITS = 100_000  # in one layer; more is a typing mistake
# Weights and biases of one network: 0.4 GB in float32, and four times that with Adam's
# moments.
MOST_PARAMETERS = 100_000_000


def parse_widths(widths: Widths) -> tuple[int, ...]:
    """Read ``"1-10-20x6-1"`` (six layers of 20) as (1, 10, 20, 20, 20, 20, 20, 20, 1).

    Numbers in a sequence are checked and returned as they are.

    Raises:
        UsageError: Fewer than two widths, one that is not a positive whole number, or a
            network of too many parameters.

    >>> parse_widths("1-10-20x2-1")
    (1, 10, 20, 20, 1)
    """
    if not isinstance(widths, str):
        parsed = list(widths)
    elif not re.fullmatch(r"\d{1,6}(x\d{1,3})?(-\d{1,6}(x\d{1,3})?)*", widths):
        raise UsageError(
            f"'{widths}' is not a list of layer widths. Write them as 1-10-10-1 or "
            "1-10-20x6-1."
        )
    else:
        parsed = []
        for part in widths.split("-"):
            width, _, repeats = part.partition("x")
            parsed += [int(width)] * int(repeats or 1)
    if len(parsed) < 2 or not all(1 <= width <= MOST_UNITS for width in parsed):
        raise UsageError(
            f"'{widths}' is not a network: it takes an input and an output width at "
            f"least, each from 1 to {MOST_UNITS:,}, such as 1-10-10-1."
        )
    check_size(
        widths, sum((inputs + 1) * outputs for inputs, outputs in pairwise(parsed))
    )
    return tuple(parsed)


def check_size(spec: object, parameters: int) -> None:
    """Raise `UsageError` for a network that is too large to be trained here."""
    if parameters > MOST_PARAMETERS:
        raise UsageError(
            f"'{spec}' has {parameters:,} parameters; networks here have at most "
            f"{MOST_PARAMETERS:,}."
        )


def parameter_count(widths: Widths) -> int:
    """Count weights and biases: the sum of (inputs + 1) x outputs over the layers.

    Needs no torch.

    Args:
        widths: Input, hidden and output widths, as in `dense`.

    >>> parameter_count("1-190-1")
    571
    """
    return sum(
        (inputs + 1) * outputs for inputs, outputs in pairwise(parse_widths(widths))
    )


def dense(widths: Widths, activation: Activation = "leaky_relu") -> nn.Sequential:
    """Build a dense network with biases, and activations after all layers but the last.

    Takes (N, widths[0]) to (N, widths[-1]). Weights start as PyTorch starts
    `torch.nn.Linear`.

    Args:
        widths: Input, hidden and output widths, as numbers or as ``"1-10-10-1"``.
        activation: Its name; leaky ReLU has PyTorch's slope of 0.01 on the negative
            side.

    Raises:
        UsageError: Widths or an activation that do not exist.
    """
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(parse_widths(widths)):
        layers += [nn.Linear(inputs, outputs), activation_layer(activation)]
    return nn.Sequential(*layers[:-1])


def activation_layer(activation: Activation) -> nn.Module:
    """Build a fresh activation layer by its name.

    Raises:
        UsageError: A name that does not exist.
    """
    from torch import nn

    if activation not in get_args(Activation):
        raise unknown("activation", activation, get_args(Activation))
    kinds: dict[str, type[nn.Module]] = {
        "leaky_relu": nn.LeakyReLU,
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "elu": nn.ELU,
    }
    return kinds[activation]()


def sawtooth_network(depth: int) -> nn.Sequential:
    """Build the narrow ReLU network that equals the sawtooth on [0, 1].

    It has ``depth`` hidden layers of 2 units.

    The tent map is 2·relu(x) - 4·relu(x - 1/2) on [0, 1]. Each hidden layer computes
    both terms, and the sum is folded into the next layer's weights, so the tent map is
    composed ``depth`` times: 2^(depth-1) teeth and 2^depth straight pieces from 6·depth
    + 1 parameters. In float32 the values on [0, 1] are exact, for doubling and
    subtracting from 1 lose no bit.

    Telgarsky, "Benefits of depth in neural networks", COLT 2016, arXiv:1602.04485.

    Args:
        depth: Number of compositions, at least 1.
    """
    import torch

    if depth < 1:
        raise UsageError(f"A sawtooth needs a depth of at least 1, not {depth}.")
    network = dense([1, *[2] * depth, 1], "relu")
    into = torch.tensor([[1.0], [1.0]])
    shift = torch.tensor([0.0, -0.5])
    fold = torch.tensor([[2.0, -4.0]])
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            layer.weight.copy_(into if index == 0 else fold if last else into @ fold)
            layer.bias.copy_(torch.zeros(1) if last else shift)
    return network
