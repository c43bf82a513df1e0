"""What is verified of a model, its loss and its data before a costly measurement.

The rule: a property that a number rests on is known, or it is tested at random places
where a mistake would show, or it is said. Losses of PyTorch are known (see `counter`);
whether samples mix inside the model, and what a loss of the user's own is a mean over,
is tested in float64, where a difference cannot hide in rounding.
"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nablab.errors import UsageError
from nablab.instruments.base.batch_parts import few_samples
from nablab.instruments.base.batches import (
    describe_not_finite,
    map_tensors,
    tensors_in,
)
from nablab.instruments.base.call_watchers import AttentionSeen, Broadcasts
from nablab.instruments.base.losses import MISFITS, split
from nablab.instruments.base.mean_check import MeanCheck
from nablab.instruments.base.surroundings import Generators, seed_all

if TYPE_CHECKING:
    from nablab.instruments.base.objective import Objective

TORCH = str(Path(torch.__file__).parent)
ATTENTION = (
    "Attention was computed with PyTorch's math kernel: the fused ones have no second "
    "derivative. Values may differ from the fused kernel's in the last digits."
)


@dataclass(frozen=True)
class _Drawn:
    """The generators that a pass moved, and where all of them stand after it."""

    names: set[str]
    after: Generators


@dataclass(frozen=True)
class Findings:
    """What the checks found.

    Attributes:
        notes: What to know before the number is used.
        pristine: Buffers by name that a forward pass changes without consequence, as
            they were before.
        attention: Whether a pass calls PyTorch's attention.
        drawn: The global generators that a pass draws from or seeds.
        loss_reads_model: Whether ``loss(output, target)`` depends on the parameters
            beside the output.
    """

    notes: tuple[str, ...] = ()
    pristine: Mapping[str, Tensor] = field(default_factory=dict)
    attention: bool = True
    drawn: frozenset[str] = frozenset()
    loss_reads_model: bool = False


class Checks:
    """The checks of one objective; used inside its `quiet`.

    Args:
        objective: What is going to be measured.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._notes: list[str] = []

    def run(self) -> Findings:
        """Make all checks.

        Raises:
            UsageError: See `Objective`.
        """
        objective = self.objective
        batch = objective.batches.items[0]
        before = {name: tensor.clone() for name, tensor in objective.fixed.items()}
        with AttentionSeen() as attention:
            first, drawn = self._seeded_pass(batch, 0)
        if attention.seen:
            self._notes.append(ATTENTION)
        pristine = self._changed_buffers(before)
        for name, tensor in pristine.items():
            objective.fixed[name].copy_(tensor)
        second, drawn_again = self._seeded_pass(batch, 1)
        for name, tensor in pristine.items():
            objective.fixed[name].copy_(tensor)
        self._check_random(first, second, drawn, drawn_again)
        self._check_finite(first)
        if pristine:
            self._check_buffers_are_idle(pristine, batch, first)
        self._check_changed_weights()
        loss_reads_model = self._check_reach(batch)
        self._check_broadcast(batch)
        objective.spent += 2 / 3 * objective.batches.weights[0]
        if len(objective.batches) > 1:
            note = MeanCheck(objective).run()
            self._notes += [note] if note else []
        return Findings(
            tuple(self._notes),
            pristine,
            attention.seen,
            frozenset(drawn.names | drawn_again.names),
            loss_reads_model,
        )

    # Passes

    def _seeded_pass(self, batch: Any, seed: int) -> tuple[float, _Drawn]:
        """Return the loss of a batch, and what it drew."""
        seed_all(seed)
        before = Generators()
        value = self._checked_loss(batch)
        after = Generators()
        return value, _Drawn(after.differences(before), after)

    def _checked_loss(self, batch: Any) -> float:
        objective = self.objective
        try:
            value: Any = objective.batch_loss(objective.values, batch)
        except (UsageError, torch.OutOfMemoryError):
            raise
        except MISFITS as error:
            if not _is_torchs(error):
                raise
            raise UsageError(self._describe(error, batch)) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            what = (
                f"shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise UsageError(
                f"The loss is not one real number ({what}). Give the mean over the "
                "batch: reduction='mean', or .mean()."
            )
        return float(value.detach())

    def _describe(self, error: Exception, batch: Any) -> str:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {first}" if first else type(error).__name__
        shapes = ", ".join(
            f"{tuple(t.shape)} {_name(t.dtype)}" for t in tensors_in(batch)[:4]
        )
        remedy = "Do the data fit the model and the loss?"
        if "dtype" in first and self.objective.dtype == torch.float64:
            remedy = (
                "The model was measured in float64; something in it holds or makes "
                "tensors of another dtype. Measure with dtype=torch.float32, or make "
                "it follow its inputs' dtype."
            )
        return (
            "The forward pass or the loss fails on the first batch (tensors "
            f"{shapes}): {what}. {remedy}"
        )

    # A function of the weights alone

    def _check_random(
        self, first: float, second: float, drawn: _Drawn, again: _Drawn
    ) -> None:
        """Refuse a model that draws random numbers.

        Generators are compared, not losses: dropping a layer with probability 0.1
        seldom shows in two.
        """
        # What seeds itself the same way every time ends in the same state, whatever the
        # state before.
        draws = drawn.names & again.names & drawn.after.differences(again.after)
        differ = first != second and not (math.isnan(first) and math.isnan(second))
        if not draws and not differ:
            return
        what = (
            "it draws from a random generator, though two passes happened to give the "
            "same loss"
        )
        if differ:
            what = f"two passes over one batch gave {first:.6g} and {second:.6g}"
        remedy = (
            "The model is in evaluation mode, so it is something else: "
            "torch.nn.functional.dropout called without training=self.training, "
            "noise in the model, or a loss that samples. Draw the noise once, or "
            "from a torch.Generator that the function seeds at every call."
        )
        if any(module.training for module in self.objective.model.modules()):
            remedy = (
                "Dropout in training mode does this: call model.eval() before "
                "measuring."
            )
        raise UsageError(f"The forward pass is random: {what}. {remedy}")

    def _check_finite(self, first: float) -> None:
        objective = self.objective
        causes = [
            describe_not_finite(batch, place)
            for place, batch in enumerate(objective.batches.items)
        ]
        if not math.isfinite(first):
            nothing = " and data. Nothing can be measured at such a point."
            ending = f". {causes[0]}" if causes[0] else nothing
            raise UsageError(
                f"The loss of the first batch is {first}, with finite weights{ending}"
            )
        for place, (batch, cause) in enumerate(
            zip(objective.batches.items, causes, strict=True)
        ):
            if cause and not self._is_finite(batch):
                raise UsageError(
                    f"The loss of batch {place} or its gradient is not finite. {cause}"
                )

    def _is_finite(self, batch: Any) -> bool:
        """Return whether loss and gradient are finite.

        An infinite input of a saturated unit gives 0 * infinity.
        """
        leaves = self.objective.leaves()
        value = self.objective.batch_loss(leaves, batch)
        if not bool(value.isfinite()) or not value.requires_grad:
            return bool(value.isfinite())
        gradients = self.objective.gradients_of(value, leaves).values()
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def _changed_buffers(self, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        changed = {
            n: t for n, t in before.items() if not _same(t, self.objective.fixed[n])
        }
        if changed and self._normalizes_by_batch(changed):
            shown = ", ".join(name.removeprefix("model.") for name in list(changed)[:3])
            raise UsageError(
                f"A forward pass changes {len(changed)} buffers ({shown}): the model "
                "is in training mode, where batch norm and spectral norm follow the "
                "batch. Call model.eval() before measuring."
            )
        return changed

    def _normalizes_by_batch(self, changed: Mapping[str, Tensor]) -> bool:
        modules = dict(self.objective._module.named_modules())
        owners = [modules[name.rpartition(".")[0]] for name in changed]
        floating = any(tensor.is_floating_point() for tensor in changed.values())
        return floating and any(owner.training for owner in owners)

    def _check_buffers_are_idle(
        self, pristine: Mapping[str, Tensor], batch: Any, first: float
    ) -> None:
        """Refuse buffers that change the loss; a counter may count.

        A buffer that the loss depends on makes every pass another function.
        """
        objective = self.objective
        self._checked_loss(batch)
        # This pass has the buffers as the pass before left them.
        again = self._checked_loss(batch)
        for name, tensor in pristine.items():
            objective.fixed[name].copy_(tensor)
        if again != first:
            shown = ", ".join(
                name.removeprefix("model.") for name in list(pristine)[:3]
            )
            raise UsageError(
                "The loss depends on buffers that every forward pass changes "
                f"({shown}): it went from {first:.6g} to {again:.6g} with the same "
                "weights and data. Freeze those buffers to measure."
            )

    def _check_changed_weights(self) -> None:
        objective = self.objective
        point = objective.unflatten(objective.point)
        changed = [
            name
            for name in objective.names
            if not _same(point[name], objective.values[name])
        ]
        if changed:
            raise UsageError(
                f"The forward pass changes the parameter '{changed[0]}' in place, so "
                "the loss is not a function of the weights. Let the model compute with "
                "a changed copy instead."
            )

    def _check_reach(self, batch: Any) -> bool:
        """Refuse a loss that reads the model's own tensors, not those put in.

        Returns:
            Whether ``loss(output, target)`` reads parameters beside the output, through
            a model it holds.
        """
        objective = self.objective
        few = few_samples(objective, batch)
        value = objective.batch_loss(objective.leaves(), few)
        past = objective._placement.reached_past(value)
        if past:
            raise UsageError(
                f"The loss reads the parameter '{past[0].removeprefix('model.')}' "
                "itself, as it was when the function was made (a list of parameters, "
                "say), so it would stay as it is while the model's weights are varied. "
                "Read it inside the function: model.parameters(), or the model that a "
                "Closure is given."
            )
        if objective.is_closure:
            return False
        outputs = objective.batch_outputs(objective.leaves(), few)
        constant = map_tensors(outputs, lambda tensor: tensor.detach())
        return bool(objective.criterion(constant, split(few)[1]).requires_grad)

    def _check_broadcast(self, batch: Any) -> None:
        """Refuse (N, 1) against (N,) in a custom loss: a mean over N x N pairs."""
        objective = self.objective
        if objective.is_closure:
            return
        outputs = objective.batch_outputs(objective.values, batch)
        target = split(batch)[1]
        if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
            return
        with warnings.catch_warnings(), Broadcasts(outputs, target) as seen:
            warnings.simplefilter("ignore")
            objective.criterion(outputs, target)
        if seen.found:
            raise UsageError(
                f"The model gives outputs of shape {tuple(outputs.shape)}, but the "
                f"targets have shape {tuple(target.shape)}; the loss broadcasts one "
                f"against the other to {seen.found}. Reshape the targets, for instance "
                "with y.unsqueeze(-1), or change the model's last layer."
            )


def _is_torchs(error: Exception) -> bool:
    """Return whether PyTorch raised an error, not an operation of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.startswith(TORCH)
    return inside or isinstance(error, RuntimeError | TypeError)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
