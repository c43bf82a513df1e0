"""Images resized batch by batch: Pillow's answer, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nablab import data

PLAIN = data.Normalize((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # bytes stay


def some(height: int = 12, width: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    shape = (4, 3, height, width)
    return torch.randint(256, shape, generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("size", [5, 24, 31])
def test_resizing_is_pillows(size: int) -> None:
    from PIL import Image

    images = some()
    found = data.Resize(size, PLAIN)(images)
    assert (found.dtype, found.shape) == (torch.float32, (4, 3, size, size))
    for one, expected in zip(found.flatten(0, 1), images.flatten(0, 1), strict=True):
        picture = Image.fromarray(expected.float().numpy())
        resized = picture.resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(one, np.asarray(resized), atol=0.01)


def test_images_of_the_right_size_are_normalized_only() -> None:
    images, normalize = some(), data.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert torch.equal(data.Resize(12, normalize)(images), normalize(images))


def test_a_flat_image_stays_flat_and_images_do_not_see_each_other() -> None:
    flat = torch.full((1, 3, 7, 9), 77, dtype=torch.uint8)
    for size in (4, 8, 20):
        torch.testing.assert_close(
            data.Resize(size, PLAIN)(flat), torch.full((1, 3, size, size), 77.0)
        )
    images, resize = some(7, 9), data.Resize(16, PLAIN)
    torch.testing.assert_close(resize(images)[1:2], resize(images[1:2]))
