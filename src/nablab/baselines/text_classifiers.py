"""Linear classifiers of texts by their words and word pairs.

Each takes training texts with labels and the texts to be classified, and has no
choices left: what had to be chosen was chosen on held-out training texts, and the
comment beside it says how. They look at no label of the texts that they classify.

    predicted = naive_bayes(train.texts, train.labels, test.texts)
    predicted.accuracy(test.labels)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nablab.data import count_terms, tf_idf
from nablab.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

# Log-count ratios are damped by one text that holds every term (Wang, Manning 2012).
SMOOTHING = 1.0


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a baseline says of texts.

    Attributes:
        labels: int64 (N,): the class of each text.
        parameters: Numbers that were learned.
        seconds: What counting, learning and predicting took, on this machine.
    """

    labels: Tensor
    parameters: int
    seconds: float

    def accuracy(self, true: Tensor) -> float:
        """Return the share of texts whose class is right.

        Args:
            true: int64 (N,).

        Raises:
            UsageError: The numbers of labels differ.
        """
        if len(true) != len(self.labels):
            raise UsageError(
                f"{len(self.labels):,} texts were classified, and there are "
                f"{len(true):,} labels."
            )
        return float((self.labels == true.cpu()).double().mean())


def naive_bayes(
    train: Sequence[str],
    labels: Tensor,
    test: Sequence[str],
    *,
    longest: int = 2,
    min_count: int = 1,
) -> Predicted:
    r"""Classify texts by multinomial naive Bayes.

    The class with the largest :math:`\ln p(c) + \sum_w n_w \ln p(w \mid c)`, where
    :math:`n_w` is how often a word or word pair stands in the text, and
    :math:`p(w \mid c)` its share of the class's words, one added to each count.

    Args:
        train: Training texts.
        labels: int64 (N,): their classes, from 0.
        test: The texts to be classified.
        longest: Words of the longest term.
        min_count: In how many training texts a term must occur.
    """
    from sklearn.naive_bayes import MultinomialNB

    began = time.perf_counter()
    _check(train, labels)
    known, asked = count_terms(train, test, longest=longest, min_count=min_count)
    model = MultinomialNB().fit(known, labels.numpy())
    return _predicted(model.predict(asked), model.feature_log_prob_.size, began)


def logistic_regression(
    train: Sequence[str],
    labels: Tensor,
    test: Sequence[str],
    *,
    longest: int = 2,
    min_count: int = 2,
    strength: float = 10.0,
    seed: int = 0,
) -> Predicted:
    """Classify texts by logistic regression on TF-IDF of words and word pairs.

    One class against the rest where there are more than two.

    Args:
        train: Training texts.
        labels: int64 (N,): their classes, from 0.
        test: The texts to be classified.
        longest: Words of the longest term.
        min_count: In how many training texts a term must occur.
        strength: Weight of the data against the L2 penalty (scikit-learn's C).
        seed: Order in which the solver takes the texts.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    began = time.perf_counter()
    _check(train, labels)
    known, asked = tf_idf(train, test, longest=longest, min_count=min_count)
    # The dual solver (Yu et al. 2011) takes a second where the default takes a minute.
    one = LogisticRegression(
        C=strength, solver="liblinear", dual=True, tol=0.01, random_state=seed
    )
    model = OneVsRestClassifier(one).fit(known, labels.numpy())
    parameters = sum(part.coef_.size + 1 for part in model.estimators_)
    return _predicted(model.predict(asked), parameters, began)


def nb_svm(
    train: Sequence[str],
    labels: Tensor,
    test: Sequence[str],
    *,
    longest: int = 2,
    min_count: int = 2,
    strength: float = 0.01,
    seed: int = 0,
) -> Predicted:
    r"""Classify texts of two classes by a linear SVM on naive Bayes' log-count ratios.

    NB-SVM (Wang and Manning 2012): a text is the set of its words and word pairs, each
    weighted by :math:`r = \ln\frac{p / \|p\|_1}{q / \|q\|_1}`, where p and q count the
    training texts of either class that hold it, one added to each.

    Args:
        train: Training texts.
        labels: int64 (N,): their classes, 0 or 1.
        test: The texts to be classified.
        longest: Words of the longest term.
        min_count: In how many training texts a term must occur.
        strength: Weight of the data against the L2 penalty (scikit-learn's C).
        seed: Order in which the solver takes the texts.

    Raises:
        UsageError: There are more than two classes.
    """
    from sklearn.svm import LinearSVC

    began = time.perf_counter()
    _check(train, labels)
    if int(labels.max()) > 1:
        raise UsageError(
            f"NB-SVM tells two classes apart, and there are {int(labels.max()) + 1}. "
            "Take logistic_regression."
        )
    known, asked = count_terms(train, test, longest=longest, min_count=min_count)
    true = labels.numpy()
    for matrix in (known, asked):
        matrix.data[:] = 1
    ratio = log_count_ratio(known, true)
    model = LinearSVC(C=strength, dual=True, tol=0.1, random_state=seed)
    model.fit(_scaled(known, ratio), true)
    return _predicted(model.predict(_scaled(asked, ratio)), model.coef_.size + 1, began)


def log_count_ratio(held: csr_matrix, labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute how much more a term stands for class 1 than for class 0.

    Args:
        held: 1 where a text holds a term, else 0; (N, terms).
        labels: (N,), 0 or 1.

    Returns:
        float32 (terms,).
    """
    first, second = (
        SMOOTHING + np.asarray(held[labels == label].sum(axis=0), np.float64).ravel()
        for label in (1, 0)
    )
    ratio = np.log(first / first.sum()) - np.log(second / second.sum())
    return np.asarray(ratio, np.float32)


def _scaled(matrix: csr_matrix, weights: NDArray[np.float32]) -> csr_matrix:
    """Multiply each column by its weight, in place."""
    matrix.data *= weights[matrix.indices]
    return matrix


def _check(train: Sequence[str], labels: Tensor) -> None:
    if len(train) != len(labels):
        raise UsageError(
            f"There are {len(train):,} training texts and {len(labels):,} labels. Give "
            "one label for each text."
        )
    if bool((labels == labels[0]).all()):
        raise UsageError("All training texts are of one class: nothing can be learned.")


def _predicted(labels: Any, parameters: int, began: float) -> Predicted:
    return Predicted(
        torch.from_numpy(np.asarray(labels, np.int64)),
        int(parameters),
        time.perf_counter() - began,
    )
