"""Names, formats, splits, conversion to other sizes and channels, and the facts stated
about each set.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from nablab import data
from nablab.data import known
from nablab.data.images.decoding import read_cifar, read_idx
from nablab.data.images.forms import convert, statistics
from nablab.data.known import idx as idx_sets
from nablab.data.known.known_images import KnownImages
from nablab.errors import DataError, UsageError
from tests.data.tiny import idx, tiny_arrays


def test_names_are_known_and_near_names_are_suggested(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert data.image_set_names() == ["cifar10", "fashion-mnist", "mnist", "digits"]
    for name in data.image_set_names():
        data.check_image_set(name)
        assert data.is_image_set(name)
    for wrong in ("minst", "cifar-10"):
        assert not data.is_image_set(wrong)
        with pytest.raises(UsageError, match="Did you mean"):
            data.load(wrong)
    with pytest.raises(
        UsageError,
        match=r"There is nothing at \./nowhere\. Give a folder with one subfolder",
    ):
        data.check_image_set("./nowhere")
    assert not data.is_image_set("missing.npz")
    data.check_image_set(str(tmp_path))
    assert data.is_image_set(str(tmp_path))


def test_checking_a_name_imports_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from nablab import data; data.check_image_set('mnist'); "
        "data.is_image_set('x'); assert not {'torch', 'numpy', 'sklearn', 'PIL'} & "
        "set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "There is no split 'tset'. Did you mean 'test'"),
        ({"split": "validation"}, "hold_out"),
        ({"size": 0}, "size must be 1 pixel or more, got 0"),
        ({"channels": 2}, r"channels must be 1 \(gray\) or 3 \(color\), got 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.load("digits", **options)  # type: ignore[arg-type]


def test_digits_are_scikit_learns_cut_into_two_splits() -> None:
    from sklearn.datasets import load_digits

    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1_297, 500)
    bunch = load_digits()
    whole = torch.from_numpy(np.round(bunch.images * 255 / 16)).to(torch.uint8)
    order = torch.randperm(1_797, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([train.images, test.images])[:, 0], whole[order])
    assert torch.equal(
        torch.cat([train.labels, test.labels]), torch.from_numpy(bunch.target)[order]
    )
    assert (train.mean, train.std) == (test.mean, test.std)
    assert set(train.labels.tolist()) == set(range(10))


def test_digits_come_from_the_loader_where_the_file_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nablab.data.known import digits

    expected = digits._table()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    assert np.array_equal(digits._table(), expected)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_idx_files_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    read = read_idx(bytearray(idx(array)))
    assert np.array_equal(read, array)
    assert read.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (
            b"\0\0\x0d\1" + struct.pack(">I", 1) + b"1234",
            "not an idx file of unsigned bytes: it begins with 00000d01",
        ),
        (b"\0\0\x08\2" + struct.pack(">I", 1), "does not fit its shape"),
        (b"\0\0\x08\1" + struct.pack(">I", 3) + b"12", "does not fit its shape"),
        (b"\0\0\x08\1" + struct.pack(">I", 3) + b"1234", "does not fit its shape"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(bytearray(content))


def test_cifar_records_are_label_then_red_green_blue() -> None:
    first = bytes([3]) + bytes([1]) * 1_024 + bytes([2]) * 1_024 + bytes([4]) * 1_024
    second = bytes([9]) + bytes(range(256)) * 12
    images, labels = read_cifar([bytearray(first), bytearray(second + first)])
    assert labels.tolist() == [3, 9, 3]
    assert images.shape == (3, 3, 32, 32)
    assert images[0].float().mean(dim=(1, 2)).tolist() == [1, 2, 4]
    assert images[1, 1, 7].tolist() == [(1_024 + 7 * 32 + c) % 256 for c in range(32)]
    with pytest.raises(DataError, match="not a whole number of records of 3,073 bytes"):
        read_cifar([bytearray(first[:-1])])


def test_statistics_are_numpys() -> None:
    images = torch.randint(
        256,
        (300, 3, 5, 7),
        generator=torch.Generator().manual_seed(1),
        dtype=torch.uint8,
    )
    mean, std = statistics(images)
    scaled = images.double().numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)


def some(channels: int, height: int, width: int, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(
        256, (count, channels, height, width), generator=generator, dtype=torch.uint8
    )


@pytest.mark.parametrize(("side", "antialias"), [(16, False), (6, True)])
def test_resizing_is_bilinear_and_antialiased_when_it_shrinks(
    side: int, antialias: bool
) -> None:
    images = some(3, 12, 12)
    got = convert(images, side, None)
    exact = torch.nn.functional.interpolate(
        images.double(), (side, side), mode="bilinear", antialias=antialias
    )
    assert got.shape == (5, 3, side, side)
    assert (got.double() - exact).abs().max() <= 0.5 + 1e-4


def test_shrinking_by_two_keeps_the_mean_and_a_flat_image_stays_flat() -> None:
    flat = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
    for size in (3, 4, 28):
        assert (convert(flat, size, None) == 77).all()
    images = some(1, 32, 32)
    assert (
        convert(images, 16, None).double().mean() - images.double().mean()
    ).abs() < 1


def test_color_to_gray_is_pillows_and_gray_to_color_repeats() -> None:
    from PIL import Image

    images = some(3, 6, 5)
    gray = convert(images, None, 1)
    for one, expected in zip(gray, images, strict=True):
        picture = Image.fromarray(expected.permute(1, 2, 0).numpy()).convert("L")
        assert (
            np.abs(np.asarray(picture).astype(int) - one[0].numpy().astype(int)).max()
            <= 1
        )
    color = convert(gray, None, 3)
    assert torch.equal(color, gray.expand(-1, 3, -1, -1))
    assert torch.equal(convert(color, None, 1), gray)
    with pytest.raises(UsageError, match="Images of 2 channels cannot be made into 1"):
        convert(some(2, 4, 4), None, 1)


def test_conversion_in_chunks_is_conversion_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nablab.data.images import forms

    images = some(3, 9, 11, count=23)
    whole = convert(images, 7, 1)
    monkeypatch.setattr(forms, "CHUNK", 4)
    assert torch.equal(convert(images, 7, 1), whole)


def test_after_a_conversion_mean_and_deviation_are_those_of_the_converted_training_split(
    tiny: known.KnownSet,
) -> None:
    train = data.load("tiny", size=9, channels=3)
    test = data.load("tiny", split="test", size=9, channels=3)
    assert train.images.shape == (30, 3, 9, 9)
    assert train.mean == test.mean == statistics(train.images)[0]
    assert train.std == test.std == statistics(train.images)[1]
    assert train.mean[0] != tiny.mean[0]
    as_it_is = data.load("tiny", size=4, channels=1)
    assert as_it_is.mean == tiny.mean


def test_the_test_split_alone_gets_the_training_splits_statistics(
    tiny: known.KnownSet,
) -> None:
    test = data.load("tiny", split="test", size=5)
    train_images = torch.from_numpy(tiny_arrays()[idx_sets.TRAIN_IMAGES])[:, None]
    assert test.mean == statistics(convert(train_images, 5, None))[0]


IMAGES = [one for one in known.KNOWN.values() if isinstance(one, KnownImages)]


@pytest.mark.parametrize("one", known.KNOWN.values(), ids=lambda one: one.name)
def test_what_is_stated_of_files_is_consistent(one: known.KnownSet) -> None:
    assert [file.name for split in one.splits for file in one.files_of(split)] == [
        file.name for file in one.files
    ]
    files = [*one.files, *(edition.file for edition in one.editions)]
    assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in files)
    assert all((one.kind, one.license, one.citation, one.sources))


@pytest.mark.parametrize("one", IMAGES, ids=lambda one: one.name)
def test_what_is_stated_of_images_is_consistent(one: KnownImages) -> None:
    pixels = one.shape[0] * one.shape[1] * one.shape[2]
    for split in ("train", "test"):
        headers = 16 + 8 if isinstance(one, idx_sets.IdxSet) else 0
        assert (
            sum(file.size for file in one.files_of(split))
            == one.samples[split] * (pixels + 1) + headers
        )
    assert len(one.classes) == 10
    assert len(one.mean) == len(one.std) == one.shape[0]


@pytest.mark.slow
@pytest.mark.parametrize("one", IMAGES, ids=lambda one: one.name)
def test_the_stated_facts_are_those_of_the_real_data(one: KnownImages) -> None:
    try:
        data.fetch(one.name)
    except DataError as error:
        pytest.skip(f"no source is reachable here: {error}")
    train, test = data.load(one.name), data.load(one.name, split="test")
    assert (len(train), len(test)) == (one.samples["train"], one.samples["test"])
    assert train.images.shape[1:] == test.images.shape[1:] == one.shape
    mean, std = statistics(train.images)
    np.testing.assert_allclose(mean, one.mean, rtol=1e-12)
    np.testing.assert_allclose(std, one.std, rtol=1e-12)
    assert torch.bincount(test.labels).tolist() == (
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        if one.name == "mnist"
        else [1_000] * 10
    )
    start = time.perf_counter()
    data.load(one.name)
    assert time.perf_counter() - start < (
        4 if one.name == "cifar10" else 1.2
    )  # a quarter of it on an idle machine
