"""What every instrument returns, and what it says of itself before it is used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import numpy as np
import torch

from nablab.instruments.base.rehearsals import Rehearsal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# `to_dict` lists arrays of at most this many entries; longer ones give their shape.
LONGEST_ARRAY = 1_000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The base of all results.

    Attributes:
        gradients: What it cost, in gradient evaluations: one is a forward and a
            backward pass over all data.
        notes: What was chosen automatically, and what to know before the number is
            used.
    """

    gradients: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that its ``repr`` shows, as JSON types.

        Long arrays give ``{"shape": [...]}``.
        """
        shown = [field.name for field in dataclasses.fields(self) if field.repr]
        return {
            name: plain(getattr(self, name))
            for name in shown
            if not name.startswith("_")
        }

    def plot(self) -> Figure:
        """Return a matplotlib figure of the result."""
        raise NotImplementedError(f"{type(self).__name__} has no figure")


def plain(value: Any) -> Any:
    """Return a value as JSON types.

    NaN and infinities become None, and long arrays their shape.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return (
            {"shape": list(value.shape)}
            if value.size > LONGEST_ARRAY
            else plain(value.tolist())
        )
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    return value


@dataclass(frozen=True)
class Size:
    """What an instrument's cost depends on.

    Attributes:
        parameters: Entries of the chosen parameters, P.
        samples: Samples of the data, N.
        outputs: Numbers that the model returns for one sample.
    """

    parameters: int
    samples: int
    outputs: int


@dataclass(frozen=True)
class Expected:
    """What an instrument costs by its arithmetic, before anything has run.

    It serves to refuse what cannot fit; `nablab.instruments.cost` tries instead, and is
    much nearer.

    Attributes:
        gradients: Gradient evaluations over all data.
        numbers: Floating-point numbers held at once beside the model, its activations
            and the data.
    """

    gradients: float
    numbers: float


P = ParamSpec("P")
R = TypeVar("R")


class Instrument(Generic[P, R]):
    """A measuring function with its expected cost beside it.

    Attributes:
        measure: The function itself.
        expected: ``expected(size, **options)`` with the options of the call, its
            defaults filled in.
        rehearse: Finds out what a call takes on this machine; see
            `nablab.instruments.cost`.
    """

    def __init__(
        self,
        measure: Callable[P, R],
        expected: Callable[..., Expected],
        rehearse: Rehearsal,
    ) -> None:
        self.measure, self.expected, self.rehearse = measure, expected, rehearse
        self.__doc__, self.__name__ = measure.__doc__, measure.__name__
        # With this signature() and help() show the function's own.
        self.__wrapped__ = measure
        self.__module__ = measure.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Measure."""
        return self.measure(*args, **kwargs)


def instrument(
    *, expected: Callable[..., Expected], rehearse: Rehearsal
) -> Callable[[Callable[P, R]], Instrument[P, R]]:
    """Make a function an instrument that `cost` and ``nablab measure`` know.

    Args:
        expected: Called as ``expected(size, **options)``; it must accept every option
            it needs and ``**_``.
        rehearse: See `nablab.instruments.base.rehearsals`.
    """
    return lambda measure: Instrument(measure, expected, rehearse)
