"""Whether the loss of a batch is the mean over its samples.

A mean over batches is then the loss of all data as one batch. It is tested in float64,
where a difference cannot hide in rounding, on samples cut at random in two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nablab.errors import UsageError
from nablab.instruments.base.batch_parts import (
    Part,
    join_batches,
    second_length,
    to_double,
)
from nablab.instruments.base.batches import count_samples
from nablab.instruments.base.losses import MISFITS, Closure

if TYPE_CHECKING:
    from nablab.instruments.base.objective import Objective

SAMPLES_TESTED = 64  # samples that the tests of a mean use
UNCHECKED_MEAN = (
    "Whether the closure's loss is a mean over the samples of a batch could not be "
    "checked ({why}): each batch counts by the length of its first tensor. If the "
    "mean is over something else, say so: Closure(function, samples=...)."
)


class MeanCheck:
    """The check of one objective's mean; used inside its `quiet`.

    Args:
        objective: What is going to be measured.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def run(self) -> str | None:
        """Refuse a mean over batches that is not the loss of all data as one batch.

        Returns:
            A note where a closure's mean could not be checked.

        Raises:
            UsageError: The loss is not a mean over the samples.
        """
        objective = self.objective
        closure = objective._module.criterion if objective.is_closure else None
        if isinstance(closure, Closure) and closure.samples is not None:
            return None  # the user says what the mean is over
        batch = objective.batches.items[0]
        if count_samples(batch) < 2:
            return None
        problem, failure = self._try(lambda: self._gap_of_parts(batch, axis=0))
        if problem or failure:
            if self._try(lambda: self._gap_of_parts(batch, axis=1)) == (None, None):
                self._count_along_second_axis()
                return None
        elif objective.batches.count is None:
            problem, failure = self._try(self._gap_between_batches)
        if failure and closure is not None:
            return UNCHECKED_MEAN.format(why=failure)
        if failure:
            problem = f"it cannot be computed for some of them alone ({failure})"
        if problem:
            raise UsageError(
                f"The loss of a batch is not the mean over its samples: {problem}. A "
                "loss that sums, class weights, ignored targets in a loss of your own, "
                "or batch statistics do this. Use reduction='mean', give all data as "
                "one batch, or a Closure whose samples= counts what the mean is over."
            )
        return None

    def samples_are_apart(self) -> bool:
        """Return whether the first batch's loss is the mean of its parts' losses."""
        batch = self.objective.batches.items[0]
        return count_samples(batch) >= 2 and self._gap_of_parts(batch, axis=0) is None

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
            second_length(item) or count_samples(item)
            for item in objective.batches.items
        ]
        object.__setattr__(objective.batches, "samples", tuple(lengths))
        objective.batches.__dict__.pop("weights", None)

    def _gap_of_parts(self, batch: Any, *, axis: int) -> str | None:
        """Cut some samples at random in two; return how far the means differ."""
        part = Part(batch, axis=axis)
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
            Part(item, axis=0).select(torch.arange(min(4, count_samples(item))))
            for item in self.objective.batches.items[:SAMPLES_TESTED]
        ]
        joined = join_batches(few)
        return None if joined is None else self._gap(joined, few, axis=0)

    def _gap(self, whole: Any, pieces: Sequence[Any], *, axis: int) -> str | None:
        count = self.objective.batches.count or (
            lambda item: float(Part(item, axis=axis).length)
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
        number = Part(whole, axis=axis).length
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
                        self._plain_loss(to_double(item)) for item in items
                    ]
            except (RuntimeError, TypeError):  # it makes tensors of a dtype of its own
                pass
        return objective.dtype, [self._plain_loss(item) for item in items]

    def _plain_loss(self, item: Any) -> float:
        return float(self.objective.batch_loss({}, item).detach())
