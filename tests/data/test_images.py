"""Normalization in closed form; augmentation by its distribution; held-out splits by
their seed.
"""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from nablab.data import Augment, ImageSet, Normalize
from nablab.data.images.forms import statistics
from nablab.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(
    count: int = 64, channels: int = 1, height: int = 9, width: int = 7
) -> torch.Tensor:
    return torch.randint(
        256, (count, channels, height, width), generator=seeded(5), dtype=torch.uint8
    )


def a_set(count: int = 20) -> ImageSet:
    labels = torch.arange(count) % 4
    return ImageSet(
        "some", "train", some(count), labels, tuple("abcd"), (0.5,), (0.25,)
    )


def test_normalize_is_its_formula_channel_by_channel() -> None:
    images = some(8, 3)
    got = Normalize((0.1, 0.5, 0.9), (0.2, 0.3, 0.4))(images)
    mean = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)[:, None, None]
    expected = (images.double() / 255 - mean) / std
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_normalize_takes_any_leading_dimensions() -> None:
    normalize, images = Normalize((0.3,), (0.2,)), some(12)
    stacked = normalize(images.reshape(3, 4, 1, 9, 7))
    assert torch.equal(stacked.reshape(12, 1, 9, 7), normalize(images))
    assert torch.equal(normalize(images[0]), normalize(images)[0])


def test_a_set_normalized_by_its_own_statistics_has_mean_0_and_deviation_1() -> None:
    from nablab.data.images.forms import statistics

    images = some(200, 3)
    mean, std = statistics(images)
    got = Normalize(mean, std)(images).double()
    assert got.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (got.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_by_nothing_is_the_identity_in_new_memory(channels: int) -> None:
    images = some(channels=channels)
    got = Augment()(images, seeded())
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shift", "flip"), [(2, False), (0, True), (2, True)])
def test_augment_is_decided_by_the_generator_and_leaves_its_input_alone(
    shift: int, flip: bool, channels: int
) -> None:
    images = some(channels=channels)
    before = images.clone()
    augment = Augment(shift=shift, flip=flip)
    first, second = augment(images, seeded(3)), augment(images, seeded(3))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, seeded(4)))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert first.is_contiguous()


def test_shifts_are_uniform_over_all_places_and_black_comes_in() -> None:
    shift, count = 2, 25_000
    images = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 200
    moved = Augment(shift=shift)(images, seeded())
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((count,), 200))
    places = moved[:, 0].flatten(1).argmax(dim=1)
    down, right = places // 9 - 4, places % 9 - 4
    assert down.abs().max() == right.abs().max() == shift
    counts = torch.bincount((down + shift) * 5 + right + shift, minlength=25)
    assert len(counts) == 25
    # 1,000 expected of each of 25 places: chi-squared of 24 degrees, mean 24, 99.99th
    # percentile 60
    assert ((counts - 1_000.0) ** 2 / 1_000).sum() < 60


def test_a_shift_moves_all_channels_alike_and_keeps_what_stays_inside() -> None:
    images = some(200, 3, 8, 8)
    moved = Augment(shift=1)(images, seeded(1))
    padded = torch.nn.functional.pad(images, [1] * 4)
    for one, around in zip(moved, padded, strict=True):
        windows = [around[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
        assert sum(torch.equal(one, window) for window in windows) == 1


def test_a_flip_mirrors_left_and_right_exactly_and_half_of_the_images() -> None:
    images = some(4_000, 3, 4, 5)
    got = Augment(flip=True)(images, seeded(2))
    mirrored = (got == images.flip(3)).flatten(1).all(dim=1)
    kept = (got == images).flatten(1).all(dim=1)
    assert (mirrored | kept).all()
    assert 1_850 < int(mirrored.sum()) < 2_150  # 4.7 standard deviations


def test_reflection_brings_in_the_pixels_inside() -> None:
    images = some(60, 3, 8, 8)
    moved = Augment(shift=2, border="reflect")(images, seeded(1))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="reflect")
    for one, around in zip(moved, padded, strict=True):
        windows = [around[:, r : r + 8, c : c + 8] for r in range(5) for c in range(5)]
        assert sum(torch.equal(one, window) for window in windows) == 1


def test_impossible_borders_are_refused() -> None:
    with pytest.raises(UsageError, match="border 'white'"):
        Augment(shift=1, border="white")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shift must be below 4"):
        Augment(shift=4, border="reflect")(some(2, 3, 4, 5), seeded())


def test_a_negative_shift_is_refused() -> None:
    with pytest.raises(UsageError, match="must not be negative, got -1"):
        Augment(shift=-1)


def test_augment_works_on_batches_not_on_samples() -> None:
    """512 images take about a millisecond; a Python loop over them takes twenty or
    more.
    """
    images, augment, generator = (
        some(512, 1, 28, 28),
        Augment(shift=2, flip=True),
        seeded(),
    )
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        augment(images, generator)
        best = min(best, time.perf_counter() - start)
    assert best < 8e-3


def test_hold_out_cuts_by_seed_and_loses_nothing() -> None:
    whole = a_set(20)
    rest, held = whole.hold_out(6, seed=3)
    assert (len(rest), len(held), rest.split, held.split) == (
        14,
        6,
        "train",
        "validation",
    )
    together = torch.cat([rest.images, held.images]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(
        map(tuple, whole.images.flatten(1).tolist())
    )
    again = whole.hold_out(6, seed=3)[1]
    other = whole.hold_out(6, seed=4)[1]
    assert torch.equal(held.images, again.images)
    assert not torch.equal(held.images, other.images)
    assert held.normalize == whole.normalize


@pytest.mark.parametrize("samples", [0, 20, 21, -1])
def test_hold_out_refuses_all_and_nothing(samples: int) -> None:
    with pytest.raises(UsageError, match="choose from 1 to 19"):
        a_set(20).hold_out(samples, seed=0)


def test_take_copies_and_first_shares() -> None:
    whole = a_set(10)
    taken = whole.take([7, 2])
    assert torch.equal(taken.images, whole.images[[7, 2]])
    assert taken.labels.tolist() == [3, 2]
    assert len(whole.first(3)) == 3
    assert len(whole.first(99)) == 10
    assert whole.first(3).images.data_ptr() == whole.images.data_ptr()


def test_memory_and_description() -> None:
    whole = dataclasses.replace(
        a_set(10), license="MIT", citation="Doe, 2020", source="/x", notes=("Cut off.",)
    )
    assert whole.nbytes == 10 * 9 * 7 + 10 * 8
    assert whole.describe() == (
        "some, train split: 10 images of 9 x 7 pixels, 1 channel, 4 classes, 1 kB in "
        "memory. Source: /x. License: MIT. Cite: Doe, 2020. Cut off."
    )


def constant_blue(value: int = 100) -> torch.Tensor:
    images = some(12, channels=3)
    images[:, 2] = value
    return images


def test_the_deviation_of_a_channel_that_never_varies_is_zero() -> None:
    for value in range(256):
        mean, std = statistics(constant_blue(value))
        assert (mean[2], std[2]) == (value / 255, 0.0)
        assert min(std[:2]) > 0.1


def test_a_channel_that_never_varies_becomes_zeros() -> None:
    images = constant_blue()
    normalize = Normalize(*statistics(images))
    assert torch.equal(normalize(images)[:, 2], torch.zeros(12, 9, 7))
    # test images, too
    assert torch.equal(normalize(constant_blue(255))[:, 2], torch.zeros(12, 9, 7))
    rest = Normalize(*statistics(images[:, :2]))(images[:, :2])
    assert torch.equal(normalize(images)[:, :2], rest)


@pytest.mark.parametrize(
    ("std", "said"),
    [
        ((0.3, 0.3, 0.0), "In all training images blue is one and the same everywhere"),
        ((0.0,), "In all training images the gray value is one and the same"),
        (
            (0.3, 1e-5, 0.3),
            "green hardly varies: scaled to a deviation of 1, a single step of the 255 "
            "becomes 392",
        ),
        ((0.3, 0.01, 0.3), ""),
    ],
)
def test_a_channel_without_content_is_said(std: tuple[float, ...], said: str) -> None:
    images = some(12, channels=len(std))
    made = ImageSet(
        "mine", "train", images, torch.zeros(12).long(), ("a",), (0.5,) * len(std), std
    )
    assert len(made.notes) == bool(said)
    assert said in made.describe()
    assert made.first(3).notes == made.notes  # once
