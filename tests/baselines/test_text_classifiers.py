"""Linear classifiers of texts: by hand, and against scikit-learn's pipelines."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from nablab import baselines, data
from nablab.baselines.text_classifiers import log_count_ratio
from nablab.errors import UsageError

ALL = [baselines.naive_bayes, baselines.logistic_regression, baselines.nb_svm]
WORDS = "good fine great nice bad poor dull weak film plot actor scene".split()  # noqa: SIM905


def reviews(count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Texts of twelve words, of which good ones are more frequent in class 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    weights = np.array([[1] * 4 + [2] * 4 + [3] * 4, [2] * 4 + [1] * 4 + [3] * 4])
    shares = weights / weights.sum(axis=1, keepdims=True)
    texts = [" ".join(rng.choice(WORDS, 12, p=shares[label])) for label in labels]
    return texts, torch.from_numpy(labels)


@pytest.mark.parametrize("classify", ALL)
def test_they_learn(classify: Callable[..., baselines.Predicted]) -> None:
    train, labels = reviews(400, 0)
    test, true = reviews(400, 1)
    predicted = classify(train, labels, test)
    assert predicted.labels.dtype == torch.int64
    assert predicted.accuracy(true) > 0.7
    assert predicted.parameters > 0
    assert predicted.seconds > 0


@pytest.mark.parametrize("classify", ALL)
def test_the_order_of_texts_to_classify_does_not_matter(
    classify: Callable[..., baselines.Predicted],
) -> None:
    train, labels = reviews(100, 0)
    test, _ = reviews(20, 1)
    forward = classify(train, labels, test).labels
    assert torch.equal(classify(train, labels, test[::-1]).labels.flip(0), forward)


def test_naive_bayes_by_hand() -> None:
    train, labels = ["good good film", "bad film"], torch.tensor([1, 0])
    # ln 1/2 + ln (1+0)/(2+3) + ln (1+1)/(2+3) against ln 1/2 + ln 3/6 + ln 2/6
    bad = log(1 / 5) + log(2 / 5)
    good = log(3 / 6) + log(2 / 6)
    assert good > bad
    found = baselines.naive_bayes(train, labels, ["good film", "bad bad"], longest=1)
    assert found.labels.tolist() == [1, 0]


def test_naive_bayes_is_scikit_learns() -> None:
    train, labels = reviews(200, 2)
    test, _ = reviews(200, 3)
    theirs = make_pipeline(
        CountVectorizer(
            tokenizer=data.tokenize, token_pattern=None, ngram_range=(1, 2)
        ),
        MultinomialNB(),
    ).fit(train, labels.numpy())
    ours = baselines.naive_bayes(train, labels, test)
    assert np.array_equal(ours.labels.numpy(), theirs.predict(test))


def test_logistic_regression_is_scikit_learns() -> None:
    train, labels = reviews(200, 2)
    test, true = reviews(200, 3)
    theirs = make_pipeline(
        TfidfVectorizer(
            tokenizer=data.tokenize,
            token_pattern=None,
            ngram_range=(1, 2),
            min_df=2,
            sublinear_tf=True,
        ),
        LogisticRegression(C=10.0, max_iter=1_000),
    ).fit(train, labels.numpy())
    ours = baselines.logistic_regression(train, labels, test)
    # liblinear's intercept is penalized, and its tolerance is loose.
    assert float((ours.labels.numpy() == theirs.predict(test)).mean()) > 0.97
    assert abs(ours.accuracy(true) - theirs.score(test, true.numpy())) < 0.02


def test_log_count_ratios_by_hand() -> None:
    held = csr_matrix(np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0]], dtype=np.float32))
    # class 1 holds the terms 1, 0, 1 times, class 0 1, 2, 0 times; one added to each
    expected = [
        log((2 / 5) / (2 / 6)),
        log((1 / 5) / (3 / 6)),
        log((2 / 5) / (1 / 6)),
    ]
    found = log_count_ratio(held, np.array([1, 0, 0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_more_than_two_classes() -> None:
    train = ["red apple", "green leaf", "blue sky", "red rose", "green tea", "blue sea"]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for classify in (baselines.naive_bayes, baselines.logistic_regression):
        found = classify(train, labels, ["red", "green", "blue"], min_count=2)
        assert found.labels.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="NB-SVM tells two classes apart"):
        baselines.nb_svm(train, labels, ["red"])


@pytest.mark.parametrize("classify", ALL)
def test_impossible_labels_are_refused(
    classify: Callable[..., baselines.Predicted],
) -> None:
    with pytest.raises(UsageError, match="2 training texts and 1 labels"):
        classify(["a", "b"], torch.tensor([0]), ["a"])
    with pytest.raises(UsageError, match="of one class"):
        classify(["a", "b"], torch.tensor([1, 1]), ["a"])


def test_accuracy_needs_a_label_for_each_text() -> None:
    found = baselines.Predicted(torch.tensor([0, 1]), 1, 0.0)
    assert found.accuracy(torch.tensor([0, 0])) == 0.5
    with pytest.raises(UsageError, match="2 texts were classified"):
        found.accuracy(torch.tensor([0]))
