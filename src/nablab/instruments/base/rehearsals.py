"""How an instrument's cost is predicted: by small calls, or on a stand-in.

No table of factors is kept. What is predicted was done on this machine: either the
instrument itself, with options that make it short (`Trials`), or its own arithmetic on
a `StandIn`: a matrix or a function of fewer parameters that costs next to nothing,
beside a few true products or gradients. A call that turns out to be short is then made:
it tells more than anything shorter could.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.instruments.base.batches import count_samples, part_of, read_pieces
from nablab.instruments.base.footprints import Footprint, footprint

BRIEF = 0.5  # seconds; a call that is expected to take less is made
# A stand-in has this part of the parameters, or as many as its kind needs at least.
ROWS_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a call is expected to take on this machine.

    Attributes:
        gradients: Gradient evaluations over all data: one is a forward and a backward
            pass.
        seconds: From the call to its result, where the same function was called before
            in this process.
        bytes: Memory at the call's peak beside the model and the data: tensors and
            arrays.
        notes: What is not known beforehand, such as the iterations of a search.
    """

    gradients: float
    seconds: float
    bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {**vars(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class Sets:
    """Data in memory, to be given to an instrument again and again.

    Attributes:
        batches: By name of the data set, its batches as the user gave them.
        named: Whether the user gave names.
    """

    batches: Mapping[str, Sequence[Any]]
    named: bool = False

    def data(self) -> Any:
        """Return what an instrument takes."""
        # Iterators: a list of tensors would be taken for one batch.
        found = {name: iter(batches) for name, batches in self.batches.items()}
        return found if self.named else next(iter(found.values()))

    def samples(self) -> tuple[int, ...]:
        """Count the samples of each batch, of all sets."""
        return tuple(
            _length(batch) for batches in self.batches.values() for batch in batches
        )

    def first(self, samples: int) -> Sets:
        """Return the first samples of each set."""
        return Sets(
            {name: _first(batches, samples) for name, batches in self.batches.items()},
            self.named,
        )


def _first(batches: Sequence[Any], samples: int) -> list[Any]:
    found = []
    for batch in batches:
        if samples <= 0:
            break
        length = _length(batch)
        found.append(batch if length <= samples else _part(batch, samples))
        samples -= length
    return found


def _length(batch: Any) -> int:
    """Count the samples of a batch, or 1 if only its closure can count."""
    try:
        return count_samples(batch)
    except UsageError:
        return 1


def _part(batch: Any, samples: int) -> Any:
    """Return the first samples, or all of a batch that cannot be cut."""
    try:
        return part_of(batch, 0, samples)
    except UsageError:
        return batch


@dataclass(frozen=True)
class Call:
    """A call of an instrument whose cost is to be predicted.

    Attributes:
        measure: The instrument's function.
        model: The model.
        loss: The loss.
        sets: The data.
        options: All keyword options, defaults filled in.
        parameters: Entries of the chosen parameters, P.
    """

    measure: Callable[..., Any]
    model: nn.Module
    loss: Any
    sets: Sets
    options: Mapping[str, Any]
    parameters: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return those of the options that a function takes."""
        taken = inspect.signature(function).parameters
        return {name: value for name, value in self.options.items() if name in taken}


Arguments = Callable[[Call, Any], tuple[Any, ...]]


def model_loss_and_data(call: Call, data: Any) -> tuple[Any, ...]:
    """Return a call's model, loss and data, which most instruments take."""
    return call.model, call.loss, data


@dataclass(frozen=True)
class Rehearsal:
    """How what a call takes is found out.

    Attributes:
        predict: Predicts the cost of a long call from something shorter.
        arguments: The instrument's arguments, from a call and data.
    """

    predict: Callable[[Call], Cost]
    arguments: Arguments = model_loss_and_data

    def __call__(self, call: Call) -> Cost:
        """Return what a call takes; a short one is its own rehearsal."""
        found = self.predict(call)
        if found.seconds >= BRIEF:
            return found
        runs = [_tried(call, Trial(()), self.arguments) for _ in range(2)]
        return Cost(
            gradients=runs[0][0],
            seconds=min(taken.seconds for _, taken in runs),
            # Arrays are counted in the second only.
            bytes=max(runs[0][1].peak, found.bytes),
        )


# Small calls of the instrument itself


@dataclass(frozen=True)
class Trial:
    """A call that is small enough to be tried.

    Attributes:
        units: How much of what drives the cost it does, such as points of a plane.
        options: The options that make it small.
        samples: How many of the samples it measures; None for all.
    """

    units: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None


@dataclass(frozen=True)
class Trials:
    """Small calls that predict the cost of a large one, linearly in their units.

    Attributes:
        units: What the large call does.
        trials: One more than there are units, the smallest first; or a single one, in
            proportion to whose units the seconds are.
        bytes_until: Units up to which the bytes grow, too; None where they do not.
        bytes_may_stop: Whether work may be cut into pieces, so that the bytes stop
            growing at an unknown place: the estimate is the middle of those of the
            largest trial and those up to `bytes_until`.
        notes: See `Cost`.
    """

    units: tuple[float, ...]
    trials: tuple[Trial, ...]
    bytes_until: tuple[float, ...] | None = None
    bytes_may_stop: bool = False
    notes: tuple[str, ...] = ()


def by_trials(
    plan: Callable[[Call], Trials], arguments: Arguments = model_loss_and_data
) -> Rehearsal:
    """Make a rehearsal that predicts the cost from small calls.

    Args:
        plan: Chooses the small calls.
        arguments: The instrument's arguments for data; by default model, loss and data.
    """

    def predict(call: Call) -> Cost:
        chosen = plan(call)
        found = [_tried(call, trial, arguments) for trial in chosen.trials]
        rows = [[1.0, *trial.units] for trial in chosen.trials]
        whole = [1.0, *chosen.units]
        if len(found) == 1:
            factor = chosen.units[0] / chosen.trials[0].units[0]
            gradients, seconds = found[0][0] * factor, found[0][1].seconds * factor
        else:
            gradients = _extended(rows, [spent for spent, _ in found], whole)
            seconds = _extended(rows, [taken.seconds for _, taken in found], whole)
        most: float = max(taken.peak for _, taken in found)
        if chosen.bytes_until is not None and len(found) > 1:
            until = [1.0, *chosen.bytes_until]
            line = max(most, _extended(rows, [taken.peak for _, taken in found], until))
            most = (most + line) / 2 if chosen.bytes_may_stop else line
        return Cost(
            gradients=gradients, seconds=seconds, bytes=int(most), notes=chosen.notes
        )

    return Rehearsal(predict, arguments)


def _tried(call: Call, trial: Trial, arguments: Arguments) -> tuple[float, Footprint]:
    """Return gradients and footprint of a small call."""
    sets = call.sets if trial.samples is None else call.sets.first(trial.samples)
    options = {**call.options, **trial.options}
    spent = 0.0

    def work() -> Any:
        nonlocal spent
        found = call.measure(*arguments(call, sets.data()), **options)
        spent = found.gradients
        return found

    taken = footprint(work, call.device)
    return spent, taken


def _extended(
    rows: Sequence[Sequence[float]], values: Sequence[float], whole: Sequence[float]
) -> float:
    """Return a linear function of units at another place.

    It is known at as many places as it has coefficients.

    More units never cost less: noise in the seconds of short calls might say so.
    """
    coefficients = np.linalg.solve(np.array(rows), np.array(values))
    coefficients[1:] = np.maximum(coefficients[1:], 0)
    start = values[0] - float(np.dot(coefficients[1:], rows[0][1:]))
    return max(start, 0.0) + float(np.dot(coefficients[1:], whole[1:]))


# An instrument's own arithmetic, on a stand-in


class StandIn(Protocol):
    """What takes the place of a matrix or of a loss, with fewer rows or parameters.

    Attributes:
        rows: How many.
    """

    rows: int

    def begin(self) -> None:
        """Forget what was counted."""

    def true_cost(self) -> tuple[float, float]:
        """Return the true gradients and seconds of the calls since `begin`."""


def stand_in_rows(parameters: int, fewest: int) -> int:
    """Return the rows of a stand-in for a number of parameters."""
    return min(parameters, max(fewest, parameters // ROWS_SHARE))


@dataclass(frozen=True)
class Prepared:
    """The true matrix or loss, ready to be asked.

    Attributes:
        footprint: What it took to make it.
        gradients: Gradients that this took.
        held: Bytes that it keeps.
    """

    footprint: Footprint
    gradients: float
    held: int


def on_stand_in(
    call: Call, prepared: Prepared, stand_in: StandIn, run: Callable[[Any], Any]
) -> Cost:
    """Predict an instrument's cost from its run on a stand-in.

    It asks a matrix or a loss for its values.

    Args:
        call: The call.
        prepared: The true matrix or loss.
        stand_in: The stand-in. In each of its calls it holds as many bytes for each row
            as the true one.
        run: Runs the instrument on it.
    """

    def again() -> Any:
        stand_in.begin()
        return run(stand_in)

    arithmetic = footprint(again, call.device)
    gradients, seconds = stand_in.true_cost()
    share = call.parameters / stand_in.rows
    return Cost(
        gradients=prepared.gradients + gradients,
        seconds=prepared.footprint.seconds + seconds + arithmetic.seconds * share,
        bytes=max(
            prepared.footprint.peak, prepared.held + int(arithmetic.peak * share)
        ),
    )


def placeholder(size: float, device: torch.device) -> torch.Tensor:
    """Hold memory that is not touched."""
    return torch.empty(max(0, int(size)), dtype=torch.uint8, device=device)


def read_sets(data: Any, batch_size: int | None, *, named: bool) -> Sets:
    """Bring data of any form into memory.

    Args:
        data: See `read_batches`.
        batch_size: See `read_batches`.
        named: Whether a mapping without tensors holds data sets by name.
    """
    several = (
        named
        and isinstance(data, Mapping)
        and not any(torch.is_tensor(part) for part in data.values())
    )
    if not several:
        return Sets({"data": read_pieces(data, batch_size)})
    return Sets(
        {str(name): read_pieces(part, batch_size) for name, part in data.items()},
        named=True,
    )


def refuse(reason: str) -> Rehearsal:
    """Refuse a cost for what is not a model, a loss and data."""

    def predict(call: Call) -> Cost:
        raise UsageError(reason)

    return Rehearsal(predict)
