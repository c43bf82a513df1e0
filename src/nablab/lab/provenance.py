"""Where, when and how long trials were trained, and what had to be said about it.

``provenance/<condition>.json`` holds one entry for each group of seeds that were
trained together, and in it one part for each process that worked on the group: after a
kill, another process, perhaps on another machine, goes on. A group is written when its
training begins, again about as often as its checkpoints, and a last time before its
first trial counts, so that no trial is without its group.

These facts lie beside the trials and not in them: trials are the same bytes however
long they took.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nablab.contract import Condition, Record, shared_levels
from nablab.lab import contents, files, reading
from nablab.lab.contents import Group, Part
from nablab.lab.store import RunFolder

FORMAT = 1
FOLDER = "provenance"


class Journal:
    """Writes down a group while it is trained.

    Only the holder of the condition's lock may use it.

    Args:
        folder: The run.
        condition: The condition.
        seeds: The seeds of the group.
        environment: What they are trained in.
        goes_on: Whether these seeds were begun by another process whose work is taken
            up.
        every_seconds: How often `tick` writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        condition: Condition,
        seeds: Sequence[int],
        *,
        environment: Mapping[str, Any],
        goes_on: bool,
        every_seconds: float,
    ) -> None:
        self._folder, self._condition, self._every = folder, condition, every_seconds
        self._seeds, self._environment = tuple(seeds), dict(environment)
        groups = _groups(folder, condition) or []
        same = [group for group in groups if group.seeds == self._seeds]
        self._earlier = same[-1].parts if goes_on and same else ()
        self._others = _without(groups, self._seeds)
        self._started, self._begin = time.time(), time.perf_counter()
        self._written = self._begin

    def tick(self, notes: Sequence[str]) -> None:
        """Write what is known so far if the last time was long enough ago."""
        if time.perf_counter() - self._written >= self._every:
            self.write(notes)

    def write(self, notes: Sequence[str]) -> None:
        """Write the group as it is now, with the notes so far."""
        self._written = time.perf_counter()
        part = Part(
            self._environment, self._started, self._written - self._begin, tuple(notes)
        )
        groups = [*self._others, Group(self._seeds, (*self._earlier, part))]
        content = {
            "format": FORMAT,
            "condition": dict(self._condition),
            "groups": [_plain(group) for group in groups],
        }
        self._folder.write_json(_name(self._folder, self._condition), content)


@dataclass
class Provenance:
    """What is known about the making of some trials.

    Attributes:
        environments: Each environment, with the number of trials that were trained in
            it.
        seconds: Time of work on them, added over groups and processes; None where none
            is known.
        started: When the first and the last of the processes began, in seconds since
            the epoch.
        notes: Automatic choices and caveats, in the order of the trials.
    """

    environments: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)
    seconds: float | None = None
    started: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return the environment as one table.

        Where trials differ in a fact, each value stands with its number of trials.
        """
        names = dict.fromkeys(
            name for environment, _ in self.environments for name in environment
        )
        return {name: self._fact(name) for name in names}

    def _fact(self, name: str) -> Any:
        counts: dict[Any, int] = {}
        for environment, trials in self.environments:
            value = environment.get(name, "unknown")
            counts[value] = counts.get(value, 0) + trials
        if len(counts) == 1:
            return next(iter(counts))
        return "; ".join(
            f"{value or 'none'} ({_trials(count)})" for value, count in counts.items()
        )

    def differing(self) -> list[str]:
        """Return the names of the facts that are not the same for all trials."""
        first = self.environments[0][0] if self.environments else {}
        names = dict.fromkeys(
            name for environment, _ in self.environments for name in environment
        )
        return [
            name
            for name in names
            if any(e.get(name) != first.get(name) for e, _ in self.environments)
        ]


def provenance(
    folder: RunFolder, records: Iterable[Record], units: Sequence[Sequence[Condition]]
) -> Provenance:
    """Collect what is known about the making of these trials of a run.

    Args:
        folder: The run.
        records: The trials.
        units: The run's conditions, in groups that train in one batch.
    """
    found = Provenance()
    unknown = 0
    unit_of = {condition: shared_levels(unit) for unit in units for condition in unit}
    for condition, trials in _by_unit(records, unit_of).items():
        seeds = set(trials)
        groups = _groups(folder, condition)
        if groups is None:
            path = folder.path / _name(folder, condition)
            found.notes.append(
                f"{path} is damaged: where {condition} was trained is not known."
            )
        for group in groups or []:
            members = seeds & set(group.seeds)
            seeds -= members
            if members:
                _add(found, group, sum(trials[seed] for seed in members))
        unknown += sum(trials[seed] for seed in seeds)
    if unknown:
        _add_unknown(found, folder, unknown)
    found.notes = list(dict.fromkeys([*_earlier_notes(folder), *found.notes]))
    _say_differences(found)
    return found


def seconds_of(folder: RunFolder) -> float | None:
    """Add up the time of work on all groups of a run, unfinished ones included.

    Returns:
        Seconds; None where they are not known.
    """
    found = []
    for path in sorted((folder.path / FOLDER).glob("*.json")):
        try:
            content = reading.read(path, contents.Provenance)
        except reading.Damaged:
            return None  # a part of the sum is not the sum
        found += [
            part.seconds
            for group in (content.groups if content else ())
            for part in group.parts
        ]
    return sum(found) if found else None


def _by_unit(
    records: Iterable[Record], unit_of: Mapping[Condition, Condition]
) -> dict[Condition, Counter[int]]:
    """Count the trials of each seed in each unit of work.

    A unit is named by the levels that its conditions share.
    """
    found: dict[Condition, Counter[int]] = {}
    for record in records:
        unit = unit_of.get(record.condition, record.condition)
        found.setdefault(unit, Counter())[record.seed] += 1
    return found


def _add(found: Provenance, group: Group, trials: int) -> None:
    found.seconds = (found.seconds or 0.0) + sum(part.seconds for part in group.parts)
    starts = [part.started for part in group.parts]
    low, high = found.started or (starts[0], starts[0])
    found.started = min(low, *starts), max(high, *starts)
    for environment in _unique(part.environment for part in group.parts):
        _count(found, environment, trials)
    for part in group.parts:
        found.notes.extend(part.notes)


def _count(found: Provenance, environment: Mapping[str, Any], trials: int) -> None:
    for place, (known, before) in enumerate(found.environments):
        if known == environment:
            found.environments[place] = known, before + trials
            return
    found.environments.append((environment, trials))


def _unique(environments: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    unique: list[Mapping[str, Any]] = []
    for environment in environments:
        if environment not in unique:
            unique.append(environment)
    return unique


def _add_unknown(found: Provenance, folder: RunFolder, trials: int) -> None:
    """Add trials about which no file of their own says anything.

    An earlier nablab kept the environment of its last command only, or the file is
    gone.
    """
    try:
        environment = folder.environment()
    except reading.Damaged:
        environment = {}
    if not environment:
        found.notes.append(
            f"Where and how long {_trials(trials)} ran is not known: no file says it."
        )
        return
    _count(found, environment, trials)
    found.notes.append(
        f"{_trials(trials)} ran under an earlier nablab, which kept the environment of "
        "its last command only: another one may have trained them. How long they took "
        "is not known."
    )


def _say_differences(found: Provenance) -> None:
    names = found.differing()
    if names:
        found.notes.append(
            "Not all trials, or not all parts of a trial, ran in the same environment; "
            f"what differs: {', '.join(names)}. The section on the environment has the "
            "values. The last digits of their numbers may differ for that reason alone."
        )


def _earlier_notes(folder: RunFolder) -> list[str]:
    """Return notes of a nablab that kept them with the command, not with the trials."""
    try:
        status = folder.status()
    except reading.Damaged:
        return []
    return list(status.notes) if status else []


def _trials(count: int) -> str:
    return f"{count:,} trial{'' if count == 1 else 's'}"


def _without(groups: Sequence[Group], seeds: Sequence[int]) -> list[Group]:
    """Return the groups without these seeds.

    A trial belongs to the group that trained it last.
    """
    left = [
        Group(tuple(s for s in group.seeds if s not in seeds), group.parts)
        for group in groups
    ]
    return [group for group in left if group.seeds]


def _name(folder: RunFolder, condition: Condition) -> str:
    return f"{FOLDER}/{folder.condition_key(condition)}.json"


def _plain(group: Group) -> dict[str, Any]:
    parts = [
        {
            "environment": dict(part.environment),
            "started": part.started,
            "seconds": part.seconds,
            "notes": list(part.notes),
        }
        for part in group.parts
    ]
    return {"seeds": list(group.seeds), "parts": parts}


def _groups(folder: RunFolder, condition: Condition) -> Sequence[Group] | None:
    """Return the groups of a condition.

    It is None if the file is damaged, of another format or of another condition.
    """
    try:
        content = reading.read(
            folder.path / _name(folder, condition), contents.Provenance
        )
    except reading.Damaged:
        return None
    if content is None:
        return []
    same = files.canonical_json(content.condition) == files.canonical_json(
        dict(condition)
    )
    return content.groups if same and content.format == FORMAT else None
