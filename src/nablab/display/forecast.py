"""How long the rest of a run may last, by how long its finished conditions took."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nablab.contract import Condition, shared_levels
from nablab.text.durations import roughly

if TYPE_CHECKING:
    from nablab.lab.contents import Progress
    from nablab.lab.runner import Plan
    from nablab.lab.store import RunFolder
    from nablab.lab.work import Outcome

Conditions = tuple[Condition, ...]  # that train in one batch: a unit of work


@dataclass(frozen=True)
class TimeLeft:
    """An estimate for a reader.

    Attributes:
        seconds: Until the last condition ends.
        at_most: A stopping rule may end a training before, and nothing tells when.
    """

    seconds: float
    at_most: bool = False

    def __str__(self) -> str:
        about = "at most about" if self.at_most else "about"
        return f"{about} {roughly(self.seconds)} left"


class Forecast:
    """Estimates how long a run will go on, once a condition has ended.

    Before that it knows nothing. Conditions that wait are taken to last as long per
    trial as those that ended. One in work is taken to last as long as that, too, or
    longer if its training says so. All are dealt out to the processes that work.

    What an earlier command began is not a measure: how long the whole of it took is not
    known here. Nor is what ended before processes came to help, since they share the
    cores: how much they gain depends on the trainings, and may be nothing. Until one of
    theirs has ended, all that is left is taken to be done one after the other, which
    bounds it.

    Args:
        jobs: Number of processes that work.
        clock: The time in seconds.
    """

    def __init__(
        self, jobs: int = 1, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.jobs = jobs
        self._clock = clock
        self._trials: dict[Conditions, int] = {}  # of what has not ended, in order
        self._resumed: Collection[Conditions] = ()
        self._begun: dict[Conditions, float] = {}
        self._seconds = 0.0  # of the trials that were trained, and how many these are
        self._trained = 0
        self._helped: float | None = None  # when; None once what they gain is measured
        # the run tells what ends, another thread draws, a third one starts helpers
        self._lock = threading.RLock()

    def start(
        self,
        trials: Mapping[Conditions, int],
        *,
        resumed: Collection[Conditions] = (),
    ) -> None:
        """Take on the work.

        Args:
            trials: How many each unit of work has to do, in their order.
            resumed: The units that an earlier command began.
        """
        with self._lock:
            self._trials = {group: count for group, count in trials.items() if count}
            self._resumed = resumed
            self._begin()

    def end(self, conditions: Conditions, outcome: Outcome) -> None:
        """Note that a unit of work has ended, however it did."""
        with self._lock:
            if self._trials.pop(conditions, 0) and conditions not in self._resumed:
                if self._helped is not None and outcome.trained:
                    self._measure_again(self._begun.get(conditions, self._helped))
                # there are none where it failed, or where another process did it
                self._trained += len(outcome.trained)
                self._seconds += outcome.seconds if outcome.trained else 0.0
            self._begin()

    def help(self, workers: int) -> None:
        """Note that this number of processes work besides this one."""
        with self._lock:
            self.jobs = workers + 1
            self._helped = self._clock()
            self._begin()

    def _measure_again(self, begun: float) -> None:
        """Forget what ended before there was help.

        This is done once something ends that had help from its beginning.
        """
        if self._helped is not None and begun >= self._helped:
            self._seconds, self._trained, self._helped = 0.0, 0, None

    def left(self, progress: Mapping[Conditions, Progress]) -> TimeLeft | None:
        """Estimate how long the run will go on.

        Args:
            progress: How far the units of work are that said so just now.

        Returns:
            None as long as there is nothing to go by, and when all is done.
        """
        now = self._clock()
        with self._lock:
            for conditions in progress:
                self._begun.setdefault(conditions, now)
            return self._estimate(progress, now) if self._trained else None

    def _estimate(
        self, progress: Mapping[Conditions, Progress], now: float
    ) -> TimeLeft | None:
        pace = self._seconds / self._trained
        busy, waiting, at_most = [], [], False
        for conditions, trials in self._trials.items():
            usual = pace * trials
            if conditions not in self._begun:
                waiting.append(usual)
                continue
            spent = now - self._begun[conditions]
            seconds, bounded = _left_of(usual - spent, progress.get(conditions))
            busy.append(seconds)
            at_most |= bounded
        if self._helped is not None:
            return TimeLeft(sum(busy) + sum(waiting), at_most=True)
        # another command may work on the same run, so more may be busy than work here
        free = [0.0] * (self.jobs - len(busy))
        seconds = _dealt_out(waiting, [*busy, *free])
        return TimeLeft(seconds, at_most) if seconds > 0 else None

    def _begin(self) -> None:
        """Note that whoever is free begins with the next unit of work."""
        now = self._clock()
        working = sum(conditions in self._begun for conditions in self._trials)
        for conditions in self._trials:
            if working >= self.jobs:
                return
            if conditions not in self._begun:
                self._begun[conditions] = now
                working += 1


def _left_of(usual: float, progress: Progress | None) -> tuple[float, bool]:
    """Estimate the seconds until a unit in work ends, and whether it may end sooner.

    Args:
        usual: What would be left if it lasts as long as others.
        progress: How far its training is, if it says so.
    """
    usual = max(0.0, usual)
    if progress is None:
        return usual, False
    own = seconds_left(progress)
    if own <= usual:  # more may come after this training
        return usual, False
    # Trainings that end early are part of what is usual. Once it lasts longer than
    # that, only its last step bounds it.
    if progress.may_end_early and usual > 0:
        return usual, False
    return own, progress.may_end_early


def _dealt_out(waiting: list[float], busy: list[float]) -> float:
    """Find when the last process is free, if whoever is free takes the next.

    >>> _dealt_out([2.0, 2.0, 3.0], [1.0, 0.0])
    5.0
    """
    heapq.heapify(busy)
    for seconds in waiting:
        heapq.heappush(busy, heapq.heappop(busy) + seconds)
    return max(busy, default=0.0)


def seconds_left(progress: Progress) -> float:
    """Estimate how long a training or loop goes on, as fast as it is now."""
    steps = max(0, progress.steps - progress.step) * progress.replicas
    return steps / max(progress.rate, 1e-9)


def pending_trials(
    folder: RunFolder, plan: Plan, pending: int
) -> dict[Conditions, int]:
    """Count how many trials each unit of work has to do.

    Args:
        folder: The run.
        plan: What is run.
        pending: How many there are in all. The store is read only if that does not
            tell.
    """
    from nablab.lab.work import pending_seeds

    everything = pending == len(plan.conditions) * plan.seeds
    found = {}
    for group in plan.groups:
        seeds = plan.seeds if everything else 0
        if pending and not everything:
            seeds = len(pending_seeds(folder, group, plan.seeds)[0])
        found[group] = len(group) * seeds
    return found


def begun_before(folder: RunFolder, plan: Plan) -> set[Conditions]:
    """Return the units of work that an earlier command left unfinished."""
    return {group for group in plan.groups if folder.checkpoints(shared_levels(group))}
