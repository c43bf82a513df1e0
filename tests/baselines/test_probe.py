"""The linear probe: scikit-learn's answer, the optimum itself, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from nablab.baselines import linear_probe
from nablab.errors import UsageError

CLASSES = 4


def drawn(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw features of very different scales, and labels that follow from them."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=draw) / width**0.5
    scales = 10 ** torch.linspace(-2, 2, width)
    plain = torch.randn(count, width, generator=draw) @ mixed
    noise = torch.randn(count, CLASSES, generator=draw)
    labels = (plain[:, :CLASSES] * 2 + noise).argmax(dim=1)
    return plain * scales + 3 * scales, labels


@pytest.mark.parametrize("penalty", [0.3, 0.01, 0.001])
@pytest.mark.parametrize(("count", "width"), [(300, 20), (40, 60)])
def test_it_is_scikit_learns_logistic_regression(
    count: int, width: int, penalty: float
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = drawn(count, width)
    scaler = StandardScaler().fit(features.double().numpy())
    x = scaler.transform(features.double().numpy())
    peer = LogisticRegression(C=1 / (count * penalty), tol=1e-9, max_iter=20_000)
    peer.fit(x, labels.numpy())
    found = linear_probe(features, labels, classes=CLASSES, penalties=[penalty])
    weights = found.weight.double().numpy() * scaler.scale_
    np.testing.assert_allclose(weights, peer.coef_, atol=1e-4)
    ours = found(features).double().softmax(dim=1)
    np.testing.assert_allclose(ours, peer.predict_proba(x), atol=1e-4)
    assert found.accuracy(features, labels) == pytest.approx(
        peer.score(x, labels.numpy())
    )
    assert (found.weight.dtype, found.weight.shape) == (
        torch.float32,
        (CLASSES, width),
    )


def test_the_gradient_at_the_answer_is_zero() -> None:
    features, labels = drawn(200, 15)
    x = features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    found = linear_probe(features, labels, classes=CLASSES, penalties=[0.02])
    weight = (found.weight.double() * std).requires_grad_()
    bias = (found.bias.double() + found.weight.double() @ mean).requires_grad_()
    loss = torch.nn.functional.cross_entropy((x - mean) / std @ weight.T + bias, labels)
    (loss + 0.01 * weight.square().sum()).backward()
    for part in (weight, bias):
        assert part.grad is not None
        assert float(part.grad.norm()) < 1e-5


def test_scales_shifts_and_repeated_images_do_not_matter() -> None:
    features, labels = drawn(120, 10)
    plain = linear_probe(features, labels, classes=CLASSES, penalties=[0.05])
    scale, shift = torch.linspace(0.1, 50, 10), torch.linspace(-5, 5, 10)
    moved = features * scale + shift
    other = linear_probe(moved, labels, classes=CLASSES, penalties=[0.05])
    twice = linear_probe(
        features.repeat(2, 1), labels.repeat(2), classes=CLASSES, penalties=[0.05]
    )
    expected = plain(features)
    torch.testing.assert_close(other(moved), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(twice(features), expected, rtol=1e-3, atol=1e-3)


def test_features_that_never_change_are_left_out() -> None:
    features, labels = drawn(90, 8)
    constant = torch.full((90, 3), 0.1)
    constant[:, 1] = 1e6 / 3
    constant[:, 2] = 0
    found = linear_probe(
        torch.cat([features, constant], dim=1),
        labels,
        classes=CLASSES,
        penalties=[0.05],
    )
    assert (found.weight[:, 8:] == 0).all()
    plain = linear_probe(features, labels, classes=CLASSES, penalties=[0.05])
    torch.testing.assert_close(found.weight[:, :8], plain.weight, rtol=1e-3, atol=1e-4)
    # With nothing to see, every image gets the shares of the classes.
    blind = linear_probe(constant, labels, classes=CLASSES, penalties=[0.05])
    shares = torch.bincount(labels, minlength=CLASSES) / 90
    torch.testing.assert_close(
        blind(constant[:1]).softmax(dim=1)[0], shares, rtol=0, atol=1e-4
    )


def test_the_penalty_is_the_one_that_does_best_on_held_out_images() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(1_060, 30, generator=draw)
    noise = torch.randn(1_060, CLASSES, generator=draw)
    labels = (features[:, :CLASSES] + noise).argmax(dim=1)
    held_out = features[60:], labels[60:]
    features, labels = features[:60], labels[:60]
    penalties = (10.0, 0.1, 0.001)
    each = {
        penalty: linear_probe(features, labels, classes=CLASSES, penalties=[penalty])
        for penalty in penalties
    }
    best = max(penalties, key=lambda one: each[one].accuracy(*held_out))
    assert best == 0.1
    found = linear_probe(
        features, labels, classes=CLASSES, penalties=penalties, held_out=held_out
    )
    assert found.penalty == best
    # It started at the answer of another penalty; the answer is the same.
    torch.testing.assert_close(
        found(features), each[best](features), rtol=1e-3, atol=1e-3
    )
    # Of equal scores the larger penalty counts; nothing is right here.
    same = linear_probe(
        features,
        labels,
        classes=CLASSES,
        penalties=penalties,
        held_out=(features, torch.full_like(labels, CLASSES)),
    )
    assert same.penalty == 10.0
    sizes = [float(each[penalty].weight.norm()) for penalty in penalties]
    assert all(larger < smaller for larger, smaller in pairwise(sizes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": [0.1, 0.0]}, "A penalty of 0 leaves the weights .* above 0"),
        ({"penalties": [0.1, 0.2]}, "give images held out"),
    ],
)
def test_what_has_no_answer_is_refused(
    options: dict[str, list[float]], message: str
) -> None:
    features, labels = drawn(20, 5)
    with pytest.raises(UsageError, match=message):
        linear_probe(features, labels, classes=CLASSES, **options)
    nothing = features[:0], labels[:0]
    with pytest.raises(UsageError, match="give images held out"):
        linear_probe(
            features, labels, classes=CLASSES, penalties=[0.1, 0.2], held_out=nothing
        )
    features[3, 2] = torch.nan
    with pytest.raises(UsageError, match="Some features are not finite"):
        linear_probe(features, labels, classes=CLASSES, penalties=[0.1])
