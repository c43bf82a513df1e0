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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nablab.errors import UsageError
from nablab.instruments.base.batches import (
    count_samples,
    describe_not_finite,
    map_tensors,
    tensors_in,
)
from nablab.instruments.base.call_watchers import AttentionSeen, Broadcasts
from nablab.instruments.base.losses import Closure, split
from nablab.instruments.base.surroundings import Generators, seed_all

if TYPE_CHECKING:
    from nablab.instruments.base.objective import Objective

# What PyTorch and models raise for data that do not fit; a timer's exception, say, is
# not among them.
MISFITS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
TORCH = str(Path(torch.__file__).parent)
SAMPLES_TESTED = 64  # samples that the tests of a mean use
ATTENTION = (
    "Attention was computed with PyTorch's math kernel: the fused ones have no second "
    "derivative. Values may differ from the fused kernel's in the last digits."
)
UNCHECKED_MEAN = (
    "Whether the closure's loss is a mean over the samples of a batch could not be "
    "checked ({why}): each batch counts by the length of its first tensor. If the "
    "mean is over something else, say so: Closure(function, samples=...)."
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
            self._check_mean()
        return Findings(
            tuple(self._notes),
            pristine,
            attention.seen,
            frozenset(drawn.names | drawn_again.names),
            loss_reads_model,
        )

    def samples_are_apart(self) -> bool:
        """Return whether the first batch's loss is the mean of its parts' losses."""
        batch = self.objective.batches.items[0]
        return count_samples(batch) >= 2 and self._gap_of_parts(batch, axis=0) is None

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
        few = self.few(batch)
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

    def few(self, batch: Any, most: int = 4) -> Any:
        """Return some samples of a batch if the loss allows it, else the batch."""
        try:
            few = _Part(batch, axis=0).select(
                torch.arange(min(most, count_samples(batch)))
            )
            self.objective.batch_loss(self.objective.values, few)
        # Weights per sample, packed sequences and the like: the whole is always
        # possible.
        except MISFITS:
            return batch
        return few

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

    # A mean over samples

    def _check_mean(self) -> None:
        """Refuse a mean over batches that is not the loss of all data as one batch."""
        objective = self.objective
        closure = objective._module.criterion if objective.is_closure else None
        if isinstance(closure, Closure) and closure.samples is not None:
            return  # the user says what the mean is over
        batch = objective.batches.items[0]
        if count_samples(batch) < 2:
            return
        problem, failure = self._try(lambda: self._gap_of_parts(batch, axis=0))
        if problem or failure:
            if self._try(lambda: self._gap_of_parts(batch, axis=1)) == (None, None):
                self._count_along_second_axis()
                return
        elif objective.batches.count is None:
            problem, failure = self._try(self._gap_between_batches)
        if failure and closure is not None:
            self._notes.append(UNCHECKED_MEAN.format(why=failure))
            return
        if failure:
            problem = f"it cannot be computed for some of them alone ({failure})"
        if problem:
            raise UsageError(
                f"The loss of a batch is not the mean over its samples: {problem}. A "
                "loss that sums, class weights, ignored targets in a loss of your own, "
                "or batch statistics do this. Use reduction='mean', give all data as "
                "one batch, or a Closure whose samples= counts what the mean is over."
            )

    def _try(self, find: Callable[[], str | None]) -> tuple[str | None, str | None]:
        """Return what a test of the mean found, and why it could not be made."""
        try:
            return find(), None
        except UsageError:
            raise
        except MISFITS as error:
            return None, (str(error).strip().splitlines() or [type(error).__name__])[0][
                :120
            ]

    def _count_along_second_axis(self) -> None:
        """Count samples along the second axis if batches are (time, sample)."""
        objective = self.objective
        if objective.batches.count is not None:
            return  # a known loss counts its targets, whatever their axes are
        lengths = [
            _second_length(item) or count_samples(item)
            for item in objective.batches.items
        ]
        object.__setattr__(objective.batches, "samples", tuple(lengths))
        objective.batches.__dict__.pop("weights", None)

    def _gap_of_parts(self, batch: Any, *, axis: int) -> str | None:
        """Cut some samples at random in two; return how far the means differ."""
        part = _Part(batch, axis=axis)
        if part.length < 2:
            return "it cannot be cut" if axis else None
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(part.length, generator=generator)[:SAMPLES_TESTED]
        # It takes two, since batch norm refuses a single sample.
        at = max(min(2, len(order) - 1), len(order) // 3)
        whole = part.select(order)
        pieces = [part.select(order[:at]), part.select(order[at:])]
        return self._gap(whole, pieces, axis=axis)

    def _gap_between_batches(self) -> str | None:
        """Return the gap of parts for samples of all batches together.

        What normalizes may differ between batches only.
        """
        few = [
            _Part(item, axis=0).select(torch.arange(min(4, count_samples(item))))
            for item in self.objective.batches.items[:SAMPLES_TESTED]
        ]
        joined = _joined(few)
        return None if joined is None else self._gap(joined, few, axis=0)

    def _gap(self, whole: Any, pieces: Sequence[Any], *, axis: int) -> str | None:
        count = self.objective.batches.count or (
            lambda item: float(_Part(item, axis=axis).length)
        )
        terms = [count(piece) for piece in pieces]
        if not sum(terms):
            return None
        dtype, losses = self._losses(
            [whole, *(p for p, n in zip(pieces, terms, strict=True) if n)]
        )
        mean = sum(
            n * x for n, x in zip([n for n in terms if n], losses[1:], strict=True)
        ) / sum(terms)
        relative, absolute = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-6)
        if abs(mean - losses[0]) <= absolute + relative * max(map(abs, losses)):
            return None
        number = _Part(whole, axis=axis).length
        return (
            f"{losses[0]:.6g} for {number} samples, {mean:.6g} as the mean of "
            "their parts"
        )

    def _losses(self, items: Sequence[Any]) -> tuple[torch.dtype, list[float]]:
        """Return the losses of batches in float64, or else in the measuring dtype."""
        objective = self.objective
        if objective.dtype != torch.float64:
            try:
                with objective.converted(torch.float64):
                    return torch.float64, [
                        self._plain_loss(_double(item)) for item in items
                    ]
            except (RuntimeError, TypeError):  # it makes tensors of a dtype of its own
                pass
        return objective.dtype, [self._plain_loss(item) for item in items]

    def _plain_loss(self, item: Any) -> float:
        return float(self.objective.batch_loss({}, item).detach())


class _Part:
    """Samples of a batch along the first axis, or the second of tensors with two."""

    def __init__(self, batch: Any, *, axis: int) -> None:
        self._batch, self._axis = batch, axis
        self.length = count_samples(batch) if axis == 0 else _second_length(batch)

    def select(self, indices: Tensor) -> Any:
        return map_tensors(self._batch, lambda tensor: self._of(tensor, indices))

    def _of(self, tensor: Tensor, indices: Tensor) -> Tensor:
        for axis in range(self._axis, -1, -1):
            if tensor.ndim > axis and tensor.shape[axis] == self.length:
                return (
                    tensor.detach()
                    .index_select(axis, indices.to(tensor.device))
                    .requires_grad_(tensor.requires_grad)
                )
        return tensor


def _second_length(batch: Any) -> int:
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim), None)
    return int(first.shape[1]) if first is not None and first.ndim > 1 else 0


def _joined(parts: Sequence[Any]) -> Any | None:
    """Return batches as one, or None if their tensors do not go together."""
    columns = [tensors_in(part) for part in parts]
    if len({len(column) for column in columns}) != 1:
        return None
    together = []
    for tensors in zip(*columns, strict=True):
        if any(t.ndim == 0 or t.shape[1:] != tensors[0].shape[1:] for t in tensors):
            return None
        together.append(
            torch.cat([t.detach() for t in tensors]).requires_grad_(
                tensors[0].requires_grad
            )
        )
    remaining = iter(together)
    return map_tensors(parts[0], lambda _: next(remaining))


def _double(batch: Any) -> Any:
    def converted(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return map_tensors(batch, converted)


def _is_torchs(error: Exception) -> bool:
    """Return whether PyTorch raised an error, not an operation of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.startswith(TORCH)
    return inside or isinstance(error, RuntimeError | TypeError)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
