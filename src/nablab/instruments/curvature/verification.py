r"""Whether products with a second derivative are what they claim to be.

Formulas of second derivatives can be wrong: PyTorch's own of weight norm is (2.13, on
the CPU), layer norm's is under `torch.func.vmap`, and a user's
`torch.autograd.Function` may be. Automatic differentiation passes them on without a
word. So every measurement of curvature begins with two products on one batch:

- against a difference: :math:`Hv` must be :math:`(g(\theta + hv) - g(\theta - hv)) /
  2h`, for each parameter tensor by itself, since one wrong layer is small beside the
  others;
- against each other: :math:`u^\top H v = v^\top H u`, else the "gradient" is no
  derivative of the loss.

A difference is itself only near the truth, and kinks (ReLU) put jumps into it. Three
things keep it from raising false alarms. It is taken in float64, also for a measurement
in float32, with steps of 1e-9 of the weights, so short that hardly ever a kink lies
within. A product that is off is called wrong only if differences of several steps, and
those to either side, agree with each other far better than with it: rounding falls with
the step, a kink nearby adds what changes with it, and at a kink the two sides differ.
And a second direction must confirm it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nablab.errors import UsageError
from nablab.instruments.base.graphs import nodes_behind

# Steps as shares of the weights. Shorter ones drown in rounding; at longer ones kinks
# of many samples add up.
STEPS = (1e-9, 8e-9, 6.4e-8, 5.12e-7, 4.096e-6)
AGREEMENT = 1e-4  # of its size: a product that is this near to a difference is right
# Parameters whose rows are a smaller share of the whole cannot be told from rounding.
NEGLIGIBLE = 1e-6
# Differences of two steps are nearer to each other than this share of their gap to a
# product.
SETTLED = 0.1

WRONG = (
    "its second derivative is wrong: a product with the Hessian differs by {gap:.2g} "
    "of its size from differences of the gradient (PyTorch's own formula for weight "
    "norm and some custom functions do this)"
)
CONTRADICTED = (
    "The products may be wrong: for {part} one differs by {gap:.2g} of its size from "
    "differences of the gradient. Leave method= out, which then measures by those "
    "differences."
)


@dataclass(frozen=True)
class Claim:
    """A function at any point, and what is said to be its derivative at one point.

    Attributes:
        point: Where, float64 (P,).
        function: The function of a point, (Q,), such as a gradient.
        product: Its derivative along a vector (P,), as claimed; (Q,).
        parts: The sizes of the parts of (Q,) that are compared each by itself.
        sizes: The sizes of the parameter tensors.
        coarse: Whether the function rounds to less than its dtype somewhere inside.
    """

    point: Tensor
    function: Callable[[Tensor], Tensor]
    product: Callable[[Tensor], Tensor]
    parts: Sequence[int]
    sizes: Sequence[int]
    coarse: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
        gap: How far a wrong product is off, relative to its size; 0 where none was
            found wrong.
        asymmetry: How far u'Hv and v'Hu differ, relative to their size; for a wrong
            product, of the differences.
        tolerance: The largest asymmetry that rounding explains.
    """

    gap: float = 0.0
    asymmetry: float = 0.0
    tolerance: float = math.inf

    @property
    def wrong(self) -> bool:
        """Whether the product is not the derivative of the function."""
        return self.gap > 0

    def refuse_asymmetry(self) -> None:
        """Refuse a gradient that is not one.

        Raises:
            UsageError: The derivative of the gradient is not symmetric.
        """
        if self.asymmetry > self.tolerance:
            raise UsageError(
                "The gradient of this model is not the derivative of its loss: along "
                "two random directions its derivative is asymmetric by "
                f"{self.asymmetry:.2g} of its size, so there is no Hessian to measure. "
                "A torch.autograd.Function with a backward pass of its own does this, "
                "as straight-through estimators do on purpose. Correct its backward "
                "pass, or put the function that you mean to measure in its place."
            )


def examine(
    claim: Claim, *, differences: bool = True, symmetric: bool = True
) -> Verdict:
    """Compare products with differences of the function and with each other.

    The usual cost is two products and two evaluations of the function; an alarm takes
    up to twenty.

    Args:
        claim: What is claimed.
        differences: Whether to take differences: only in float64 are they near enough
            to the truth.
        symmetric: Whether the derivative must be symmetric.
    """
    scale = _scales(claim.point, claim.sizes)
    generator = torch.Generator().manual_seed(0)
    vectors = [
        scale
        * torch.randn(len(claim.point), generator=generator, dtype=torch.float64).to(
            scale
        )
        for _ in range(2)
    ]
    products = [claim.product(vector) for vector in vectors]
    if not all(bool(product.isfinite().all()) for product in products):
        return Verdict()  # refused where it is used, with its own message
    fine = claim.point.dtype == torch.float64 and not claim.coarse
    if differences and fine:
        first = _Comparison.of(claim, vectors[0], products[0])
        if first.gap:
            second = _Comparison.of(claim, vectors[1], products[1])
            if second.gap:
                pair = [first.difference, second.difference]
                asymmetry = _asymmetry(vectors, pair, scale) if symmetric else 0.0
                return Verdict(max(first.gap, second.gap), asymmetry, 10 * AGREEMENT)
    if not symmetric:
        return Verdict()
    precision = claim.point.dtype if fine else torch.float32
    tolerance = torch.finfo(precision).eps ** (1 / 3)
    return Verdict(0.0, _asymmetry(vectors, products, scale), tolerance)


@dataclass(frozen=True)
class _Comparison:
    """A product beside differences of growing steps.

    Attributes:
        gap: How far the product is off where that is certain, relative to its size,
            else 0.
        difference: The last difference.
    """

    gap: float
    difference: Tensor

    @classmethod
    def of(cls, claim: Claim, vector: Tensor, product: Tensor) -> _Comparison:
        """Take differences until each part of the product is confirmed.

        It ends when all steps are taken.
        """
        right: Tensor | None = None
        wrong = gaps = torch.zeros(
            len(claim.parts), dtype=torch.float64, device=vector.device
        )
        previous = here = None
        difference = product
        for step in STEPS:
            ahead = claim.function(claim.point + step * vector)
            behind = claim.function(claim.point - step * vector)
            difference = (ahead - behind) / (2 * step)
            off = _norms(difference - product, claim.parts)
            sizes = torch.maximum(
                _norms(difference, claim.parts), _norms(product, claim.parts)
            )
            confirmed = off <= AGREEMENT * sizes + NEGLIGIBLE * product.norm()
            right = confirmed if right is None else right | confirmed
            if bool(right.all()):
                return cls(0.0, difference)
            if previous is not None:
                # A function that rounds, such as one that casts to float32, does not
                # move at all.
                moved = _norms(ahead - behind, claim.parts) > 0
                here = claim.function(claim.point) if here is None else here
                sides = _norms(ahead - here - (here - behind), claim.parts) / step
                spread = torch.maximum(
                    _norms(difference - previous, claim.parts), sides
                )
                gaps = torch.where((spread <= SETTLED * off) & moved, off / sizes, gaps)
                wrong = torch.maximum(wrong, gaps)
            previous = difference
        found = torch.where(right, 0.0, wrong) if right is not None else wrong
        return cls(float(found.max()), difference)


def rounds_inside(tensors: Sequence[Tensor]) -> bool:
    """Return whether the tensors' graph casts to a dtype coarser than theirs."""
    finest = torch.finfo(tensors[0].dtype).eps
    for node in nodes_behind(tensors):
        # Only casts are looked at: of outputs that are not there, other nodes state
        # float32.
        kinds = (
            [metadata.dtype for metadata in node._input_metadata]
            if "ToCopy" in node.name()
            else []
        )
        if any(
            kind.is_floating_point and torch.finfo(kind).eps > finest for kind in kinds
        ):
            return True
    return False


def _scales(point: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the root mean square of its parameter tensor for each entry (P,)."""
    whole = float(point.square().mean().sqrt()) or 1.0
    parts = [
        part.square().mean().sqrt().expand(len(part)) if len(part) else part
        for part in torch.split(point, list(sizes))
    ]
    scales = torch.cat(parts)
    return torch.where(scales > 0, scales, whole)


def _norms(vector: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack(
        [part.norm() for part in torch.split(vector, list(sizes))]
    ).double()


def _asymmetry(
    vectors: Sequence[Tensor], products: Sequence[Tensor], scale: Tensor
) -> float:
    """Return the difference of u'Hv and v'Hu beside the length of a product.

    It is measured in units of the weights' scales.
    """
    (u, v), (hu, hv) = vectors, products
    gap = float((u @ hv - v @ hu).abs())
    size = max(float((scale * product).norm()) for product in products)
    return gap / size if size else 0.0
