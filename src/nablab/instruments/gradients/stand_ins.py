"""What searches for a high loss cost: a few true losses, and a cheap function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nablab.instruments.base.footprints import counting_bytes, footprint
from nablab.instruments.base.objective import Objective
from nablab.instruments.base.rehearsals import (
    Call,
    Cost,
    Prepared,
    Rehearsal,
    on_stand_in,
    placeholder,
    stand_in_rows,
)

# With 10,000 rows a search, of 25 vectors, still fits a processor's cache.
FEWEST_ROWS = 30_000
# Where bytes are counted, Python takes five times as long.
COUNTED_ROWS = 10_000


@dataclass(frozen=True)
class _Price:
    """What one evaluation takes: seconds, gradients, and bytes beside its result."""

    seconds: float
    gradients: float
    bytes: int


@dataclass(frozen=True)
class _True:
    """The true loss, tried once.

    Attributes:
        objective: It.
        loss: What a loss takes.
        slope: What a gradient takes.
        value: The loss at its point.
        gradient: The gradient there (P,).
    """

    objective: Objective
    loss: _Price
    slope: _Price
    value: float
    gradient: Tensor

    @classmethod
    def of(cls, objective: Objective) -> _True:
        loss, _ = _price(objective, lambda: objective.loss(objective.point))
        slope, (value, gradient) = _price(
            objective, lambda: objective.loss_and_gradient(objective.point)
        )
        return cls(objective, loss, slope, value, gradient)


def _price(true: Objective, work: Callable[[], Any]) -> tuple[_Price, Any]:
    """Return what an evaluation of the true loss takes, and what it gives."""
    before, runs, result = true.spent, 0, None

    def counted() -> Any:
        nonlocal runs, result
        runs += 1
        result = work()
        return result

    taken = footprint(counted, true.device)
    return _Price(
        taken.seconds, (true.spent - before) / runs, max(0, taken.peak - taken.kept)
    ), result


class StandInObjective:
    """A function of few parameters in the place of a loss of many.

    Its slope is the true gradient's. Each parameter is coupled with the next one, up or
    down by chance, as strongly as changes slopes by their own size within the first
    step. So a search finds no corner where all is done, and goes on as it does on a
    loss.

    Attributes:
        rows: Its parameters.
        point: Where, (rows,): the first of the true ones.
        dtype: As the true one's.
        device: As the true one's.
        notes: Of the search.
        spent: Always 0; see `true_cost`.
    """

    def __init__(self, true: _True, rows: int) -> None:
        self._true, self.rows = true, rows
        self.dtype, self.device = true.objective.dtype, true.objective.device
        self.point = true.objective.point[:rows].clone()
        self.notes: tuple[str, ...] = ()
        self.spent = 0.0
        self._slope = true.gradient[:rows].clone()
        generator = torch.Generator().manual_seed(0)
        self._signs = (2 * torch.randint(0, 2, (rows,), generator=generator) - 1).to(
            self._slope
        )
        self.begin()

    def begin(self) -> None:
        """See `StandIn`."""
        self._losses = self._gradients = 0
        self._bend: Tensor | None = None

    def true_cost(self) -> tuple[float, float]:
        """See `StandIn`."""
        counted = (self._losses, self._true.loss), (self._gradients, self._true.slope)
        gradients = sum(count * price.gradients for count, price in counted)
        return gradients, sum(count * price.seconds for count, price in counted)

    def loss(self, vector: Tensor | None = None) -> float:
        """Return the function at ``vector`` (rows,)."""
        self._losses += 1
        return self._evaluate(vector, self._true.loss)[0]

    def loss_and_gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """Return the function and its gradient (rows,) at ``vector``."""
        self._gradients += 1
        return self._evaluate(vector, self._true.slope)

    def _evaluate(self, vector: Tensor | None, price: _Price) -> tuple[float, Tensor]:
        placeholder(price.bytes * self.rows / self._true.objective.size, self.device)
        step = (self.point if vector is None else vector) - self.point
        length = float(step.abs().mean())
        if self._bend is None and length:
            self._bend = self._signs * (float(self._slope.abs().mean()) / length)
        if self._bend is None:
            return self._true.value, self._slope.clone()
        bent = self._bend * step.roll(1)
        bent += (self._bend * step).roll(-1)
        value = self._true.value + float(step @ self._slope) + float(step @ bent) / 2
        return value, bent.add_(self._slope)


def by_losses(
    find: Callable[[], Callable[..., Any]],
    *,
    arrays: Callable[[Call], bool],
    notes: Callable[[Call], tuple[str, ...]],
) -> Rehearsal:
    """Make the rehearsal of an instrument that asks for losses and gradients.

    It asks at many points.

    Args:
        find: Gives the function of any objective that the instrument calls.
        arrays: Whether a call works on NumPy's arrays.
        notes: See `Cost`.
    """

    def predict(call: Call) -> Cost:
        made: list[Objective] = []

        def prepare() -> Objective:
            made.clear()
            made.append(
                Objective(
                    call.model,
                    call.loss,
                    call.sets.data(),
                    **call.options_of(Objective),
                )
            )
            return made[0]

        taken = footprint(prepare, call.device)
        measure = find()
        options = call.options_of(measure)
        prepared = Prepared(taken, made[0].spent, taken.kept)
        true = _True.of(made[0])
        stand_in = StandInObjective(true, stand_in_rows(call.parameters, FEWEST_ROWS))
        found = on_stand_in(
            call, prepared, stand_in, lambda loss: measure(loss, **options)
        )
        found = dataclasses.replace(found, notes=notes(call))
        if not arrays(call):
            return found
        small = StandInObjective(true, min(call.parameters, COUNTED_ROWS))
        with counting_bytes(arrays=True) as count:
            measure(small, **options)
        held = taken.kept + int(count.peak * call.parameters / small.rows)
        return dataclasses.replace(found, bytes=max(taken.peak, held))

    return Rehearsal(predict)
