"""Replicas measured by differences of gradients, not by second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablab.instruments.base.batches import Batches
from nablab.instruments.base.replica_objective import ReplicaObjective
from nablab.instruments.base.replicas import Replicas
from nablab.instruments.curvature.operators import (
    FINITE_DIFFERENCE,
    digits_of_differences,
)
from nablab.instruments.curvature.verification import (
    WRONG,
    Claim,
    Verdict,
    examine,
    rounds_inside,
)


class ByDifferences(ReplicaObjective):
    """A `ReplicaObjective` with products by central differences of the gradient.

    Attributes:
        stretch: Multiplies the steps; products of two stretches differ by what the
            steps do to them.
        why: Why there is nothing better.
    """

    stretch: float
    why: str

    @classmethod
    def of(cls, objective: ReplicaObjective, why: str) -> ByDifferences:
        """Return the same networks and data as ``objective``."""
        found = cls.__new__(cls)
        found.__dict__.update(objective.__dict__)
        found.stretch, found.why = 1.0, why
        digits = digits_of_differences(objective.base.dtype)
        found.notes = (
            *objective.notes,
            FINITE_DIFFERENCE.format(why=why, digits=digits),
        )
        return found

    def gradients_and_products(
        self, points: Tensor, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `ReplicaObjective`; three gradients."""
        gradients = self.gradients(points)
        return gradients, self.products(points, choose(gradients))

    def products(self, points: Tensor, vectors: Tensor) -> Tensor:
        """See `ReplicaObjective`; two gradients."""
        lengths = vectors.norm(dim=1, keepdim=True)
        # The cube root of the unit roundoff balances truncation (h^2) and cancellation
        # (eps / h).
        steps = torch.finfo(points.dtype).eps ** (1 / 3) * (
            1 + points.norm(dim=1, keepdim=True)
        )
        steps = self.stretch * steps / torch.where(lengths > 0, lengths, 1.0)
        ahead = self.gradients(points + steps * vectors)
        behind = self.gradients(points - steps * vectors)
        found: Tensor = (ahead - behind) / (2 * steps)
        return found


def verified(
    objective: ReplicaObjective,
    model: nn.Module | Replicas,
    loss: Any,
    *,
    parameters: str | Sequence[str] = "*",
    check: bool = True,
) -> ReplicaObjective:
    """Return the objective if its second derivative is right.

    Else return the same by differences of its gradient.

    One network is looked at, on the first batch; see
    `nablab.instruments.curvature.verification`.

    Args:
        objective: The networks.
        model: What it was made of.
        loss: What it was made of.
        parameters: What it was made of.
        check: False leaves the comparison out, not the fallback for a model without
            second derivative.

    Raises:
        UsageError: Half precision; a gradient that is not the derivative of the loss.
    """
    share = objective.batches.weights[0]
    first = _on_batch(objective, _finite_replica(objective))
    try:
        if not check:
            first.products(first.points, torch.ones_like(first.points))
            objective.spent += share * first.spent
            return objective
        fine = _in_float64(objective, first, model, loss, parameters)
        try:
            verdict = _examined(fine or first, differences=fine is not None)
        # It fails in float64; perhaps not in the dtype of the measurement.
        except (RuntimeError, TypeError):
            fine = None
            verdict = _examined(first, differences=False)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0][:120]
        return ByDifferences.of(
            objective, f"this model has no second derivative ({reason})"
        )
    # The graph and two products with it take five gradients.
    objective.spent += share * ((fine or first).spent + 5)
    verdict.refuse_asymmetry()
    return (
        ByDifferences.of(objective, WRONG.format(gap=verdict.gap))
        if verdict.wrong
        else objective
    )


def _examined(network: ReplicaObjective, *, differences: bool) -> Verdict:
    """Return the verdict on one network with one batch.

    Its `spent` counts the differences only.
    """
    sizes = [shape.numel() for shape in network.base.shapes]
    network.spent = 0.0
    with network.quiet():
        leaf, gradients = network._graph(network.points, network.batches.items[0])

        def product(vector: Tensor) -> Tensor:
            if not gradients.requires_grad:  # the loss is linear in every parameter
                return torch.zeros_like(vector)
            found = torch.autograd.grad(
                gradients,
                leaf,
                vector[None].to(leaf),
                retain_graph=True,
                materialize_grads=True,
            )
            return found[0][0]

        claim = Claim(
            point=network.points[0],
            function=lambda point: network.gradients(point[None])[0],
            product=product,
            parts=sizes,
            sizes=sizes,
            coarse=rounds_inside([gradients]),
        )
        return examine(claim, differences=differences)


def _finite_replica(objective: ReplicaObjective) -> Tensor:
    """Return the number (1,) of the first network with a finite loss, or 0."""
    for number in range(len(objective)):
        chosen = torch.tensor([number])
        if len(objective) == 1 or bool(objective.subset(chosen).losses().isfinite()):
            return chosen
    return torch.tensor([0])


def _on_batch(objective: ReplicaObjective, number: Tensor) -> ReplicaObjective:
    part = objective.subset(number)
    part.batches = Batches(part.batches.items[:1], part.batches.samples[:1])
    return part


def _in_float64(
    objective: ReplicaObjective,
    first: ReplicaObjective,
    model: nn.Module | Replicas,
    loss: Any,
    parameters: str | Sequence[str],
) -> ReplicaObjective | None:
    """Return one network with one batch in float64, or None if unavailable."""
    if objective.base.dtype == torch.float64:
        return first
    if objective.per_replica_targets:
        return None
    one = (
        model.select(_finite_replica(objective).tolist())
        if isinstance(model, Replicas)
        else model
    )
    batch = iter(first.batches.items)
    try:
        return ReplicaObjective(
            one, loss, batch, parameters=parameters, dtype=torch.float64, check=False
        )
    except (RuntimeError, TypeError):
        return None
