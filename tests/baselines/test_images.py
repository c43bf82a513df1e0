"""Centered images: means, errors, and pixels that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nablab import data
from nablab.baselines import (
    CenteredImages,
    centered_images,
    on_rows,
    principal_components,
    squared_error,
)


@pytest.fixture(scope="module")
def images() -> CenteredImages:
    return centered_images("digits@200", size=8, channels=1)


def test_the_training_images_have_no_mean_and_the_test_images_the_same_taken_off(
    images: CenteredImages,
) -> None:
    task = data.image_task("digits@200", size=8)
    assert images.train.shape == (200, 1, 8, 8)
    torch.testing.assert_close(
        images.train.mean(0), torch.zeros(1, 8, 8), atol=1e-6, rtol=0
    )
    for centered, (raw, _) in (
        (images.train, task.train()),
        (images.test, task.held_out()),
    ):
        assert torch.equal(images.pixels(centered), raw)
    assert images.pixels(torch.full((1, 1, 8, 8), 3.0)).unique().tolist() == [255]


def test_components_lose_what_they_say(images: CenteredImages) -> None:
    five = images.leading(5)
    error = squared_error(lambda x: five.reconstruct(x, 5), images.train)
    assert error == pytest.approx(images.best(5), rel=1e-5)
    again = principal_components(images.moments, 5)
    torch.testing.assert_close(five.variances, again.variances)


def test_an_error_is_a_mean_over_images_and_pixels() -> None:
    wanted, given = torch.zeros(2_500, 1, 2, 1), torch.ones(2_500, 1, 2, 1)
    assert squared_error(lambda x: 3 * x, wanted, given) == pytest.approx(9)
    assert squared_error(lambda x: x, wanted) == 0


def test_rows_go_through_a_network_of_images() -> None:
    net = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 2.0)
    assert on_rows(net, (1, 2, 2))(torch.ones(3, 4)).tolist() == [[2.0] * 4] * 3


def test_a_users_file_is_read_again_after_an_edit(tmp_path: Path) -> None:
    folder = tmp_path / "me@home"  # an @ that gives no number of images
    folder.mkdir()
    path = folder / "own.npz"
    for value in (10, 200):
        images = np.full((4, 4, 4), value, dtype=np.uint8)
        images[0] = 0
        labels = np.arange(4) % 2
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
        found = centered_images(str(path), size=4, channels=1)
        assert found.mean.mean() == pytest.approx(0.75 * value / 255, rel=1e-4)
