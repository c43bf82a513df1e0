"""Weights of trained networks by name: `load_pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nablab.data import cache
from nablab.data.fetching.progress import Progress
from nablab.data.known import KNOWN
from nablab.data.known.known_weights import WEIGHTS, KnownWeights
from nablab.data.names import weight_set_names
from nablab.errors import unknown


@dataclass(frozen=True, eq=False)
class Pretrained:
    """The weights of a trained network.

    Attributes:
        name: What to ask for.
        tensors: By their names in the network.
        trained_on: The data set whose classes it was trained to tell apart.
        license: Under which terms they may be used.
        citation: Whom to cite.
        source: Where the bytes came from.
    """

    name: str
    tensors: Mapping[str, Tensor]
    trained_on: str
    license: str
    citation: str
    source: str


def load_pretrained(
    name: str,
    *,
    folder: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Pretrained:
    """Load weights; those that are not on this machine are fetched and verified.

    Args:
        name: A name that `weight_set_names` lists.
        folder: Where you have the file [default: ``$NABLAB_DATA``].
        offline: Ask no server and no registry, as with ``NABLAB_OFFLINE=1``.
        progress: Told what a fetch does [default: a bar or lines on standard error].

    Raises:
        UsageError: There are no weights of this name.
        DataError: They are unavailable, or the file is damaged.
    """
    one = KNOWN.get(name)
    if not isinstance(one, KnownWeights):
        raise unknown("set of weights", name, weight_set_names())
    place = Path(folder) if folder else None
    content = cache.read(
        one, one.files_of(WEIGHTS), folder=place, offline=offline, progress=progress
    )
    (file, data), *_ = content.files.items()
    return Pretrained(
        name=one.name,
        tensors=one.decode(file, data),
        trained_on=one.trained_on,
        license=one.license,
        citation=one.citation,
        source=content.source,
    )
