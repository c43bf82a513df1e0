"""Variational autoencoders: a code with a mean and a spread, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
    activation: Activation = "relu",
) -> VariationalAutoencoder:
    """Build one of dense layers, the decoder a mirror of the encoder.

    Args:
        inputs: Coordinates of a sample.
        code: Coordinates of a code.
        hidden: Units of the encoder's layers before the code; none for a linear one.
        activation: After each of them.
    """
    return VariationalAutoencoder(
        nn.Sequential(*dense_layers((inputs, *hidden, 2 * code), activation)),
        nn.Sequential(*dense_layers((code, *reversed(hidden), inputs), activation)),
    )
