"""Fashion-MNIST: 70,000 articles of clothing in MNIST's form (Xiao et al. 2017).

The checksums were computed from bytes of one origin and found again in lists that
others published of bytes from another; the comment says which.
"""

from __future__ import annotations

from nablab.data.fetching.packages import DebianPackage, read_members
from nablab.data.fetching.sources import Files, Tree
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

# SHA-256 computed from the files of Debian's package dataset-fashion-mnist
# 0.0~git20200523.55506a9-1. Their MD5 are those that tutorials and several variants of
# torchvision's class list for the decompressed files (f4a8712d..., 9018921c...,
# 8181f547..., 15d48437...), and the SHA-256 themselves are listed by projects that
# decompressed the official archives after checking the publisher's MD5 of these.
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    title="articles of clothing",
    files=(
        File(
            TRAIN_IMAGES,
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        File(
            TRAIN_LABELS,
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        File(
            TEST_IMAGES,
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        File(
            TEST_LABELS,
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    splits=SPLIT_FILES,
    shape=(1, 28, 28),
    samples=SAMPLES,
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
        Files(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
        ),
        DebianPackage(
            "dataset-fashion-mnist",
            "31 MB",
            read_members("./usr/share/datasets/fashion-mnist/"),
        ),
    ),
    folders=("FashionMNIST/raw",),
)
