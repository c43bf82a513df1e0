"""Random ReLU features with a least-squares output.

Double descent without any iterative training.

The hidden weights are drawn once and stay. What is learned is linear, so the solution
is exact: least squares with fewer features than samples, and with more the
interpolating solution of smallest norm, which is where gradient descent from zero would
end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nablab.errors import UsageError

if TYPE_CHECKING:
    from torch import Generator, Tensor

# the features of all test samples would be far more than the samples
ROWS_AT_ONCE = 2_000


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    """max(0, Wx) with drawn W and a linear output that was fitted.

    Attributes:
        directions: W, float64 (D, inputs).
        weights: Of the output, float64 (D, K).
    """

    directions: Tensor
    weights: Tensor

    @classmethod
    def fit(
        cls, x: Tensor, targets: Tensor, *, features: int, generator: Generator
    ) -> RandomFeatures:
        """Draw the directions and fit the output by `minimum_norm`.

        The directions are Gaussian of variance 1 / inputs.

        Args:
            x: Samples (N, ...).
            targets: What to predict (N, K).
            features: Number D of features; at D = N the test error is largest.
            generator: On the CPU, for the directions.
        """
        import torch

        inputs = x[0].numel()
        drawn = torch.randn(
            (features, inputs), generator=generator, dtype=torch.float64
        )
        directions = drawn / inputs**0.5
        return cls(directions, minimum_norm(_features(x, directions), targets))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the outputs, float64 (N, K), for samples (N, ...)."""
        import torch

        parts = torch.split(x, ROWS_AT_ONCE)
        return torch.cat(
            [_features(part, self.directions) @ self.weights for part in parts]
        )


def _features(x: Tensor, directions: Tensor) -> Tensor:
    return (x.flatten(1).double() @ directions.T).relu_()


def minimum_norm(features: Tensor, targets: Tensor) -> Tensor:
    r"""Compute the least-squares solution of smallest norm, :math:`\Phi^+ Y`.

    It is found by the singular value decomposition.

    Let samples and features be Gaussian and p of them be used out of more: the expected
    error is :math:`r (1 + p / (n - p - 1))` for p < n - 1 and :math:`b (1 - n / p) + r
    (1 + n / (p - n - 1))` for p > n + 1, where b is the squared norm of the used true
    weights and r of the others, with the variance of the noise. Both grow without bound
    towards p = n. Source: Belkin, Hsu and Xu, "Two models of double descent for weak
    features", 2020, arXiv:1903.07571.

    Args:
        features: Features (N, D) of the training samples, float64.
        targets: What to predict (N, K).

    Returns:
        Output weights (D, K), float64.

    Raises:
        UsageError: The numbers of samples differ, or there is nothing to fit.

    >>> import torch
    >>> weights = minimum_norm(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]]))
    >>> weights[:, 0].round(decimals=6).tolist()
    [1.0, 1.0]
    """
    import torch

    if (
        features.ndim != 2
        or targets.ndim != 2
        or len(features) != len(targets)
        or not features.numel()
    ):
        raise UsageError(
            "Least squares needs features (N, D) and targets (N, K) of the same N, "
            f"above 0; here they are {tuple(features.shape)} and "
            f"{tuple(targets.shape)}."
        )
    solution: Tensor = torch.linalg.lstsq(
        features.double(), targets.double(), driver="gelsd"
    ).solution
    return solution
