"""Muon: momentum whose singular values are all made 1 before the step.

The gradient of a weight matrix has a few large singular values and many small ones, so
that a step of SGD moves the matrix in a few directions only. Muon takes the momentum M
= U S V^T and steps along U V^T, its nearest orthogonal matrix: all directions move
equally far (Jordan et al., Muon, 2024; Bernstein and Newhouse, Old optimizer, new norm,
2024, arXiv:2409.20325). U V^T is found by products of matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.training.engine import Unsupported
from nablab.training.optimizers import Number, Specification

# Of the odd polynomial a x + b x^3 + c x^5 that is applied again and again. It drives
# singular values from 0 to 1 into about 0.7 to 1.2, fast rather than exactly: what
# PyTorch's Muon has by default, from Jordan's description.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Muon(Specification):
    """Orthogonalized momentum for matrices and filters, SGD for everything else.

    A filter bank (outputs, inputs, height, width) counts as a matrix of ``outputs``
    rows. Everything else is vectors and the last weight with two axes or more, the
    network's output layer; these are trained by SGD with the same kind of momentum.
    Where all parameters are matrices but for the output layer it is `torch.optim.Muon`
    with ``adjust_lr_fn`` that changes nothing.

    Attributes:
        learning_rate: Of matrices: the step has singular values of about this size.
        momentum: Of matrices.
        nesterov: Whether the step looks one step of momentum ahead; for both.
        weight_decay: Matrices shrink by ``learning_rate * weight_decay`` at each step,
            as with `AdamW`.
        fixed_norm: Before each step a matrix of r rows is scaled to the Frobenius norm
            sqrt(r). For layers that are followed by batch norm, whose output does not
            depend on it: the step then always is the same share of the weights.
        iterations: Of the polynomial that orthogonalizes.
        others_learning_rate: Of everything else.
        others_momentum: Of everything else.
    """

    learning_rate: Number = 2e-2
    momentum: Number = 0.95
    nesterov: bool = True
    weight_decay: Number = 0.0
    fixed_norm: bool = False
    iterations: int = 5
    others_learning_rate: Number = 1e-2
    others_momentum: Number = 0.9

    def slots(self) -> tuple[str, ...]:
        """Refuse: stacked weights (K, P) have no rows and columns."""
        raise Unsupported("Muon needs the shape of each weight")

    def torch_optimizer(
        self, parameters: Iterable[nn.Parameter], replica: int
    ) -> torch.optim.Optimizer:
        """Build the optimizer of one replica."""
        return Orthogonalized(
            parameters,
            lr=self.learning_rate_of(replica),
            momentum=self.number_of("momentum", replica),
            nesterov=self.nesterov,
            weight_decay=self.number_of("weight_decay", replica),
            fixed_norm=self.fixed_norm,
            iterations=self.iterations,
            others_lr=self.number_of("others_learning_rate", replica),
            others_momentum=self.number_of("others_momentum", replica),
        )


class Orthogonalized(torch.optim.Optimizer):
    """What `Muon` specifies, for parameters that have their shape.

    Its one parameter group has the learning rate of matrices; that of the others keeps
    its ratio to it when a schedule changes it.

    Args:
        parameters: In the network's order, the output layer's last.
        numbers: As `Muon.torch_optimizer` gives them.

    Raises:
        UsageError: No parameter is a matrix apart from the output layer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **numbers: Any) -> None:
        own = list(parameters)
        matrices = [place for place, weight in enumerate(own) if weight.ndim > 1][:-1]
        if not matrices:
            raise UsageError(
                "Muon orthogonalizes steps of weight matrices before the output layer, "
                "and this network has none. Use SGD or Adam."
            )
        # A rate of 0 would leave the others nothing to keep a ratio to.
        if not numbers["lr"] > 0:
            raise UsageError("Muon: learning_rate must be above 0.")
        ratio = numbers.pop("others_lr") / numbers["lr"]
        super().__init__(own, {**numbers, "others_ratio": ratio, "matrices": matrices})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step in place."""
        found = None if closure is None else closure()
        for group in self.param_groups:
            matrices = set(group["matrices"])
            for place, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                if place in matrices:
                    self._step_matrix(weight, group)
                else:
                    self._step_other(weight, group)
        return found

    def _step_matrix(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        # PyTorch's Muon averages: it adds (1 - momentum) of the gradient. The direction
        # is the same, since its size is taken out.
        direction = self._direction(weight, group["momentum"], group["nesterov"])
        if group["fixed_norm"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm())
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        matrix = orthogonalized(direction.flatten(1), group["iterations"])
        weight.sub_(matrix.view_as(weight), alpha=group["lr"])

    def _step_other(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        direction = self._direction(weight, group["others_momentum"], group["nesterov"])
        weight.sub_(direction, alpha=group["lr"] * group["others_ratio"])

    def _direction(
        self, weight: nn.Parameter, momentum: float, nesterov: bool
    ) -> Tensor:
        """Take the gradient into the velocity; return where to step."""
        assert weight.grad is not None
        if "velocity" not in self.state[weight]:
            self.state[weight]["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = self.state[weight]["velocity"]
        velocity.mul_(momentum).add_(weight.grad)
        return weight.grad + momentum * velocity if nesterov else velocity


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Approach the orthogonal matrix U V^T nearest to a matrix U S V^T.

    Args:
        matrix: (m, n).
        iterations: Of the polynomial; five bring singular values of a hundredth of the
            largest to about 1.

    Returns:
        (m, n), of the matrix's dtype; its singular values are about 0.7 to 1.2.

    >>> found = orthogonalized(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    >>> bool((found.diag() - 1).abs().max() < 0.35)
    True
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    # The spectral norm is at most the Frobenius norm.
    start = wide / wide.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    # X becomes (a I + b G + c G^2) X with G = X X^T. All factors are polynomials of the
    # first G and commute, so that G can be followed alone and X be multiplied once:
    # 256 filters of 2,304 weights took 14 instead of 26 ms.
    gram = start @ start.T
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    product = identity
    for _ in range(iterations):
        factor = a * identity + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    found: Tensor = product @ start
    return found if wide is matrix else found.T
