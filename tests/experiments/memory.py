"""A lab that keeps everything in memory, and trains one network after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nablab import training
from nablab.contract import Condition, Curve, Record, Trial


class Memory:
    """The lab of one condition, and what it was asked.

    Attributes:
        condition: The condition.
        scalars: What was recorded, by seed and name; ``texts``, ``curves`` and
            ``arrays`` alike.
        notes: What was said.
        asked: The options of each training, with its seeds and its data.
        results: What each training gave.
        precision: What networks train in, whatever the experiment asks for; None for
            what it asks for.
    """

    precision: str | None = None

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.scalars: dict[int, dict[str, float]] = {}
        self.texts: dict[int, dict[str, str]] = {}
        self.curves: dict[int, dict[str, Curve]] = {}
        self.arrays: dict[int, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.results: list[training.Training] = []

    @property
    def options(self) -> dict[str, Any]:
        """Those of the latest training."""
        return self.asked[-1] if self.asked else {}

    @property
    def result(self) -> Any:
        """That of the latest training."""
        return self.results[-1] if self.results else None

    def seed(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> int:
        factors = trial.condition if by is None else by
        return training.derive(
            purpose, *(str(trial.condition[name]) for name in factors), trial.seed
        )

    def shared_seed(self, purpose: str) -> int:
        return training.derive(purpose, 0)

    def train(
        self,
        learner: Any,
        data: Any,
        recipe: Any,
        *,
        seeds: Sequence[int],
        starts: Sequence[int] | None = None,
    ) -> Any:
        self.asked.append(
            {
                "build": learner.build,
                "data": data,
                "seeds": seeds,
                "starts": starts,
                **vars(recipe),
            }
        )
        if self.precision is not None:
            recipe = dataclasses.replace(recipe, precision=self.precision)
        self.results.append(
            training.train(
                learner,
                data,
                recipe,
                seeds=seeds,
                starts=starts,
                replicas="sequential",
            )
        )
        return self.results[-1]

    def each(self, items: Iterable[Any], *, name: str = "") -> Iterator[Any]:
        return iter(list(items))

    def record(self, trial: Trial, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, str):
                self.texts.setdefault(trial.seed, {})[name] = value
            else:
                self.scalars.setdefault(trial.seed, {})[name] = float(value)

    def curve(self, trial: Trial, name: str, steps: Any, values: Any) -> None:
        self.curves.setdefault(trial.seed, {})[name] = Curve(
            np.asarray(steps), np.asarray(values)
        )

    def array(self, trial: Trial, name: str, values: Any) -> None:
        self.arrays.setdefault(trial.seed, {})[name] = np.asarray(values)

    def note(self, *texts: str) -> None:
        self.notes += texts

    def records(self) -> list[Record]:
        kept = self.texts, self.curves, self.arrays
        return [
            Record(
                self.condition, seed, scalars, *(part.get(seed, {}) for part in kept)
            )
            for seed, scalars in self.scalars.items()
        ]
