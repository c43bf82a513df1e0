"""Rules that end the training of a replica, for each replica alone.

They are asked at every evaluation.

A rule is a frozen dataclass; `watch` gives its memory for one training, which is a
function of the evaluations alone, so a resumed training rebuilds it by replaying them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from nablab.errors import UsageError, unknown

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Watch(Protocol):
    """The memory of a rule during one training."""

    def update(self, step: int, values: Values) -> Mask:
        """Take the metric's values (K,) at ``step`` (NaN for replicas that ended).

        Where the rule holds.
        """
        ...


class Rule(Protocol):
    """When a replica ends: a metric, a name that becomes the stop reason, and a watch."""

    @property
    def name(self) -> str:
        """The stop reason."""
        ...

    @property
    def metric(self) -> str:
        """The evaluated curve that the rule watches."""
        ...

    @property
    def improves(self) -> bool:
        """Whether it looks for improvement.

        It is then given values of which lower is better.
        """
        ...

    def watch(self, replicas: int) -> Watch:
        """Return a fresh memory for this number of replicas."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Stop once the metric is at or below ``value``, or at or above it.

    Attributes:
        value: The threshold.
        metric: An evaluated curve.
        above: Whether the metric must rise to the threshold, as an accuracy does,
            instead of falling.
    """

    value: float
    metric: str = "train_loss"
    above: bool = False
    name: ClassVar[str] = "threshold"
    improves: ClassVar[bool] = False

    def watch(self, replicas: int) -> Watch:
        """Return a fresh memory for this number of replicas."""
        return _ThresholdWatch(self.value, self.above)


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after ``patience`` evaluations in a row without an improvement.

    Prechelt, 1998.

    An evaluation improves if it is lower than the best so far by more than
    ``minimum_delta``; the count starts again at each improvement.

    Attributes:
        metric: An evaluated curve; choose held-out data, never a test set.
        patience: Evaluations, not steps; one number, or one per replica.
        minimum_delta: In units of the metric.
        restore_best: The final weights are those of the lowest evaluation of the
            metric, however the training ends.
    """

    metric: str = "held_out_loss"
    patience: int | Sequence[int] = 10
    minimum_delta: float = 0.0
    restore_best: bool = True
    name: ClassVar[str] = "early stopping"
    improves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int):
            # A tuple, so that the rule can be compared, hashed and printed.
            object.__setattr__(self, "patience", tuple(self.patience))
        if np.min(self.patience) < 1 or self.minimum_delta < 0:
            raise UsageError(
                "EarlyStopping: patience must be at least 1 and "
                "minimum_delta not negative."
            )

    def watch(self, replicas: int) -> Watch:
        """Return a fresh memory for this number of replicas.

        Raises:
            UsageError: There is another number of patiences than of replicas.
        """
        patience = np.atleast_1d(np.asarray(self.patience))
        if len(patience) not in (1, replicas):
            raise UsageError(
                f"EarlyStopping: patience has {len(patience)} values for {replicas} "
                "replicas. Give one number, or one per seed."
            )
        return _PatienceWatch(replicas, patience, self.minimum_delta)


@dataclass(frozen=True)
class Plateau:
    """Converged: over the last ``window_steps`` the best loss hardly fell.

    It fell by at most a small share.

    The window must be long. A rule on one small change of the loss between two checks
    stops on the plateaus that networks cross while they learn, and wherever a noisy
    loss repeats itself by chance. The defaults ask for 1 % within 2,000 steps, a tenth
    of the 20,000 steps usual here.
    """

    window_steps: int = 2000
    relative_improvement: float = 0.01
    metric: str = "train_loss"
    name: ClassVar[str] = "plateau"
    improves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window_steps < 1 or not 0 <= self.relative_improvement < 1:
            raise UsageError(
                "Plateau: window_steps must be at least 1 and "
                "relative_improvement in [0, 1)."
            )

    def watch(self, replicas: int) -> Watch:
        """Return a fresh memory for this number of replicas."""
        return _PlateauWatch(replicas, self.window_steps, self.relative_improvement)


class _ThresholdWatch:
    def __init__(self, value: float, above: bool) -> None:
        self._value, self._above = value, above

    def update(self, step: int, values: Values) -> Mask:
        return np.asarray(
            values >= self._value if self._above else values <= self._value
        )


class _PatienceWatch:
    def __init__(
        self, replicas: int, patience: npt.NDArray[np.int64], minimum_delta: float
    ) -> None:
        self._patience, self._delta = patience, minimum_delta
        self._best = np.full(replicas, np.inf)
        self._waited = np.zeros(replicas, dtype=int)

    def update(self, step: int, values: Values) -> Mask:
        improved = values < self._best - self._delta
        self._best = np.where(improved, values, self._best)
        self._waited = np.where(improved, 0, self._waited + 1)
        return np.asarray(self._waited >= self._patience)


class _PlateauWatch:
    def __init__(
        self, replicas: int, window_steps: int, relative_improvement: float
    ) -> None:
        self._window, self._share = window_steps, relative_improvement
        self._best = np.full(replicas, np.inf)
        self._history: deque[tuple[int, Values]] = deque()

    def update(self, step: int, values: Values) -> Mask:
        self._best = np.fmin(self._best, values)
        self._history.append((step, self._best))
        while len(self._history) > 1 and self._history[1][0] <= step - self._window:
            self._history.popleft()
        began, then = self._history[0]
        if began > step - self._window:
            return np.zeros(len(values), dtype=bool)
        known = np.isfinite(values) & np.isfinite(then)
        fall = np.where(known, then, 0) - np.where(known, self._best, 0)
        return known & (fall <= self._share * np.abs(np.where(known, then, 0)))


def check_metrics(rules: tuple[Rule, ...], metrics: list[str]) -> None:
    """Raise `UsageError` for a rule that watches a metric that is not evaluated."""
    for rule in rules:
        if rule.metric not in metrics:
            raise unknown(
                "evaluated metric",
                rule.metric,
                metrics,
                remedy=f"Give the data that {rule.name} needs in held_out.",
            )
