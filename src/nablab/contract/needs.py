"""What an experiment needs of another one: the weights that it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nablab.contract.conditions import Condition, Level, Trial, text_of
from nablab.errors import UsageError

MOST_SHOWN = 6


@dataclass(frozen=True)
class Needs:
    """Weights that an experiment takes from the trials of another one.

    A trial gets those of the other experiment's trial with the same seed, so that
    seeds stay independent of each other.

    Attributes:
        experiment: The name of the experiment that leaves them.
        weights: What they are called there: ``"final"``, ``"best"``, or the name that
            `Lab.weights` was given.
        where: Levels that single out one of its conditions. A factor that both
            experiments have need not be named: the trial's own level counts for it.
    """

    experiment: str
    weights: str = "final"
    where: Mapping[str, Level] = field(default_factory=dict)

    def condition_among(
        self, conditions: Sequence[Condition], trial: Trial
    ) -> Condition:
        """Return the condition whose weights a trial gets.

        Args:
            conditions: Those of the other experiment's run.
            trial: The trial that needs weights.

        Raises:
            UsageError: None of the conditions fits, or several do.
        """
        wanted = {**trial.condition, **self.where}
        fitting = [
            condition
            for condition in conditions
            if self.where.keys() <= condition.keys()
            and all(
                condition[factor] == level
                for factor, level in wanted.items()
                if factor in condition
            )
        ]
        if len(fitting) == 1:
            return fitting[0]
        there = "; ".join(map(str, (fitting or conditions)[:MOST_SHOWN]))
        found = "several conditions fit" if fitting else "no condition fits"
        raise UsageError(
            f"{text_of([trial.condition])} needs the weights of one condition of "
            f"{self.experiment}, and {found}: {there}."
        )
