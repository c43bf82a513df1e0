"""A user's data as they are on real disks: links, odd names and metadata, labels that
are names, bombs.
"""

from __future__ import annotations

import gzip
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from nablab import data
from nablab.data import known
from nablab.data.known import idx
from nablab.data.user import limits
from nablab.errors import DataError, UsageError
from tests.data.serving import Server
from tests.data.test_own_data import GOOD, arrays, folder_of, write
from tests.data.tiny import tiny_files, tiny_set

# What is left out is named, what cannot be read is refused


def test_images_below_a_class_folder_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    folder_of(tmp_path / "cat", {"more": 40})
    (tmp_path / "cat" / "photo.heic").write_bytes(b"x")
    os.mkfifo(tmp_path / "dog" / "pipe")
    (tmp_path / "notes.txt").write_text("x")
    notes = data.load(str(tmp_path)).notes
    below = (
        "Folders below those of the classes, which were left out; images there "
        "must be moved up: 1 "
    )
    assert f"{below}(cat/more with 40 files)" in notes
    others = (
        "Files that are not images by their names, which were left out: 2 "
        "(cat/photo.heic, dog/pipe)"
    )
    assert others in notes
    assert f"Left out, beside cat, dog in {tmp_path}: notes.txt" in notes
    assert all(note in data.load(str(tmp_path), split="test").notes for note in notes)


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 2, "b": 2})
    folder_of(tmp_path / "val", {"a": 3, "b": 2})
    (tmp_path / "train" / "labels.csv").write_text("x")
    notes = data.load(str(tmp_path)).notes
    assert f"Left out, beside train in {tmp_path}: val with 5 files" in notes
    assert f"Left out, beside a, b in {tmp_path / 'train'}: labels.csv" in notes


def test_hidden_files_are_no_news(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 2, "b": 2})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    for place in (".git/config", "train/.cache/x", "train/a/.DS_Store"):
        write(tmp_path / place, b"")
    assert data.load(str(tmp_path)).notes == ()


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "files", {"a": 2, "b": 2})
    for index in range(4):
        (tmp_path / "files" / "a" / f"gone{index}.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        UsageError,
        match=r"a/gone0\.png is a link to .*nowhere, where there is nothing; 4 of the 6",
    ):
        data.load(str(tmp_path / "files"))
    folder_of(tmp_path / "classes", {"a": 2, "b": 2})
    (tmp_path / "classes" / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        UsageError,
        match=r"classes/c is a link to .*nowhere, where there is nothing\. Repair",
    ):
        data.load(str(tmp_path / "classes"))
    folder_of(tmp_path / "split" / "train", {"a": 2, "b": 2})
    (tmp_path / "split" / "test").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"split/test is a link to .*nowhere"):
        data.load(str(tmp_path / "split"))


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("bus", "test"), ("car", "test", "train", "val")]
)
def test_classes_may_have_the_names_of_splits(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder_of(tmp_path, dict.fromkeys(names, 3))
    loaded = data.load(str(tmp_path))
    assert loaded.classes == names
    assert len(loaded) == 2 * len(names)


def test_splits_without_classes_are_no_classes(tmp_path: Path) -> None:
    folder_of(tmp_path, {"train": 3, "test": 3, "val": 3})
    with pytest.raises(
        UsageError,
        match=r"train has no subfolders: .* such as train/cats/ and train/dogs/",
    ):
        data.load(str(tmp_path))


# Metadata


@pytest.mark.parametrize(
    ("value", "kind"),
    [("6", 2), (b"6", 7), (b"\x06", 1), (6.0, 12), (9, 3), (70_000, 4)],
    ids=["text", "undefined", "byte", "double", "outside", "long"],
)
def test_an_odd_orientation_leaves_the_pixels_as_they_are(
    tmp_path: Path, value: object, kind: int
) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1}, height=4, width=8)
    folder_of(tmp_path / "test", {"a": 1, "b": 1}, height=4, width=8)
    path = tmp_path / "train" / "a" / "000.png"
    pixels = np.asarray(Image.open(path))
    exif = TiffImagePlugin.ImageFileDirectory_v2()
    exif.tagtype[0x0112] = kind
    exif[0x0112] = value
    Image.fromarray(pixels).save(path, exif=b"Exif\0\0" + tiff_bytes(exif))
    loaded = data.load(str(tmp_path))
    assert np.array_equal(loaded.images[0, 0], pixels)
    assert any(
        "EXIF data do not say" in note and note.endswith(": 1") for note in loaded.notes
    )


def tiff_bytes(directory: TiffImagePlugin.ImageFileDirectory_v2) -> bytes:
    """EXIF data with one directory, as cameras write it."""
    return b"II*\0\x08\0\0\0" + directory.tobytes(8)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_data_do_not_hide_a_picture(tmp_path: Path, exif: bytes) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    path = tmp_path / "train" / "a" / "000.png"
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(data.load(str(tmp_path)).images[0, 0], pixels)


def test_every_error_of_a_decoder_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})

    def broken(self: Image.Image, *words: object) -> Image.Image:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(Image.Image, "convert", broken)
    with pytest.raises(
        UsageError,
        match=r"train/a/000\.png cannot be read: TypeError: unsupported operand",
    ):
        data.load(str(tmp_path))


def test_the_first_of_several_frames_is_read_and_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 1, "b": 1})
    folder_of(tmp_path / "test", {"a": 1, "b": 1})
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (10, 200)]
    frames[0].save(
        tmp_path / "train" / "a" / "000.gif", save_all=True, append_images=frames[1:]
    )
    (tmp_path / "train" / "a" / "000.png").unlink()
    loaded = data.load(str(tmp_path), channels=1)
    assert (loaded.images[0] == 10).all()
    assert (
        "Images of several frames or pages, of which the first was read: 1"
    ) in loaded.notes


# Names


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 2, "b": 2})
    strange = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9"))
    (tmp_path / "b").rename(strange)
    (strange / "000.png").rename(Path(os.fsdecode(os.fsencode(strange) + b"/\xff.png")))
    (strange / os.fsdecode(b"\xfe.txt")).write_text("x")
    loaded = data.load(str(tmp_path))
    assert loaded.classes == ("a", "caf\\xe9")
    assert "caf\\xe9/\\xfe.txt" in loaded.describe()
    loaded.describe().encode()
    before = data.source_hash(str(tmp_path))
    (strange / "001.png").rename(strange / "002.png")
    assert data.source_hash(str(tmp_path)) != before
    with pytest.raises(
        UsageError, match=r"caf\\xe9/ is not UTF-8, so no record can name it"
    ) as error:
        data.load(f"{strange}/")
    str(error.value).encode()


def test_errors_print_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    with pytest.raises(
        UsageError, match=r"a/\\xff\.png cannot be read: it is not an image"
    ):
        data.load(str(tmp_path))


# Labels


def test_labels_that_are_names_are_refused_at_once(tmp_path: Path) -> None:
    labels = np.array([5, 10_000_000, 5, 10_000_000])
    path = arrays(tmp_path / "names.npz", images=GOOD, labels=labels)
    begin = time.perf_counter()
    with pytest.raises(UsageError) as error:
        data.load(path)
    assert time.perf_counter() - begin < 1
    assert str(error.value) == (
        f"{path}: labels has the 2 labels 5, 10000000: the class '0' is empty. Labels "
        "count from 0 without gaps. np.unique(labels, return_inverse=True)[1] numbers "
        "any labels this way; an array classes can keep their names."
    )


@pytest.mark.parametrize(
    "labels", [[1, 2, 3, 1], [0, 2, 0, 2], [2**40, 0, 1, 2], [7, 7, 7, 7]]
)
def test_labels_count_from_0_without_gaps(tmp_path: Path, labels: list[int]) -> None:
    path = arrays(tmp_path / "f.npz", images=GOOD, labels=np.array(labels))
    with pytest.raises(UsageError, match="Labels count from 0 without gaps"):
        data.load(path)


# What is too large is refused by what it announces


def limited(work: Callable[[], object], megabytes: int = 400) -> str:
    """The error of ``work`` in a process that may take only so much memory beyond what
    it has.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            text = repr(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def npy(shape: str, content: bytes) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return str(path)


def test_an_array_that_claims_a_petabyte_is_refused(tmp_path: Path) -> None:
    labels = npy("(4,)", b"\0\1\0\1")
    path = zipped(
        tmp_path / "f.npz",
        images=npy("(1125899906, 1000, 1000)", bytes(36)),
        labels=labels,
    )
    expected = (
        "images is damaged: it claims 1,126 TB (shape (1125899906, 1000, 1000), "
        "uint8), and 0 kB are stored"
    )
    assert expected in limited(lambda: data.load(path))
    path = zipped(
        tmp_path / "l.npz",
        images=npy("(4, 3, 3)", bytes(36)),
        labels=npy("(1125899906000000,)", b""),
    )
    assert "labels is damaged: it claims 1,126 TB" in limited(lambda: data.load(path))


def test_a_few_bytes_that_unpack_to_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 256 MB would take seconds to pack
    monkeypatch.setattr(limits, "SMALL", 29_000_000)
    count = 30_000
    path = zipped(
        tmp_path / "f.npz",
        images=npy(f"({count}, 25, 40)", bytes(1000 * count)),
        labels=npy("(4,)", b"\0\1\0\1"),
    )
    assert Path(path).stat().st_size < 40_000
    begin = time.perf_counter()
    text = limited(lambda: data.load(path), megabytes=20)
    assert "would unpack to 30.0 MB, which no images do" in text
    assert time.perf_counter() - begin < 2


def test_what_does_not_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 4_000)
    path = arrays(
        tmp_path / "f.npz",
        images=np.zeros((4, 30, 30), np.uint8),
        labels=np.array([0, 1] * 2),
    )
    with pytest.raises(
        UsageError,
        match=r"images would take 4 kB in memory, and this process may use 4 kB",
    ):
        data.load(path)
    folder_of(tmp_path / "set", {"a": 3, "b": 3}, height=30, width=30)
    with pytest.raises(
        UsageError,
        match=r"6 images of 30 x 30 pixels, which would take 5 kB .*Take a smaller size",
    ):
        data.load(str(tmp_path / "set"))
    assert data.load(str(tmp_path / "set"), size=6).images.shape == (4, 1, 6, 6)


def test_a_picture_that_is_far_too_large_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 3, "b": 3})
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0)]
    rows = zlib.compressobj(1)
    line = bytes(13_001)
    packed = b"".join(rows.compress(line * 100) for _ in range(130)) + rows.flush()
    chunks += [b"IDAT" + packed, b"IEND"]
    content = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in chunks
    )
    (tmp_path / "a" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    begin = time.perf_counter()
    text = limited(lambda: data.load(str(tmp_path), size=8), megabytes=100)
    assert (
        "a/000.png has 13,000 x 13,000 pixels (height x width), more than the "
        "89,478,485 that one"
    ) in text
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_of_a_known_set_is_read_to_its_known_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    made = tiny_set("http://127.0.0.1:9/")
    monkeypatch.setitem(known.KNOWN, made.name, made)
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    for name, content in tiny_files().items():
        write(tmp_path / "tiny" / name, content)
    path = tmp_path / "tiny" / idx.TRAIN_IMAGES
    size = path.stat().st_size
    path.unlink()
    if packed:
        with gzip.open(f"{path}.gz", "wb", compresslevel=1) as file:
            for _ in range(300):
                file.write(bytes(1_000_000))
    else:
        with path.open("wb") as file:
            file.truncate(3_000_000_000)
    begin = time.perf_counter()
    text = limited(lambda: data.load("tiny"), megabytes=100)
    found = f"{path}.gz" if packed else str(path)
    assert f"{found} is not tiny's: it is too long (more than {size} bytes)" in text
    assert time.perf_counter() - begin < 2


def test_a_server_that_never_ends_is_left(
    tmp_path: Path, tiny: known.KnownSet, server: Server
) -> None:
    server.contents[f"/set/{idx.TRAIN_IMAGES}.gz"] = bytes(20_000_000)
    with pytest.raises(
        DataError, match=r"sends more than the 10,000,\d+ bytes that the file may have"
    ):
        data.load("tiny")
