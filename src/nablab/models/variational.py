"""Variational autoencoders: a code with a mean and a spread, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError, in_short
from nablab.models.autoencoders import dense_layers
from nablab.models.dense_network import Activation


class VariationalAutoencoder(nn.Module):
    """An encoder to a normal distribution of codes, and a decoder (Kingma, Welling 2014).

    Args:
        encoder: From samples (N, ...) to means and logarithms of variances beside each
            other, (N, 2 code).
        decoder: From codes (N, code) to what the likelihood takes: logits of pixels, or
            means.

    >>> import torch
    >>> net = dense_vae(784, 2, hidden=(256, 128))
    >>> mean, log_variance = net.encode(torch.zeros(3, 784))
    >>> mean.shape, net.decode(mean).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([3, 2]), torch.Size([3, 784]), 469268)
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of variances of the codes, (N, code) each."""
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Return what the likelihood takes."""
        decoded: Tensor = self.decoder(codes)
        return decoded

    def forward(self, x: Tensor) -> Tensor:
        """Decode the means of the codes."""
        return self.decode(self.encode(x)[0])


def dense_vae(
    inputs: int,
    code: int,
    *,
    hidden: Sequence[int] = (),
    decoder: Sequence[int] | None = None,
    activation: Activation = "relu",
) -> VariationalAutoencoder:
    """Build one of dense layers.

    Args:
        inputs: Coordinates of a sample.
        code: Coordinates of a code.
        hidden: Units of the encoder's layers before the code; none for a linear one.
        decoder: Units of the decoder's layers, from the code to the sample; None for a
            mirror of the encoder.
        activation: After each of them.
    """
    back = tuple(reversed(hidden)) if decoder is None else tuple(decoder)
    return VariationalAutoencoder(
        nn.Sequential(*dense_layers((inputs, *hidden, 2 * code), activation)),
        nn.Sequential(*dense_layers((code, *back, inputs), activation)),
    )


class LinearVae(nn.Module):
    """A variational autoencoder of two matrices, for centered samples.

    Samples are normal around what is decoded, with one variance for all coordinates that
    is trained, too. The posterior of such a model has the same spread for all samples,
    and so have the encoder's codes.

    Args:
        inputs: Coordinates of a sample.
        code: Coordinates of a code.
    """

    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(inputs, code, bias=False)
        self.decoder = nn.Linear(code, inputs, bias=False)
        # PyTorch's start has columns of length sqrt(inputs / 3): the noise first grows to
        # explain it, and Adam takes three times as many steps.
        nn.init.normal_(self.decoder.weight, std=inputs**-0.5)
        self.log_variance = nn.Parameter(torch.zeros(code))
        self.log_noise = nn.Parameter(torch.zeros(1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of variances of the codes, (N, code) each."""
        mean: Tensor = self.encoder(x)
        return mean, self.log_variance.expand_as(mean)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the means of the samples."""
        decoded: Tensor = self.decoder(codes)
        return decoded

    def forward(self, x: Tensor) -> Tensor:
        """Decode the means of the codes."""
        return self.decode(self.encode(x)[0])


@torch.no_grad()
def code_size(net: nn.Module, inputs: int) -> int:
    """Try an encoder and decoder pair, and return how many coordinates its codes have.

    Draws no random number.

    Args:
        net: Has ``encode(x)``, from rows of pixels (N, inputs) to means and logarithms
            of variances of codes (N, code), and ``decode(codes)``, back to logits
            (N, inputs).
        inputs: Pixels of an image.

    Raises:
        UsageError: It has no such methods, or they fail or give something else.
    """
    name = type(net).__name__
    for method in ("encode", "decode"):
        if not callable(getattr(net, method, None)):
            raise UsageError(
                f"The network {name} has no method {method}: give it encode(x), which "
                f"returns means and logarithms of variances of codes for rows of "
                f"{inputs:,} pixels, and decode(codes), which returns a logit for each."
            )
    x = torch.zeros(2, inputs)
    with torch.random.fork_rng(devices=[]):
        found = _tried(net, "encode", x)
        if not (
            isinstance(found, tuple | list)
            and len(found) == 2
            and all(isinstance(part, Tensor) for part in found)
            and found[0].shape == found[1].shape
            and found[0].ndim == 2
            and len(found[0]) == 2
        ):
            raise UsageError(
                f"encode of {name} must return two tensors (N, code), means and "
                f"logarithms of variances; for 2 rows of {inputs:,} pixels it returns "
                f"{_shapes(found)}."
            )
        decoded = _tried(net, "decode", found[0])
    if not isinstance(decoded, Tensor) or tuple(decoded.shape) != (2, inputs):
        raise UsageError(
            f"decode of {name} must return logits (N, {inputs}); for codes "
            f"{tuple(found[0].shape)} it returns {_shapes(decoded)}."
        )
    return int(found[0].shape[1])


def _tried(net: Any, method: str, x: Tensor) -> Any:
    try:
        return getattr(net, method)(x)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{method} of {type(net).__name__} fails on a tensor {tuple(x.shape)}: "
            f"{in_short(error)}."
        ) from error


def _shapes(found: Any) -> str:
    parts = found if isinstance(found, tuple | list) else [found]
    return ", ".join(
        str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
        for part in parts
    )
