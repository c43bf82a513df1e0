"""What a report needs to know of a run: plain data, read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nablab.contract import Experiment, Records

if TYPE_CHECKING:
    from nablab.verdicts import Verdict


@dataclass(frozen=True)
class RunView:
    """What a report needs to know of a run.

    Attributes:
        experiment: The configured experiment.
        preset: The preset it started from.
        run_id: The run's name in the store.
        state: ``done``, ``interrupted``, ``crashed``, ``failed``, ``running`` or
            ``incomplete``.
        records: The finished trials.
        verdicts: The answers to the claims, in the order of the claims.
        environment: Versions, processor, cores, threads, device, git state; where
            trials differ in one of them, a text with all values. With ``seconds`` of
            work, added over the trials, and ``started``: when the first and the last
            part of it began.
        notes: Automatic choices and caveats, one sentence or two each.
        command: The command that makes this run.
        seeds: Planned number of seeds per condition.
        damage: What of the run is damaged and left out, a sentence or two each.
    """

    experiment: Experiment
    preset: str
    run_id: str
    state: str
    records: Records
    verdicts: list[Verdict]
    environment: Mapping[str, Any]
    notes: Sequence[str]
    command: str
    seeds: int
    damage: Sequence[str] = ()
