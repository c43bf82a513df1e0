"""A user's own folders and arrays: what works, and one clear error for each thing that
does not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nablab import data
from nablab.data.images.forms import statistics
from nablab.data.user.load import cut
from nablab.errors import UsageError

DRAW = np.random.default_rng(3)


def picture(
    path: Path, *, height: int = 6, width: int = 6, mode: str = "L", seed: int = 0
) -> np.ndarray:
    """Write a picture of noise and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {
        "L": (height, width),
        "RGB": (height, width, 3),
        "RGBA": (height, width, 4),
    }[mode]
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def folder_of(top: Path, counts: dict[str, int], **options: object) -> Path:
    """A folder with so many pictures per class."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            picture(
                top / name / f"{index:03}.png", seed=100 * number + index, **options
            )  # type: ignore[arg-type]
    return top


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    folder_of(tmp_path / "set" / "train", {"dog": 3, "cat": 2})
    folder_of(tmp_path / "set" / "test", {"cat": 1, "dog": 2})
    (tmp_path / "set" / "train" / "cat" / ".DS_Store").write_text("")
    train = data.load(str(tmp_path / "set"))
    test = data.load(str(tmp_path / "set"), split="test")
    assert (train.name, train.classes, train.notes) == ("set", ("cat", "dog"), ())
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1, 1]
    assert np.array_equal(
        train.images[0, 0], np.asarray(Image.open(tmp_path / "set/train/cat/000.png"))
    )
    assert (train.mean, train.std) == statistics(train.images)
    assert (test.mean, test.std) == (train.mean, train.std)
    assert train.source == str(tmp_path / "set")


def test_without_a_test_split_a_fifth_of_each_class_is_cut_off_and_it_is_said(
    tmp_path: Path,
) -> None:
    folder_of(tmp_path, {"a": 10, "b": 5, "c": 2})
    train, test = data.load(str(tmp_path)), data.load(str(tmp_path), split="test")
    assert torch.bincount(test.labels).tolist() == [2, 1, 1]
    assert torch.bincount(train.labels).tolist() == [8, 4, 1]
    assert "a fifth of each class" in train.describe()
    assert "a fifth of each class" in test.describe()
    everything = {
        tuple(one.flatten().tolist()) for one in torch.cat([train.images, test.images])
    }
    assert len(everything) == 17
    assert torch.equal(data.load(str(tmp_path), split="test").images, test.images)
    assert (test.mean, test.std) == statistics(train.images)


def test_the_cut_of_a_class_does_not_depend_on_other_classes() -> None:
    few = np.array([0] * 10 + [1] * 10)
    many = np.array([0] * 10 + [1] * 10 + [2] * 10)
    assert cut(few, "ab", "x")[1].tolist() == cut(many, "abc", "x")[1].tolist()[:4]
    train, test = cut(many, "abc", "x")
    assert sorted([*train, *test]) == list(range(30))
    with pytest.raises(UsageError, match="the class 'b' has one image"):
        cut(np.array([0, 0, 1]), "ab", "here")


def test_changed_training_images_have_new_statistics(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 2, "b": 2})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    before = data.load(str(tmp_path), split="test").mean
    picture(tmp_path / "train" / "a" / "new.png", seed=9)
    assert data.load(str(tmp_path), split="test").mean != before


def test_color_gray_and_sizes_as_asked(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", mode="RGB", height=8, width=6)
    picture(tmp_path / "a" / "2.jpg", mode="L", height=5, width=9)
    picture(tmp_path / "b" / "1.bmp", mode="RGB")
    picture(tmp_path / "b" / "2.PNG", mode="L")
    for channels in (1, 3):
        assert data.load(str(tmp_path), size=28, channels=channels).images.shape == (
            2,
            channels,
            28,
            28,
        )
    with pytest.raises(UsageError, match=r"differ in size: .*size=28"):
        data.load(str(tmp_path), channels=1)
    with pytest.raises(
        UsageError, match=r"is gray, .* is in color.*channels=1 makes all of them gray"
    ):
        data.load(str(tmp_path), size=4)


def test_images_of_unequal_size_name_two_files_and_their_sizes(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 4, "b": 4})
    picture(tmp_path / "b" / "zzz.png", height=7, width=5)
    for split in ("train", "test"):  # known before the training, wherever the image is
        with pytest.raises(UsageError) as error:
            data.load(str(tmp_path), split=split)
        assert str(error.value) == (
            f"The images differ in size: {tmp_path}/a/000.png has 6 x 6 pixels (height "
            f"x width), {tmp_path}/b/zzz.png has 7 x 5. size=28 (or another number) "
            "makes all of them squares."
        )
    assert data.load(str(tmp_path), size=28).images.shape == (7, 1, 28, 28)


def test_transparency_is_laid_on_black_and_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1}, mode="RGB")
    folder_of(tmp_path / "test", {"a": 1, "b": 1}, mode="RGB")
    pixels = picture(tmp_path / "train" / "a" / "000.png", mode="RGBA")
    loaded = data.load(str(tmp_path))
    exact = pixels[..., :3].astype(float) * pixels[..., 3:] / 255
    assert np.abs(loaded.images[0].permute(1, 2, 0).numpy() - exact).max() <= 1
    assert loaded.notes == (
        "Images with transparent parts, which were laid on black: 1",
    )


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1}, height=4, width=8)
    folder_of(tmp_path / "test", {"a": 1, "b": 1}, height=4, width=8)
    turned = Image.fromarray(
        np.asarray(Image.open(tmp_path / "train/a/000.png")).T.copy()
    )
    exif = Image.Exif()
    exif[0x0112] = 5  # stored transposed
    turned.save(tmp_path / "train" / "a" / "000.png", exif=exif)
    expected = np.asarray(Image.open(tmp_path / "train/a/000.png")).T
    assert np.array_equal(data.load(str(tmp_path)).images[0, 0], expected)


def test_files_that_are_no_images_are_left_out_and_said(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "labels.csv").write_text("x")
    note = (
        "Files that are not images by their names, which were left out: 1 "
        "(a/labels.csv)"
    )
    assert note in data.load(str(tmp_path)).notes


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    cases = {
        "flat": (
            "has no subfolders: put the images of each class into a subfolder",
            {"1.png": b""},
        ),
        "one": (r"has one subfolder only \(images\)", {"images/1.png": b""}),
        "empty": (
            "the class 'b' is empty. Give it images",
            {"a/1.png": b"", "b/notes.txt": b""},
        ),
        "deep": (
            "It has folders only: are these the classes",
            {"a/x/1.png": b"", "b/x/1.png": b""},
        ),
        "broken": (
            r"a/1\.png cannot be read: it is not an image",
            {"a/1.png": b"no", "b/1.png": b"no", "test": b""},
        ),
    }
    for name, (_, files) in cases.items():
        for path, content in files.items():
            write(tmp_path / name / path, content)
    write(tmp_path / "broken" / "a" / "2.png", b"no")
    write(tmp_path / "broken" / "b" / "2.png", b"no")
    for name, (message, _) in cases.items():
        with pytest.raises(UsageError, match=message.replace("1\\.png", r"[12]\.png")):
            data.load(str(tmp_path / name))
    with pytest.raises(UsageError, match=r"neither a folder nor an \.npz file"):
        data.load(str(tmp_path / "flat" / "1.png"))


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1}, height=40, width=40)
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    path = tmp_path / "train" / "b" / "000.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        UsageError, match=r"train/b/000\.png cannot be read: .*Replace the file"
    ):
        data.load(str(tmp_path))


def test_deep_images_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(
        tmp_path / "train" / "a" / "000.png"
    )
    with pytest.raises(UsageError, match="more than 8 bits per pixel"):
        data.load(str(tmp_path))


def test_a_class_that_training_lacks_and_a_class_that_the_test_lacks(
    tmp_path: Path,
) -> None:
    folder_of(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    assert data.load(str(tmp_path), split="test").classes == ("a", "b", "c")
    folder_of(tmp_path / "test", {"d": 1})
    with pytest.raises(
        UsageError, match=r"test/d is a class that .*train does not have"
    ):
        data.load(str(tmp_path), split="test")


def arrays(path: Path, **content: object) -> str:
    np.savez(path, **content)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_an_npz_with_both_splits(tmp_path: Path, keys: tuple[str, str]) -> None:
    images = DRAW.integers(256, size=(6, 5, 4), dtype=np.uint8)
    content = {
        keys[0].format("train"): images[:4],
        keys[1].format("train"): np.array([[0], [1], [2], [1]]),
        keys[0].format("test"): images[4:],
        keys[1].format("test"): np.array([2.0, 0.0]),
    }
    path = arrays(tmp_path / "mine.npz", **content, classes=np.array(["a", "b", "c"]))
    train, test = data.load(path), data.load(path, split="test")
    assert (train.name, train.classes) == ("mine", ("a", "b", "c"))
    assert train.labels.tolist() == [0, 1, 2, 1]
    assert test.labels.tolist() == [2, 0]
    assert np.array_equal(test.images[:, 0], images[4:])
    assert (test.mean, test.std) == statistics(train.images)
    assert train.notes == ()


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_an_npz_with_one_split_is_cut(tmp_path: Path, names: tuple[str, str]) -> None:
    images = DRAW.integers(256, size=(20, 3, 3), dtype=np.uint8)
    path = arrays(tmp_path / "f.npz", **{names[0]: images, names[1]: np.arange(20) % 2})
    train, test = data.load(path), data.load(path, split="test")
    assert (len(train), len(test)) == (16, 4)
    assert "a fifth of each class" in test.notes[0]
    assert data.load(path, size=8, channels=3).images.shape == (16, 3, 8, 8)


def balanced(images: np.ndarray) -> dict[str, np.ndarray]:
    labels = np.arange(len(images)) % 2
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.full((4, 5, 5), True), 255),
        (np.full((4, 5, 5), 200, np.int64), 200),
        (np.full((4, 5, 5), 0.5, np.float32), 128),
        (np.full((4, 1, 5, 5), 1.0), 255),
        (np.full((4, 5, 5, 1), 7, np.uint8), 7),
    ],
)
def test_other_types_and_layouts_of_arrays(
    tmp_path: Path, images: np.ndarray, expected: int
) -> None:
    loaded = data.load(arrays(tmp_path / "f.npz", **balanced(images)))
    assert loaded.images.shape == (4, 1, 5, 5)
    assert (loaded.images == expected).all()


def test_channels_last_becomes_channels_first(tmp_path: Path) -> None:
    images = DRAW.integers(256, size=(4, 5, 6, 3), dtype=np.uint8)
    loaded = data.load(arrays(tmp_path / "f.npz", **balanced(images)))
    assert np.array_equal(loaded.images, images.transpose(0, 3, 1, 2))
    assert loaded.images.is_contiguous()


GOOD = np.zeros((4, 3, 3), np.uint8)
TWO = np.array([0, 1, 0, 1])
OBJECTS = np.array([np.zeros((2, 2)), np.zeros((3, 3)), None, None], dtype=object)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            GOOD,
            np.array([0, 1, -1, 1]),
            r"labels outside the 2 classes, such as -1 at index 2\. Labels count",
        ),
        (GOOD, np.array([0, 2, 0, 2]), "the class '1' is empty"),
        (
            GOOD,
            np.array([0, 1, 0.5, 1]),
            r"labels holds 0\.5 at index 2; labels are whole numbers",
        ),
        (GOOD, np.array([0, 1, np.nan, 1]), "labels holds nan at index 2"),
        (
            GOOD,
            np.array(["a", "b", "a", "b"]),
            "labels holds <U1; labels are whole numbers",
        ),
        (GOOD, np.eye(4), r"labels has the shape \(4, 4\); labels are \(N,\)"),
        (GOOD, np.array([0, 1, 0, 1, 0]), "has 4 images and labels has 5 labels"),
        (GOOD[:0], TWO[:0], r"labels has the shape \(0,\)"),
        (GOOD[:0], TWO, "images is empty"),
        (
            OBJECTS,
            TWO,
            "images is an array of Python objects, which is not read: it "
            "could run any code",
        ),
        (
            GOOD - 0.5,
            TWO,
            "values from -0.5 to -0.5; floats must lie from 0 to 1. Divide by 255",
        ),
        (GOOD + 255.0, TWO, "values from 255 to 255; floats must lie from 0 to 1"),
        (GOOD + np.nan, TWO, "not finite"),
        (
            GOOD.astype(int) + 256,
            TWO,
            "values from 256 to 256; whole numbers must lie from 0 to 255",
        ),
        (GOOD.astype(complex), TWO, "holds complex128"),
        (
            np.zeros((4, 9), np.uint8),
            TWO,
            r"images has the shape \(4, 9\); images are \(N, height, width\)",
        ),
        (np.zeros((4, 2, 3, 2), np.uint8), TWO, "with 1 or 3 channels"),
        (np.zeros((4, 3, 9, 1), np.uint8), TWO, "the channels may come first or last"),
    ],
)
def test_wrong_arrays_are_named(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        data.load(arrays(tmp_path / "f.npz", images=images, labels=labels))


def test_test_labels_outside_the_training_classes(tmp_path: Path) -> None:
    content = balanced(GOOD) | {"y_test": np.array([0, 1, 2, 1])}
    with pytest.raises(
        UsageError,
        match=r"y_test has labels outside the 2 classes, such as 2 at index 2",
    ):
        data.load(arrays(tmp_path / "f.npz", **content))


def test_files_that_are_no_npz_or_lack_arrays(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(
        tmp_path / "half.npz",
        images=DRAW.integers(256, size=(40, 30, 30)),
        labels=np.arange(40) % 2,
    )
    content = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, GOOD)
    for name in ("text", "cut", "array"):
        with pytest.raises(
            UsageError, match=rf"{name}\.npz is not an \.npz file, or it is damaged"
        ):
            data.load(str(tmp_path / f"{name}.npz"))
    with pytest.raises(
        UsageError, match="has the arrays a, b; it needs images and labels, x and y"
    ):
        data.load(arrays(tmp_path / "f.npz", a=GOOD, b=TWO))
    damaged = bytearray(content)
    damaged[2_000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(
        UsageError, match=r"images cannot be read, the file is damaged: Bad CRC-32"
    ):
        data.load(str(tmp_path / "damaged.npz"))
    with pytest.raises(UsageError, match="There is nothing at"):
        data.load(str(tmp_path / "absent.npz"))


def test_a_name_is_never_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "digits", {"a": 5, "b": 5})
    monkeypatch.chdir(tmp_path)
    assert data.load("digits").source == "scikit-learn"
    assert data.load("./digits").classes == ("a", "b")
    folder_of(tmp_path / "flowers", {"a": 5, "b": 5})
    assert data.load("flowers").name == "flowers"


def linked(top: Path, target: Path) -> Path:
    top.parent.mkdir(parents=True, exist_ok=True)
    top.symlink_to(target, target_is_directory=target.is_dir())
    return top


def test_links_have_the_hash_of_what_they_lead_to(tmp_path: Path) -> None:
    real = folder_of(tmp_path / "real" / "train", {"a": 2, "b": 2}).parent
    expected = data.source_hash(str(real))
    for name in ("a", "b"):
        linked(tmp_path / "classes" / "train" / name, real / "train" / name)
        for file in ("000.png", "001.png"):
            linked(
                tmp_path / "files" / "train" / name / file, real / "train" / name / file
            )
    linked(tmp_path / "split" / "train", real / "train")
    linked(tmp_path / "whole", real)
    places = [str(tmp_path / place) for place in ("classes", "files", "split", "whole")]
    assert [data.source_hash(place) for place in places] == [expected] * 4
    picture(real / "train" / "b" / "001.png", seed=77)
    hashes = {data.source_hash(place) for place in (*places, str(real))}
    assert len(hashes) == 1
    assert hashes != {expected}


def test_a_link_to_a_folder_above_does_not_go_round_for_ever(tmp_path: Path) -> None:
    folder_of(tmp_path / "set", {"a": 2, "b": 2})
    before = data.source_hash(str(tmp_path / "set"))
    linked(tmp_path / "set" / "a" / "up", tmp_path / "set")
    picture(tmp_path / "set" / "a" / "000.png", seed=5)
    assert data.source_hash(str(tmp_path / "set")) != before


def test_the_hash_of_a_folder_is_what_it_always_was(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "b.txt").write_bytes(b"2")
    expected = hashlib.sha256(b"a/1.png\x003\x00one" + b"b.txt\x001\x002").hexdigest()
    assert data.source_hash(str(tmp_path)) == expected


def test_other_content_with_the_same_size_and_time_has_another_hash(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.npz"
    hashes = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        hashes.add(data.source_hash(str(path)))
    assert len(hashes) == 2


@pytest.mark.parametrize("size", [None, 28])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_channel_that_never_varies_is_zeros_and_said(
    tmp_path: Path, kind: str, size: int | None
) -> None:
    images = DRAW.integers(256, size=(20, 6, 6, 3), dtype=np.uint8)
    images[..., 2] = 77
    place = str(tmp_path / "set")
    if kind == "npz":
        place = arrays(tmp_path / "set.npz", images=images, labels=np.arange(20) % 2)
    for index, pixels in enumerate(images if kind == "folder" else []):
        path = tmp_path / "set" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    for split in ("train", "test"):
        loaded = data.load(place, split=split, size=size)
        seen = loaded.normalize(loaded.images)
        assert torch.equal(seen[:, 2], torch.zeros_like(seen[:, 2]))
        assert seen[:, :2].abs().max() < 5
        assert "blue is one and the same everywhere" in loaded.describe()
    task = data.image_task(place, size=28, channels=3)
    assert any("blue is one and the same everywhere" in note for note in task.notes)
