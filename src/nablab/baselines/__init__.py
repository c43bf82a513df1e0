"""Plain methods that a network has to beat: what its scores stand beside.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.baselines.text_classifiers import Predicted as Predicted
    from nablab.baselines.text_classifiers import (
        logistic_regression as logistic_regression,
    )
    from nablab.baselines.text_classifiers import naive_bayes as naive_bayes
    from nablab.baselines.text_classifiers import nb_svm as nb_svm

__getattr__, __dir__ = lazy_names(
    __name__,
    {"text_classifiers": "Predicted logistic_regression naive_bayes nb_svm"},
)

__all__ = ["Predicted", "logistic_regression", "naive_bayes", "nb_svm"]
