"""What a result stands beside: plain methods, and the usual tools.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.baselines.linear_autoencoder import (
        LinearAutoencoder as LinearAutoencoder,
    )
    from nablab.baselines.linear_autoencoder import largest_angle as largest_angle
    from nablab.baselines.linear_autoencoder import (
        regularized_optimum as regularized_optimum,
    )
    from nablab.baselines.principal import Moments as Moments
    from nablab.baselines.principal import PrincipalComponents as PrincipalComponents
    from nablab.baselines.principal import principal_components as principal_components
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
        "linear_autoencoder": "LinearAutoencoder largest_angle regularized_optimum",
        "principal": "Moments PrincipalComponents principal_components",
        "skorch_search": "GridSearched grid_search_cv",
        "text_classifiers": "Predicted logistic_regression naive_bayes nb_svm",
        "torch_learner": "TorchLearner",
        "word_counts": "count_vectors",
    },
)

__all__ = [
    "GridSearched",
    "LinearAutoencoder",
    "Moments",
    "Predicted",
    "PrincipalComponents",
    "TorchLearner",
    "count_vectors",
    "grid_search_cv",
    "largest_angle",
    "logistic_regression",
    "naive_bayes",
    "nb_svm",
    "principal_components",
    "regularized_optimum",
]
