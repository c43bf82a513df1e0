r"""A linear probe: multinomial logistic regression on features, solved to its optimum.

Features x are standardized, so that one penalty is fair to all of them. Weights W and
biases b minimize

.. math:: \frac1n \sum_i -\log p(y_i \mid W x_i + b) + \frac\lambda2 \|W\|^2 .

The problem is convex: there is one answer, and a learning rate is no part of it.

What makes it fast: W lies in the span of the images, so with n images it needs at most
n directions. In the principal directions the curvature along direction j is at most
half its second moment plus the penalty (Böhning 1992); divided by that root, all
directions are about equally curved, and L-BFGS needs some twenty steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.errors import UsageError

STEPS = 300  # of L-BFGS, at most
EXACT = 1e-11  # change of the loss at which weights are right to four digits
NOTHING = 1e-10  # of the largest second moment: a direction that rounding made
SAME = 1e-12  # of a feature's size: a deviation that rounding made


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features.

    Attributes:
        weight: Of the features as they are, float32 (K, D).
        bias: float32 (K,).
        penalty: The λ that it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, D)."""
        return features @ self.weight.T + self.bias

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of features (N, D) whose label (N,) is found."""
        return float((self(features).argmax(dim=1) == labels).double().mean())


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float],
    held_out: tuple[Tensor, Tensor] | None = None,
    tolerance: float = EXACT,
) -> LinearProbe:
    """Fit a probe; of several penalties the one that does best on held-out images.

    Args:
        features: (N, D).
        labels: int64 (N,), from 0.
        classes: Number of classes K.
        penalties: Each λ to try, above 0.
        held_out: Features and labels to choose by; of equal scores the larger λ counts.
        tolerance: The change of the loss in a step of L-BFGS at which it ends.

    Raises:
        UsageError: Several penalties and nothing to choose by, one that is not above 0,
            or features that are not finite.
    """
    if min(penalties) <= 0:
        raise UsageError(
            f"A penalty of {min(penalties):g} leaves the weights of a probe undecided "
            "where it separates all images: it must be above 0."
        )
    if len(penalties) > 1 and (held_out is None or not len(held_out[1])):
        raise UsageError("To choose between penalties, give images held out.")
    if not bool(features.isfinite().all()):
        raise UsageError(
            "Some features are not finite: no probe can be fitted on them. Look at the "
            "weights of the network and at the scale of its inputs."
        )
    problem = _Problem(features, labels, classes)
    best, score = None, -1.0
    for penalty in sorted(penalties, reverse=True):
        found = problem.solve(penalty, tolerance)
        if held_out is None:
            return found
        if (own := found.accuracy(*held_out)) > score:
            best, score = found, own
    assert best is not None
    return best


class _Problem:
    """The images in their principal directions; each answer starts the next one."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        x = features.double()
        self.mean, self.std = x.mean(dim=0), x.std(dim=0, correction=0)
        # A feature that is always the same says nothing; it is zero, not infinite.
        varies = self.std > SAME * x.abs().amax(dim=0)
        self.std = torch.where(varies, self.std, torch.inf)
        x = (x - self.mean) / self.std
        self.directions, self.moments = _principal_directions(x)
        self.x, self.labels = x @ self.directions, labels
        self.start = torch.zeros(classes, len(self.moments), dtype=torch.float64)
        self.bias = torch.zeros(classes, dtype=torch.float64)

    def solve(self, penalty: float, tolerance: float) -> LinearProbe:
        root = (self.moments / 2 + penalty).sqrt()
        scaled = (self.start * root).requires_grad_()
        bias = self.bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled, bias],
            max_iter=STEPS,
            tolerance_grad=0.0,
            tolerance_change=tolerance,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            weight = scaled / root
            value = torch.nn.functional.cross_entropy(
                self.x @ weight.T + bias, self.labels
            )
            value = value + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        self.start, self.bias = (scaled / root).detach(), bias.detach()
        weight = self.start @ self.directions.T / self.std
        return LinearProbe(
            weight.float(), (self.bias - weight @ self.mean).float(), penalty
        )


def _principal_directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions (D, r) that span the rows of x (N, D).

    With them the mean square of x along each.
    """
    count, width = x.shape
    if count < width:
        values, vectors = torch.linalg.eigh(x @ x.T)
        kept = values > NOTHING * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        return x.T @ vectors / values.sqrt(), values / count
    values, vectors = torch.linalg.eigh(x.T @ x)
    kept = values > NOTHING * values[-1]
    return vectors[:, kept], values[kept] / count
