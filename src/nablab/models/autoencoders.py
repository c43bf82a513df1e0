"""Autoencoders: an encoder to a code of few numbers, and a decoder back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from nablab.errors import UsageError
from nablab.models.dense_network import Activation, activation_layer


def autoencoder(encoder: nn.Module, decoder: nn.Module) -> nn.Sequential:
    """Join both, under the names ``encoder`` and ``decoder``.

    A plain `nn.Sequential`, so that the compiled engines know what it is made of.

    Args:
        encoder: From inputs to codes (N, code).
        decoder: From codes to outputs of the inputs' shape.
    """
    return nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))


def dense_autoencoder(
    inputs: int,
    code: int,
    *,
    hidden: Sequence[int] = (),
    activation: Activation | None = None,
    code_activation: Activation | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build an autoencoder of dense layers, the decoder a mirror of the encoder.

    Codes and outputs are linear, so that without activations all of it is.

    Args:
        inputs: Coordinates of a sample.
        code: Coordinates of a code.
        hidden: Units of the encoder's layers before the code.
        activation: After each of them.
        code_activation: After the code's own layer.
        bias: Whether layers have biases; a linear autoencoder of centered samples needs
            none.

    Raises:
        UsageError: Layers between inputs and code without an activation.

    >>> net = dense_autoencoder(6, 2)
    >>> print(*(tuple(part.shape) for part in net.parameters()))
    (2, 6) (2,) (6, 2) (6,)
    """
    if hidden and activation is None:
        raise UsageError(
            "Dense layers without an activation between them are one layer: name an "
            "activation, or give no hidden layers."
        )
    widths = (inputs, *hidden, code)
    bend = [] if code_activation is None else [activation_layer(code_activation)]
    return autoencoder(
        nn.Sequential(*dense_layers(widths, activation, bias=bias), *bend),
        nn.Sequential(*dense_layers(widths[::-1], activation, bias=bias)),
    )


def convolutional_autoencoder(
    channels: int, size: int, code: int, *, filters: int = 16
) -> nn.Sequential:
    """Build an autoencoder that halves images twice by convolutions.

    The decoder doubles them twice, each pixel becoming four (by strided transposed
    convolutions of 4 x 4, which cover all pixels equally often).

    Args:
        channels: Of an image.
        size: Height and width, a multiple of 4.
        code: Coordinates of a code.
        filters: Of the first convolution; the second one has twice as many.

    Raises:
        UsageError: Images of this size cannot be halved twice.
    """
    if size % 4:
        raise UsageError(
            f"A convolutional autoencoder halves images twice: their size must be a "
            f"multiple of 4, and it is {size}."
        )
    inner = 2 * filters, size // 4, size // 4
    values = inner[0] * inner[1] * inner[2]
    encoder = nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(filters, 2 * filters, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(values, code),
    )
    decoder = nn.Sequential(
        nn.Linear(code, values),
        nn.ReLU(),
        nn.Unflatten(1, inner),
        nn.ConvTranspose2d(2 * filters, filters, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(filters, channels, 4, stride=2, padding=1),
    )
    return autoencoder(encoder, decoder)


def dense_layers(
    widths: Sequence[int], activation: Activation | None, *, bias: bool = True
) -> list[nn.Module]:
    """Return dense layers of these widths with activations between them."""
    found: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        if found:
            assert activation is not None
            found.append(activation_layer(activation))
        found.append(nn.Linear(inputs, outputs, bias=bias))
    return found
