r"""Products with the generalized Gauss-Newton matrix of a loss, without forming it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.batches import Batches
from nablab.instruments.base.graphs import has_dead_end
from nablab.instruments.base.losses import split
from nablab.instruments.base.objective import Objective
from nablab.instruments.curvature.operators import (
    FINITE_DIFFERENCE,
    Operator,
    difference_step,
    digits_of_differences,
    in_float64,
)
from nablab.instruments.curvature.verification import Claim, examine, rounds_inside

WRONG_JACOBIAN = (
    "its derivative of the backward pass is wrong: a product with the Jacobian "
    "differs by {gap:.2g} of its size from differences of the outputs"
)
WRONG_LOSS = (
    "The loss's own second derivative is wrong, by {gap:.2g} of its size, so central "
    "differences of its slope in the outputs are taken: about {digits} digits."
)
PENALTY = (
    "The loss depends on the parameters also past the outputs (a penalty on weights "
    "does): the Gauss-Newton matrix is that of the outputs and leaves this part out. "
    "The Hessian counts it."
)


class GaussNewtonOperator(Operator):
    r"""The Gauss-Newton matrix :math:`\frac1N\sum_i J_i^\top H_{\ell,i} J_i`.

    :math:`J` is the Jacobian of the outputs in the parameters and :math:`H_\ell` the
    Hessian of the loss in the outputs. It is positive semidefinite for a convex loss by
    construction: never ask it for negative curvature (Schraudolph 2002; Martens 2020).
    The loss must be given as ``loss(output, target)``.

    Args:
        model: See `HessianOperator`.
        loss: A name or ``loss(output, target)``; a `Closure` is not accepted.
        data: Batches (inputs, target).
        parameters: See `HessianOperator`.
        dtype: See `HessianOperator`.
        batch_size: See `HessianOperator`.
        check: See `Objective`; and check the derivatives that products are made of on
            the first batch.

    Raises:
        UsageError: See `Objective`; a `Closure`; half precision; a backward pass that
            is not the derivative.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Any,
        data: Any,
        *,
        parameters: Any = "*",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        check: bool = True,
    ) -> None:
        super().__init__(
            Objective(
                model,
                loss,
                data,
                parameters=parameters,
                dtype=dtype,
                batch_size=batch_size,
                check=check,
            )
        )
        self._exact = self._exact_loss = True
        with self.objective.quiet():
            leaves = self.objective.leaves()
            outputs, target = self._outputs(self.objective.batches.items[0], leaves)
            # A closure is refused here.
            self.objective.criterion(outputs.detach(), target)
            why = self._lacking(outputs, leaves)
        if why:
            self._take_differences(why)
        if check:
            self._verify(model, loss, parameters)

    def _lacking(self, outputs: Tensor, leaves: dict[str, Tensor]) -> str:
        """Return why the backward pass cannot be differentiated, or nothing."""
        try:
            dual, pulled = self._pulled(outputs, leaves)
            if has_dead_end(pulled):
                return "a function in the model may be differentiated once only"
            self._push(dual, pulled, torch.ones_like(self.objective.point))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return (
                "the backward pass has no derivative "
                f"({str(error).splitlines()[0][:120]})"
            )
        return ""

    def _take_differences(self, why: str) -> None:
        self._exact = False
        note = FINITE_DIFFERENCE.format(
            why=why, digits=digits_of_differences(self.dtype)
        )
        self.objective.notes += (note.replace("the gradient", "the outputs", 1),)

    def _verify(self, model: nn.Module, loss: Any, parameters: Any) -> None:
        """Check a product and both of its derivatives on the first batch."""
        batch = self.objective.batches.items[0]
        share = self.objective.batches.weights[0]
        fine = in_float64(model, loss, batch, parameters)
        try:
            self._verify_at(fine or self.objective, differences=fine is not None)
        # A model may cast, or a device may lack float64.
        except (RuntimeError, TypeError):
            if fine is None:
                raise
            self._verify_at(self.objective, differences=False)
        # Two products and their graph, two differences and a gradient were taken.
        self.objective.spent += 8 * share

    def _verify_at(self, objective: Objective, *, differences: bool) -> None:
        before = objective.spent
        twin = GaussNewtonOperator.__new__(GaussNewtonOperator)
        Operator.__init__(twin, objective)
        twin._exact, twin._exact_loss = self._exact, self._exact_loss
        twin.objective = copy.copy(objective)
        twin.objective.batches = Batches(
            objective.batches.items[:1], objective.batches.samples[:1]
        )
        with twin.objective.quiet():
            jacobian, bend = twin._claims()
            if self._exact:
                verdict = examine(jacobian, differences=differences, symmetric=False)
                if verdict.wrong:
                    self._take_differences(WRONG_JACOBIAN.format(gap=verdict.gap))
                    twin._exact = False
            verdict = examine(bend, differences=differences)
            verdict.refuse_asymmetry()
            if verdict.wrong:
                self._exact_loss = twin._exact_loss = False
                digits = digits_of_differences(self.dtype)
                self.objective.notes += (
                    WRONG_LOSS.format(gap=verdict.gap, digits=digits),
                )
            products = dataclasses.replace(
                jacobian, product=lambda vector: twin._products(vector[None])[0]
            )
            examine(products, differences=False).refuse_asymmetry()
            self._note_penalty(twin)
        objective.spent = before

    def _claims(self) -> tuple[Claim, Claim]:
        """Return the outputs' derivative and the loss's second in the outputs.

        Both are those of one batch.
        """
        batch = self.objective.batches.items[0]
        leaves = self.objective.leaves()
        outputs, target = self._outputs(batch, leaves)
        dual, pulled = self._pulled(outputs, leaves) if self._exact else (outputs, [])
        free = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(
            self.objective.criterion(free, target), free, create_graph=True
        )[0]
        sizes = [shape.numel() for shape in self.objective.shapes]

        def slope_at(point: Tensor) -> Tensor:
            return self._slope(point.reshape(free.shape), target).flatten()

        jacobian = Claim(
            point=self.objective.point,
            function=lambda point: self._outputs_at(point, batch).flatten(),
            product=lambda vector: self._push(dual, pulled, vector).flatten(),
            parts=[outputs.numel()],
            sizes=sizes,
            coarse=rounds_inside([outputs]),
        )
        bend = Claim(
            point=free.detach().flatten(),
            function=slope_at,
            product=lambda vector: self._bent(
                slope, free, target, vector.reshape(free.shape)
            ).flatten(),
            parts=[free.numel()],
            sizes=[free.numel()],
            coarse=rounds_inside([slope]),
        )
        return jacobian, bend

    def _note_penalty(self, twin: GaussNewtonOperator) -> None:
        """Say so if the loss depends on the parameters past the outputs."""
        objective = twin.objective
        whole = objective.gradient()
        leaves = objective.leaves()
        outputs, target = twin._outputs(objective.batches.items[0], leaves)
        slope = twin._slope(outputs, target)
        found = torch.autograd.grad(
            outputs, list(leaves.values()), slope, materialize_grads=True
        )
        through = objective.flatten(dict(zip(objective.names, found, strict=True)))
        if (whole - through).norm() > torch.finfo(
            whole.dtype
        ).eps ** 0.5 * whole.norm():
            self.objective.notes += (PENALTY,)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen automatically."""
        return self.objective.notes

    def _outputs(self, batch: Any, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with self.objective.quiet():
            if self.objective.is_closure:
                self.objective.criterion(self.objective.point, self.objective.point)
            outputs = self.objective.batch_outputs(leaves, batch)
        if not isinstance(outputs, Tensor):
            raise UsageError(
                f"The model returns a {type(outputs).__name__}; the Gauss-Newton "
                "matrix needs one tensor of outputs. Wrap the model in a module that "
                "returns that tensor."
            )
        return outputs, split(batch)[1]

    def _pulled(
        self, outputs: Tensor, leaves: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return a vector u in the outputs' space, and J^T u as a function of it."""
        dual = torch.zeros_like(outputs, requires_grad=True)
        inputs = list(leaves.values())
        found = torch.autograd.grad(
            outputs, inputs, dual, create_graph=True, materialize_grads=True
        )
        return dual, list(found)

    def _products(self, rows: Tensor) -> Tensor:
        total = torch.zeros_like(rows)
        for batch, weight in self.objective.batches:
            leaves = self.objective.leaves()
            outputs, target = self._outputs(batch, leaves)
            dual, pulled = (
                self._pulled(outputs, leaves) if self._exact else (outputs, [])
            )
            free = outputs.detach().requires_grad_()
            slope = torch.autograd.grad(
                self.objective.criterion(free, target), free, create_graph=True
            )[0]
            for k, row in enumerate(rows):
                pushed = (
                    self._push(dual, pulled, row)
                    if self._exact
                    else self._difference(batch, row)
                )
                bent = self._bent(slope, free, target, pushed)
                found = torch.autograd.grad(
                    outputs,
                    list(leaves.values()),
                    bent,
                    retain_graph=True,
                    materialize_grads=True,
                )
                flat = self.objective.flatten(
                    dict(zip(self.objective.names, found, strict=True))
                )
                total[k] += weight * flat
        self.objective.spent += 1 + 4 / 3 * len(rows)
        return total

    def _push(self, dual: Tensor, pulled: list[Tensor], row: Tensor) -> Tensor:
        """Return J v.

        J^T u is linear in u, and its derivative in u along v is what is asked for.
        """
        directions = self.objective.unflatten(row).values()
        pairs = [
            (part, v)
            for part, v in zip(pulled, directions, strict=True)
            if part.requires_grad
        ]
        if not pairs:  # the outputs depend on none of the parameters
            return torch.zeros_like(dual)
        parts, vectors = zip(*pairs, strict=True)
        return torch.autograd.grad(
            parts, dual, vectors, retain_graph=True, materialize_grads=True
        )[0]

    def _bent(
        self, slope: Tensor, free: Tensor, target: Tensor, pushed: Tensor
    ) -> Tensor:
        """Return the loss's Hessian in the outputs times a vector of their shape."""
        if not self._exact_loss:
            step = (
                difference_step(free.detach(), pushed)
                if pushed.any()
                else torch.ones_like(pushed.norm())
            )
            ahead = self._slope(free.detach() + step * pushed, target)
            behind = self._slope(free.detach() - step * pushed, target)
            difference: Tensor = (ahead - behind) / (2 * step)
            return difference
        if not slope.requires_grad:  # the loss is linear in the outputs
            return torch.zeros_like(pushed)
        return torch.autograd.grad(
            slope, free, pushed, retain_graph=True, materialize_grads=True
        )[0]

    def _slope(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of the loss in the outputs, at outputs."""
        free = outputs.detach().requires_grad_()
        return torch.autograd.grad(self.objective.criterion(free, target), free)[0]

    def _outputs_at(self, point: Tensor, batch: Any) -> Tensor:
        # Not under no_grad: a model may differentiate inside, as physics-informed ones
        # do.
        outputs: Tensor = self.objective.batch_outputs(
            self.objective.unflatten(point.detach()), batch
        )
        return outputs.detach()

    def _difference(self, batch: Any, row: Tensor) -> Tensor:
        if not row.any():
            return torch.zeros_like(self._outputs_at(self.objective.point, batch))
        step = difference_step(self.objective.point, row)
        ahead = self._outputs_at(self.objective.point + step * row, batch)
        behind = self._outputs_at(self.objective.point - step * row, batch)
        difference: Tensor = (ahead - behind) / (2 * step)
        return difference
