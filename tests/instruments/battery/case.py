"""What a row of the table of models says, and the model, data and loss it makes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.instruments import Closure

Plain = Callable[[nn.Module, Any], Tensor]
CRITERIA = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


class Answer(Enum):
    """What an instrument must answer for a model."""

    VALUE = "the right number"
    REFUSAL = "a refusal in one sentence"
    EITHER = "the right number or a refusal"


VALUE, REFUSAL, EITHER = Answer.VALUE, Answer.REFUSAL, Answer.EITHER


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table: a usual form of model.

    Attributes:
        build: Makes the model; called under a fixed seed, in float32.
        data: Makes what the user gives as data; called under a fixed seed.
        loss: What the user gives as loss.
        makes_loss: Whether ``loss`` is a function of the model that makes the loss.
        plain: The mean loss of a batch in plain PyTorch; by default as the loss says.
        answer: What every instrument must answer.
        answers: What single instruments must answer, where that is something else.
        count: What the mean of a batch is over; by default the length of the first
            tensor's first axis.
        sample: Sample i of a batch as a batch; None where a batch is not a list of
            samples.
        dtype: The dtype to measure in; None for the parameters' own.
        tolerance: Relative error that the dtype leaves.
        token_inputs: Whether the inputs have no derivative.
        matchable: Whether the units can be matched without a specification.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Any = "mse"
    makes_loss: bool = False
    plain: Plain | None = None
    answer: Answer = VALUE
    answers: Mapping[str, Answer] = field(default_factory=dict)
    count: Callable[[Any], float] | None = None
    sample: Callable[[Any, int], Any] | None = None
    dtype: torch.dtype | None = torch.float64
    tolerance: float = 1e-6
    token_inputs: bool = False
    matchable: bool = False


@dataclass
class Case:
    """A model with its loss and data, as a user holds them.

    Attributes:
        row: The row of the table.
        model: The model, with gradients of a backward pass in ``.grad``.
        other: A second model of the same architecture with other weights.
        loss: The loss as given to instruments.
        data: The data as given to instruments.
        batches: The batches of the data.
    """

    row: Model
    model: nn.Module
    other: nn.Module
    loss: Any
    data: Any
    batches: list[Any]

    @property
    def is_closure(self) -> bool:
        """Whether outputs and target are inseparable."""
        return isinstance(self.loss, Closure)

    def plain_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, as a user would write it."""
        if self.row.plain is not None:
            return self.row.plain(model, batch)
        if isinstance(self.loss, Closure):
            return self.loss.function(model, batch)
        inputs, target = split(batch)
        criterion = CRITERIA[self.loss] if isinstance(self.loss, str) else self.loss
        found: Tensor = criterion(run(model, inputs), target)
        return found

    def count(self, batch: Any) -> float:
        """What the mean loss of a batch is over."""
        if self.row.count is not None:
            return self.row.count(batch)
        if isinstance(self.loss, Closure) and self.loss.samples is not None:
            return float(self.loss.samples(batch))
        return float(len(first_tensor(batch)))

    def backward(self) -> None:
        """Leave the mean loss's gradients in ``.grad``, as a training step does."""
        self.model.zero_grad()
        total = sum(self.count(batch) for batch in self.batches)
        for batch in self.batches:
            value = self.plain_loss(self.model, copied(batch))
            if value.requires_grad:
                (self.count(batch) / total * value).backward()


def make(row: Model, *, gradients: bool = True) -> Case:
    """Build a row's model, another one, its data and loss, always the same."""
    with warnings.catch_warnings():
        # PyTorch warns about the forms of models that are tested here.
        warnings.simplefilter("ignore")
        models = []
        for seed in (7, 8):
            torch.manual_seed(seed)
            models.append(row.build())
        torch.manual_seed(9)
        data = row.data()
        batches = (
            list(data)
            if isinstance(data, list | torch.utils.data.DataLoader)
            else [data]
        )
        loss = row.loss(models[0]) if row.makes_loss else row.loss
        case = Case(row, models[0], models[1], loss, data, batches)
        if gradients:
            case.backward()
    return case


def split(batch: Any) -> tuple[Any, Any]:
    """Inputs and target; a batch of one part has no target."""
    if len(batch) == 1:
        return batch[0], None
    return (batch[0] if len(batch) == 2 else batch[:-1]), batch[-1]


def run(model: nn.Module, inputs: Any) -> Any:
    """The model on inputs of any form."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return model(*inputs)
    return model(inputs)


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors of a nested batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors(part)
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors(part)


def first_tensor(batch: Any) -> Tensor:
    """The first tensor of a nested batch."""
    return next(tensors(batch))


def changed(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested batch with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: changed(part, change) for key, part in batch.items()}
    if isinstance(batch, nn.utils.rnn.PackedSequence):
        return batch.__class__(change(batch.data), *batch[1:])
    if isinstance(batch, tuple | list):
        return type(batch)(changed(part, change) for part in batch)
    return batch


copied = partial(changed, change=torch.clone)
doubled = partial(
    changed, change=lambda t: t.double() if t.is_floating_point() else t.clone()
)


def rows_of(batch: Any, place: int) -> Any:
    """Return sample ``place`` of a batch that lists samples along the first axis."""
    return changed(batch, lambda tensor: tensor[place : place + 1])
