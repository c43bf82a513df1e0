"""Data sets and functions to learn, as tensors. Importing this package costs nothing until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.data.expressions import parse_expression as parse_expression
    from nablab.data.functions import TARGETS as TARGETS
    from nablab.data.functions import Target as Target
    from nablab.data.functions import sawtooth_depth as sawtooth_depth
    from nablab.data.functions import target as target
    from nablab.data.images import Augment as Augment
    from nablab.data.images import ImageSet as ImageSet
    from nablab.data.images import Normalize as Normalize
    from nablab.data.load import load as load

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "functions": "TARGETS Target sawtooth_depth target",
        "expressions": "parse_expression",
        "images": "Augment ImageSet Normalize",
        "load": "load",
    },
)

__all__ = [
    "TARGETS",
    "Augment",
    "ImageSet",
    "Normalize",
    "Target",
    "load",
    "parse_expression",
    "sawtooth_depth",
    "target",
]
