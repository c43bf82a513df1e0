"""What a result stands beside: plain methods, and the usual tools.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.baselines.fast_images import BUDGETS as BUDGETS
    from nablab.baselines.fast_images import FastImages as FastImages
    from nablab.baselines.fast_images import accuracies as accuracies
    from nablab.baselines.fast_images import answers as answers
    from nablab.baselines.images import CenteredImages as CenteredImages
    from nablab.baselines.images import centered_images as centered_images
    from nablab.baselines.images import on_rows as on_rows
    from nablab.baselines.images import squared_error as squared_error
    from nablab.baselines.linear_autoencoder import (
        LinearAutoencoder as LinearAutoencoder,
    )
    from nablab.baselines.linear_autoencoder import largest_angle as largest_angle
    from nablab.baselines.linear_autoencoder import (
        regularized_optimum as regularized_optimum,
    )
    from nablab.baselines.principal import Moments as Moments
    from nablab.baselines.principal import PrincipalComponents as PrincipalComponents
    from nablab.baselines.principal import ProbabilisticPca as ProbabilisticPca
    from nablab.baselines.principal import check_coordinates as check_coordinates
    from nablab.baselines.principal import filtered_error as filtered_error
    from nablab.baselines.principal import principal_components as principal_components
    from nablab.baselines.principal import probabilistic_pca as probabilistic_pca
    from nablab.baselines.principal import wiener_filter as wiener_filter
    from nablab.baselines.probe import LinearProbe as LinearProbe
    from nablab.baselines.probe import linear_probe as linear_probe
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
        "fast_images": "BUDGETS FastImages accuracies answers",
        "images": "CenteredImages centered_images on_rows squared_error",
        "linear_autoencoder": "LinearAutoencoder largest_angle regularized_optimum",
        "principal": "Moments PrincipalComponents ProbabilisticPca check_coordinates "
        "filtered_error principal_components probabilistic_pca wiener_filter",
        "probe": "LinearProbe linear_probe",
        "skorch_search": "GridSearched grid_search_cv",
        "text_classifiers": "Predicted logistic_regression naive_bayes nb_svm",
        "torch_learner": "TorchLearner",
        "word_counts": "count_vectors",
    },
)

__all__ = [
    "BUDGETS",
    "CenteredImages",
    "FastImages",
    "GridSearched",
    "LinearAutoencoder",
    "LinearProbe",
    "Moments",
    "Predicted",
    "PrincipalComponents",
    "ProbabilisticPca",
    "TorchLearner",
    "accuracies",
    "answers",
    "centered_images",
    "check_coordinates",
    "count_vectors",
    "filtered_error",
    "grid_search_cv",
    "largest_angle",
    "linear_probe",
    "logistic_regression",
    "naive_bayes",
    "nb_svm",
    "on_rows",
    "principal_components",
    "probabilistic_pca",
    "regularized_optimum",
    "squared_error",
    "wiener_filter",
]
