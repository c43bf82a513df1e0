"""What the JSON files of the store hold: fields, types and bounds.

Each kind of file also says what to do when one is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from nablab.lab.reading import Bounds, Misfit, Spelled

MOST_SEEDS = 10**9
LONGEST = 10**11  # seconds; three thousand years

Seed = Annotated[int, Bounds(0, MOST_SEEDS)]
Count = Annotated[int, Bounds(0, 10**15)]
Seconds = Annotated[float, Bounds(0, LONGEST)]
Number = Annotated[float, Spelled]
FactorLevel = bool | int | float | str


@dataclass(frozen=True)
class Config:
    """``config.json``: what was asked for; see `nablab.lab.store.Identity`."""

    remedy: ClassVar[str] = (
        "The run cannot be read without it. Remove this file and give the run's "
        "command again, which writes the file again and keeps every trial."
    )

    format: Annotated[int, Bounds(1)]
    run_id: str
    preset: str
    experiment: str
    version: int
    configuration: Mapping[str, Any]
    device: str
    replicas: str
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Status:
    """``status.json``: how the last command ended, or who is at work."""

    remedy: ClassVar[str] = (
        "How the last command ended, its number of seeds and its notes are not known; "
        "the run's command writes it again."
    )

    state: Literal["running", "done", "failed", "interrupted"]
    pid: Annotated[int, Bounds(1, 2**31 - 1)] | None = None
    process_started: str | None = None
    host: str = ""
    started: Seconds = 0.0
    heartbeat: Seconds = 0.0
    seconds: Seconds | None = None
    seeds: Seed | None = None
    trials: Count | None = None
    notes: tuple[str, ...] = ()
    keep_weights: Count | None = None  # bytes in each trial, where the command said it


@dataclass(frozen=True)
class Environment:
    """``environment.json`` of earlier versions.

    It holds the facts of the machine that gave the last command.
    """

    remedy: ClassVar[str] = "Where the trials ran is not shown."

    facts: Mapping[str, FactorLevel]


@dataclass(frozen=True)
class Part:
    """What one process did for a group.

    Attributes:
        environment: Versions, processor, threads, device, git state: see
            `describe_environment`.
        started: When it began, in seconds since the epoch.
        seconds: How long it worked, as of the last time that it wrote this down.
        notes: Automatic choices and caveats.
    """

    environment: Mapping[str, FactorLevel]
    started: Seconds
    seconds: Seconds
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Seeds of one condition that were trained together.

    One process trained them, or several in turn.
    """

    seeds: tuple[Seed, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise Misfit("a group of seeds lacks its parts")


@dataclass(frozen=True)
class Provenance:
    """``provenance/<key>.json``: where and how long trials were trained.

    A file is about the trials of one condition.
    """

    remedy: ClassVar[str] = (
        "Where the trials of this condition were trained is not shown, nor their notes."
    )

    format: Annotated[int, Bounds(1)]
    condition: Mapping[str, FactorLevel]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Weights:
    """Weights that were kept with a trial.

    Attributes:
        file: The file's name in the trial's folder. Two names of the same weights share
            one file.
        bytes: Its size.
        sha256: Its checksum.
    """

    file: str
    bytes: Count
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"weights-[a-z0-9][a-z0-9_-]*\.safetensors", self.file):
            raise Misfit("weights are said to lie in a file that has another name")


@dataclass(frozen=True)
class Trial:
    """``trial.json``: the record of a trial without its arrays.

    Attributes:
        run: The id of the run that it belongs to; format 1 had none.
        weights: What was kept, by name; None if nothing was.
        weights_left_out: Bytes of what was too large to be kept, by name; None if
            nothing was.
    """

    format: Annotated[int, Bounds(1)]
    condition: Mapping[str, FactorLevel]
    seed: Seed
    scalars: Mapping[str, Number]
    notes: Mapping[str, str]
    arrays_sha256: str
    arrays_bytes: Count | None = None
    run: str | None = None
    weights: Mapping[str, Weights] | None = None
    weights_left_out: Mapping[str, Count] | None = None


@dataclass(frozen=True)
class Marker:
    """``checkpoints/<key>.json``: the seeds that the checkpoints beside it are of."""

    remedy: ClassVar[str] = (
        "The checkpoint beside it is used only if it fits the seeds that are missing."
    )

    seeds: tuple[Seed, ...]

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise Misfit("'seeds' names a seed twice")


@dataclass(frozen=True)
class Progress:
    """``progress/<key>.json``: how far a condition's training, or other loop, is."""

    remedy: ClassVar[str] = "It is only shown."

    condition: Mapping[str, FactorLevel]
    replicas: Annotated[int, Bounds(1, MOST_SEEDS)]
    step: Count
    steps: Annotated[int, Bounds(1, 10**15)]
    rate: Annotated[float, Bounds(0, 1e15)]
    time: Seconds
    loss: Number | None = None  # of a training
    may_end_early: bool = False  # by a stopping rule of the training


@dataclass(frozen=True)
class Outcome:
    """What became of one claim."""

    outcome: Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Verdicts:
    """``verdicts.json``: the answers, for programs; ``nablab runs`` counts them."""

    remedy: ClassVar[str] = "'nablab report' writes it again from the trials."

    verdicts: tuple[Outcome, ...]
