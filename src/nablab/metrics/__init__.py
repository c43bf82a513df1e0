"""Scores of outputs. Importing this package costs nothing until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.metrics.analogies import AnalogyScore as AnalogyScore
    from nablab.metrics.analogies import analogy_answers as analogy_answers
    from nablab.metrics.analogies import score_analogies as score_analogies
    from nablab.metrics.classification import (
        accuracy_with_dropout as accuracy_with_dropout,
    )
    from nablab.metrics.classification import constant_accuracy as constant_accuracy
    from nablab.metrics.classification import (
        most_confident_errors as most_confident_errors,
    )
    from nablab.metrics.classification import outputs as outputs
    from nablab.metrics.flat_maps import FlatMap as FlatMap
    from nablab.metrics.flat_maps import flat_map as flat_map

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "analogies": "AnalogyScore analogy_answers score_analogies",
        "classification": "accuracy_with_dropout constant_accuracy outputs "
        "most_confident_errors",
        "flat_maps": "FlatMap flat_map",
    },
)

__all__ = [
    "AnalogyScore",
    "FlatMap",
    "accuracy_with_dropout",
    "analogy_answers",
    "constant_accuracy",
    "flat_map",
    "most_confident_errors",
    "score_analogies",
]
