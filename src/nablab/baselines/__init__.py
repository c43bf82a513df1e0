"""What a result stands beside: plain methods, and the usual tools.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.baselines.skorch_search import GridSearched as GridSearched
    from nablab.baselines.skorch_search import grid_search_cv as grid_search_cv
    from nablab.baselines.text_classifiers import Predicted as Predicted
    from nablab.baselines.text_classifiers import (
        logistic_regression as logistic_regression,
    )
    from nablab.baselines.text_classifiers import naive_bayes as naive_bayes
    from nablab.baselines.text_classifiers import nb_svm as nb_svm
    from nablab.baselines.torch_learner import TorchLearner as TorchLearner
    from nablab.baselines.word_counts import count_vectors as count_vectors

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "skorch_search": "GridSearched grid_search_cv",
        "text_classifiers": "Predicted logistic_regression naive_bayes nb_svm",
        "torch_learner": "TorchLearner",
        "word_counts": "count_vectors",
    },
)

__all__ = [
    "GridSearched",
    "Predicted",
    "TorchLearner",
    "count_vectors",
    "grid_search_cv",
    "logistic_regression",
    "naive_bayes",
    "nb_svm",
]
