"""Autoencoders: shapes, what is linear, and sizes that cannot be."""

from __future__ import annotations

import pytest
import torch

from nablab.errors import UsageError
from nablab.models import convolutional_autoencoder, dense_autoencoder
from nablab.training.fused.dense_layers import read_layers


def test_without_activations_all_of_it_is_linear() -> None:
    net = dense_autoencoder(6, 2).double()
    a, b = torch.randn(2, 4, 6).double()
    zero = net(torch.zeros_like(a))
    torch.testing.assert_close(net(a + 2 * b) - zero, net(a) + 2 * net(b) - 3 * zero)
    assert sum(p.numel() for p in net.parameters()) == (6 * 2 + 2) + (2 * 6 + 6)
    plain = dense_autoencoder(6, 2, bias=False)
    assert [tuple(p.shape) for p in plain.parameters()] == [(2, 6), (6, 2)]
    bent = dense_autoencoder(6, 2, code_activation="sigmoid")
    codes = bent.encoder(100 * torch.randn(50, 6))
    assert codes.min() >= 0
    assert codes.max() <= 1


def test_the_decoder_mirrors_the_encoder() -> None:
    net = dense_autoencoder(8, 3, hidden=(7, 5), activation="relu")
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim == 2]
    assert sizes == [(7, 8), (5, 7), (3, 5), (5, 3), (7, 5), (8, 7)]
    assert net(torch.zeros(9, 8)).shape == (9, 8)
    assert len(read_layers(net)) == 6


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_convolutions_give_back_the_shape_through_a_code(
    channels: int, size: int
) -> None:
    net = convolutional_autoencoder(channels, size, 5, filters=4)
    x = torch.randn(2, channels, size, size)
    assert net(x).shape == x.shape
    codes = net.encoder(x)
    assert codes.shape == (2, 5)
    # each image by itself, and by nothing but its code
    torch.testing.assert_close(net(x[:1]), net(x)[:1])
    torch.testing.assert_close(net.decoder(codes), net(x))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match="multiple of 4, and it is 30"):
        convolutional_autoencoder(1, 30, 5)
    with pytest.raises(UsageError, match="are one layer"):
        dense_autoencoder(6, 2, hidden=(4,))
