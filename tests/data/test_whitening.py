"""Images whitened one by one, and their middle: against numpy, and on images of one
color.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nablab.data import Whiten, center_crop
from nablab.errors import UsageError

IMAGES = torch.randint(
    0, 256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_each_image_is_whitened_by_itself() -> None:
    found = Whiten()(IMAGES)
    assert found.dtype == torch.float32
    for image, white in zip(IMAGES.double().numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(
            white, (image - image.mean()) / image.std(), atol=1e-5
        )
    torch.testing.assert_close(Whiten()(IMAGES[2:3]), found[2:3])


def test_an_image_of_one_color_becomes_zeros_and_a_faint_one_is_not_blown_up() -> None:
    flat = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(Whiten()(flat), torch.zeros(1, 1, 8, 8))
    flat[0, 0, 0, 0] = 201  # deviation sqrt(63) / 64 = 0.124, below 1 / 8
    assert Whiten()(flat)[0, 0, 0, 0].item() == pytest.approx((63 / 64) * 8, abs=1e-4)


def test_the_middle_is_cut() -> None:
    assert torch.equal(center_crop(IMAGES, 3), IMAGES[..., 1:4, 1:4])
    assert torch.equal(center_crop(IMAGES, 4), IMAGES[..., 0:4, 1:5])
    square = IMAGES[..., :5]
    assert torch.equal(center_crop(square, 5), square)
    assert center_crop(IMAGES, 3).is_contiguous()


@pytest.mark.parametrize("side", [0, 6])
def test_what_cannot_be_cut(side: int) -> None:
    with pytest.raises(
        UsageError,
        match=rf"{side} x {side} pixels cannot be cut from images of 5 x 6\.",
    ):
        center_crop(IMAGES, side)


@pytest.mark.parametrize("value", [1, 135, 143, 255])
def test_equal_values_become_zeros_whatever_their_number(value: int) -> None:
    # whose mean is rounded from 135 on
    flat = torch.full((2, 3, 211, 199), value, dtype=torch.uint8)
    flat[1, 0, 0, 0] = value - 1
    white = Whiten()(flat)
    assert torch.equal(white[0], torch.zeros(3, 211, 199))
    assert white[1].abs().max() > 1
