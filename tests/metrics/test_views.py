"""Test-time augmentation against its definition, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nablab import metrics
from nablab.errors import UsageError


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_the_mean_is_that_of_six_views() -> None:
    images = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="reflect")
    up, down = padded[:, :, :5, :6], padded[:, :, 4:, 4:]
    by_hand = sum(
        weight * (pixels(view) + pixels(view.flip(3))) / 2
        for weight, view in ((0.5, images), (0.25, up), (0.25, down))
    )
    found = metrics.mean_over_views(pixels, images, shift=2)
    torch.testing.assert_close(found, by_hand)


def test_without_views_it_is_the_network() -> None:
    images = torch.randn(3, 2, 5, 6)
    found = metrics.mean_over_views(pixels, images, shift=0, mirror=False)
    torch.testing.assert_close(found, pixels(images))


def test_mirror_images_get_the_same_answer() -> None:
    images = torch.randn(3, 2, 5, 6)
    one = metrics.mean_over_views(pixels, images, shift=0)
    torch.testing.assert_close(
        metrics.mean_over_views(pixels, images.flip(3), shift=0), one
    )


def test_the_gradient_is_not_kept() -> None:
    images = torch.randn(1, 1, 4, 4, requires_grad=True)
    assert not metrics.mean_over_views(pixels, images).requires_grad


@pytest.mark.parametrize("shift", [-1, 4])
def test_impossible_shifts_are_refused(shift: int) -> None:
    with pytest.raises(UsageError, match=f"from 0 to 3.*got {shift}"):
        metrics.mean_over_views(pixels, torch.zeros(1, 1, 4, 5), shift=shift)
