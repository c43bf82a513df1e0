"""Whitening filters against their definition, and the network that begins with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nablab import models
from nablab.errors import UsageError


def photos(count: int = 40, side: int = 9) -> Tensor:
    """Make images of three channels whose neighboring pixels are alike."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 3, side, side, generator=draw, dtype=torch.float64)
    smooth = functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_filtered_patches_have_identity_covariance(size: int) -> None:
    images = photos()
    filters = models.whitening_filters(images, size, epsilon=0.0)
    answers = functional.conv2d(images, filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        answers.cov(correction=0), torch.eye(3 * size**2).double(), atol=1e-9, rtol=0
    )


def test_filters_are_ordered_and_computed_in_parts_as_at_once() -> None:
    images = photos(1_100, 5)
    found = models.whitening_filters(images, 2, epsilon=1e-3)
    patches = functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    variances = torch.linalg.eigvalsh(patches.T.cov(correction=0)).flip(0)
    # A direction of unit length, divided by the root of its variance.
    torch.testing.assert_close(found.flatten(1).norm(dim=1), (variances + 1e-3).rsqrt())
    small = models.whitening_filters(images.float(), 2, epsilon=1e-3)
    assert small.dtype == torch.float32


def test_bad_patches_are_refused() -> None:
    with pytest.raises(UsageError, match="12 x 12 pixels cannot be cut"):
        models.whitening_filters(photos(2), 12)
    with pytest.raises(UsageError, match="give more images"):
        models.whitening_filters(photos(1, 5), 3)


def network(**options: object) -> models.FastConvolutional:
    torch.manual_seed(0)
    filters = models.whitening_filters(photos().float(), 2)
    return models.FastConvolutional(filters, widths=(8, 16, 16), **options)  # type: ignore[arg-type]


def test_the_number_of_parameters_is_that_of_the_formula() -> None:
    sides = [(24, 8), (8, 8), (8, 16), (16, 16), (16, 16), (16, 16)]
    expected = sum(9 * i * o + o for i, o in sides) + 16 * 10
    found = sum(p.numel() for p in network().parameters())
    assert found == expected
    shallow = network(convolutions=(1, 2, 1))
    left = [sides[0], *sides[2:5]]
    assert sum(p.numel() for p in shallow.parameters()) == (
        sum(9 * i * o + o for i, o in left) + 160
    )


def test_the_first_layer_is_never_trained() -> None:
    net = network()
    before = net.filters.clone()
    images = photos(6, 32).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    functional.cross_entropy(net(images), torch.arange(6)).backward()
    optimizer.step()
    assert torch.equal(net.filters, before)
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_a_batch_shift_is_batch_norm_without_a_scale() -> None:
    maps = torch.randn(5, 4, 3, 3)
    ours = models.whitened.BatchShift(4)
    theirs = torch.nn.BatchNorm2d(4, momentum=0.4)
    with torch.no_grad():
        theirs.bias.copy_(torch.arange(4.0))
        ours.shift.copy_(4 * torch.arange(4.0))
    torch.testing.assert_close(ours(maps), theirs(maps))
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))


def test_convolutions_begin_by_passing_on_their_input() -> None:
    layer = models.whitened.convolution(3, 7)
    images = photos(2).float()
    torch.testing.assert_close(layer(images)[:, :3], images)


def test_bad_shapes_are_refused() -> None:
    filters = torch.zeros(12, 3, 2, 2)
    with pytest.raises(UsageError, match="one number of filters for each block"):
        models.FastConvolutional(filters, widths=(8, 8), convolutions=(1,))
    with pytest.raises(UsageError, match="1 or 2 convolutions"):
        models.FastConvolutional(filters, widths=(8,), convolutions=3)
