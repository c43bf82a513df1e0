"""Finished runs that other experiments take weights from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.contract import Condition, Needs, Record, Trial
from nablab.errors import UsageError
from nablab.lab.kept_weights import in_words
from nablab.lab.store import RunFolder
from nablab.lab.trials import CorruptTrial

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SourceRun:
    """A finished run that another experiment takes weights from. Picklable.

    Attributes:
        path: The run's folder.
        run_id: Its id, which is part of the identity of the run that takes them.
        conditions: Its conditions.
        command: The command that makes it, with as many seeds as are needed.
    """

    path: Path
    run_id: str
    conditions: tuple[Condition, ...]
    command: str

    def weights(self, needed: Needs, trial: Trial) -> dict[str, Tensor]:
        """Return the weights that a trial needs, on the CPU, by their names.

        Raises:
            UsageError: The run has no finished trial of that condition and seed, or
                did not keep these weights; the text says how to get them.
        """
        with self._damage_said(needed):
            return dict(self._record(needed, trial).weights[needed.weights])

    def check(self, needed: Needs, trial: Trial) -> None:
        """Raise what `weights` would, without reading the weights."""
        with self._damage_said(needed):
            self._record(needed, trial)

    @contextmanager
    def _damage_said(self, needed: Needs) -> Iterator[None]:
        """Turn a damaged trial that is read inside into a sentence with the remedy."""
        try:
            yield
        except CorruptTrial as damage:
            raise UsageError(
                f"The weights of {needed.experiment}/{self.run_id} cannot be used: "
                f"{damage} This trains them again: {self.command}"
            ) from damage

    def _record(self, needed: Needs, trial: Trial) -> Record:
        condition = needed.condition_among(self.conditions, trial)
        name = f"{needed.experiment}/{self.run_id}"
        record = RunFolder(self.path).read_trial(condition, trial.seed)
        if record is None:
            raise UsageError(
                f"Seed {trial.seed} needs weights of {name}, which has no finished "
                f"trial of {condition} with that seed. This runs what is missing: "
                f"{self.command}"
            )
        if needed.weights in record.weights:
            return record
        if needed.weights in record.weights_left_out:
            size = in_words(2 * record.weights_left_out[needed.weights])
            raise UsageError(
                f"{name} did not keep its weights '{needed.weights}': there was no "
                "room for them. This trains again and keeps them: "
                f"{self.command} --keep-weights {size} --fresh"
            )
        there = ", ".join(record.weights) or "none"
        raise UsageError(
            f"{name} has no weights '{needed.weights}'; of {condition}, seed "
            f"{trial.seed}, it kept: {there}. This trains again and keeps what there "
            f"is room for: {self.command} --fresh"
        )


def run_ids(sources: Mapping[str, SourceRun]) -> dict[str, str]:
    """Return the id of each source run, by its experiment."""
    return {experiment: source.run_id for experiment, source in sources.items()}
