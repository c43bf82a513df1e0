"""scikit-learn's digits: 1,797 images of 8 x 8 pixels that are on every machine."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.data.known.known_images import EmbeddedImages

if TYPE_CHECKING:
    import numpy as np
    import torch

    from nablab.data.images.image_set import ImageSet

PIXEL_MAX = 16


class Digits(EmbeddedImages):
    """The digits with a split of nablab's: scikit-learn has none."""

    def load(self, split: str) -> ImageSet:
        """Return a split; which image is in which is drawn once, by seed 0.

        The pixels, 0 to 16 in the original, are scaled to 0 to 255.
        """
        import torch

        from nablab.data.images.forms import statistics
        from nablab.data.images.image_set import ImageSet

        images, labels = _all()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        train, test = order[: self.samples["train"]], order[self.samples["train"] :]
        mean, std = statistics(images[train])
        where = train if split == "train" else test
        return ImageSet(
            name=self.name,
            split=split,
            images=images[where],
            labels=labels[where],
            classes=self.classes,
            mean=mean,
            std=std,
            license=self.license,
            citation=self.citation,
            source=self.package,
        )


DIGITS = Digits(
    name="digits",
    title="handwritten digits, tiny",
    package="scikit-learn",
    shape=(1, 8, 8),
    samples={"train": 1_297, "test": 500},
    classes=tuple("0123456789"),
    license="CC BY 4.0",
    citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998",
)


@cache
def _all() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images and labels, in scikit-learn's order.

    Images are uint8 (1797, 1, 8, 8), labels int64 (1797,).
    """
    import numpy as np
    import torch

    table = _table()
    images = (
        np.round(table[:, :-1] * (255 / PIXEL_MAX))
        .astype(np.uint8)
        .reshape(-1, 1, 8, 8)
    )
    return torch.from_numpy(images), torch.from_numpy(table[:, -1].astype(np.int64))


def _table() -> np.ndarray:
    """Read 64 pixels and the label of each image.

    They come from scikit-learn's file: importing its loader takes a second or more,
    half of what a quick preset has. Where a later version keeps the file elsewhere, the
    loader is used.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
