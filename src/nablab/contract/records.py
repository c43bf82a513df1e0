"""What a trial leaves behind: numbers, notes, curves, arrays and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nablab.contract.conditions import Condition, Level

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

Scalar = float | int | bool


class Curve(NamedTuple):
    """A quantity against training steps: two arrays of one length."""

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Record:
    """What one trial (one condition with one seed) left behind.

    Attributes:
        condition: The factor levels of the trial.
        seed: The trial's seed, counted from 0.
        scalars: One number per metric; NaN where it does not exist, infinity where a
            threshold was never reached.
        notes: Short texts, such as why training stopped.
        curves: Quantities against steps; read from the store when first asked for.
        arrays: Further arrays, such as predictions; read when first asked for.
        weights: Kept tensors by name, then by their names in the network; read when
            first asked for.
        weights_left_out: Bytes of the weights that were too large to be kept, by name.
    """

    condition: Condition
    seed: int
    scalars: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    weights_left_out: Mapping[str, int] = field(default_factory=dict)


class Records(Sequence[Record]):
    """The records of a run, in order.

    They are ordered by condition, as the experiment lists them, then by seed.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def where(self, **levels: Level) -> Records:
        """Return the records whose condition has all these levels."""
        return Records(record for record in self if record.condition.matches(levels))

    def levels(self, factor: str) -> list[Level]:
        """Return the levels of a factor, in the order in which they first occur."""
        return list(
            dict.fromkeys(r.condition[factor] for r in self if factor in r.condition)
        )

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, in the order in which they first occur."""
        return list(dict.fromkeys(record.condition for record in self))

    def shared_array(self, name: str) -> npt.NDArray[Any] | None:
        """Return an array that all trials keep alike, such as trivial scores.

        It is None if no trial has one of that name.
        """
        return next((r.arrays[name] for r in self if name in r.arrays), None)

    @property
    def metrics(self) -> list[str]:
        """The names of all scalars, in the order in which they first occur."""
        return list(
            dict.fromkeys(metric for record in self for metric in record.scalars)
        )

    def values(self, metric: str) -> list[float]:
        """Return one value per record that has the metric."""
        return [record.scalars[metric] for record in self if metric in record.scalars]
