"""Scores of outputs. Importing this package costs nothing until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.metrics.classification import (
        accuracy_with_dropout as accuracy_with_dropout,
    )
    from nablab.metrics.classification import constant_accuracy as constant_accuracy
    from nablab.metrics.classification import (
        most_confident_errors as most_confident_errors,
    )
    from nablab.metrics.classification import outputs as outputs

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "classification": "accuracy_with_dropout constant_accuracy outputs "
        "most_confident_errors"
    },
)

__all__ = ["accuracy_with_dropout", "constant_accuracy", "most_confident_errors"]
