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
    from nablab.metrics.classification import confusion_matrix as confusion_matrix
    from nablab.metrics.classification import constant_accuracy as constant_accuracy
    from nablab.metrics.classification import largest_losses as largest_losses
    from nablab.metrics.classification import (
        most_confident_errors as most_confident_errors,
    )
    from nablab.metrics.classification import outputs as outputs
    from nablab.metrics.flat_maps import FlatMap as FlatMap
    from nablab.metrics.flat_maps import flat_map as flat_map
    from nablab.metrics.likelihoods import Bernoulli as Bernoulli
    from nablab.metrics.likelihoods import Gaussian as Gaussian
    from nablab.metrics.likelihoods import Likelihood as Likelihood
    from nablab.metrics.likelihoods import Quadrature as Quadrature
    from nablab.metrics.likelihoods import active_units as active_units
    from nablab.metrics.likelihoods import check_binary as check_binary
    from nablab.metrics.likelihoods import divergence as divergence
    from nablab.metrics.likelihoods import (
        evidence_by_quadrature as evidence_by_quadrature,
    )
    from nablab.metrics.likelihoods import evidence_lower_bound as evidence_lower_bound
    from nablab.metrics.likelihoods import (
        importance_weighted_bound as importance_weighted_bound,
    )
    from nablab.metrics.likelihoods import (
        linear_evidence_lower_bound as linear_evidence_lower_bound,
    )
    from nablab.metrics.posteriors import ROUGH as ROUGH
    from nablab.metrics.posteriors import InferenceGaps as InferenceGaps
    from nablab.metrics.posteriors import expected_bound as expected_bound
    from nablab.metrics.posteriors import inference_gaps as inference_gaps
    from nablab.metrics.views import mean_over_views as mean_over_views

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "analogies": "AnalogyScore analogy_answers score_analogies",
        "classification": "accuracy_with_dropout confusion_matrix constant_accuracy "
        "largest_losses most_confident_errors outputs",
        "flat_maps": "FlatMap flat_map",
        "posteriors": "ROUGH InferenceGaps expected_bound inference_gaps",
        "likelihoods": "Bernoulli Gaussian Likelihood Quadrature active_units "
        "check_binary divergence evidence_by_quadrature evidence_lower_bound "
        "importance_weighted_bound linear_evidence_lower_bound",
        "views": "mean_over_views",
    },
)

__all__ = [
    "ROUGH",
    "AnalogyScore",
    "Bernoulli",
    "FlatMap",
    "Gaussian",
    "InferenceGaps",
    "Likelihood",
    "Quadrature",
    "accuracy_with_dropout",
    "active_units",
    "analogy_answers",
    "check_binary",
    "confusion_matrix",
    "constant_accuracy",
    "divergence",
    "evidence_by_quadrature",
    "evidence_lower_bound",
    "expected_bound",
    "flat_map",
    "importance_weighted_bound",
    "inference_gaps",
    "largest_losses",
    "linear_evidence_lower_bound",
    "mean_over_views",
    "most_confident_errors",
    "score_analogies",
]
