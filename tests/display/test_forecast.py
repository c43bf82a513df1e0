"""How long a run will go on, beside runs that are played with a clock of their own."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nablab.contract import Condition, Record, Trial
from nablab.display.forecast import (
    Conditions,
    Forecast,
    TimeLeft,
    begun_before,
    pending_trials,
)
from nablab.lab.contents import Progress
from nablab.lab.store import Store
from nablab.lab.work import Outcome
from nablab.runs import make_plan
from nablab.text.durations import roughly


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def unit(number: int) -> Conditions:
    return (Condition(width=number),)


def done(group: Conditions, seconds: float, trials: int = 5) -> Outcome:
    trained = tuple(Trial(group[0], seed) for seed in range(trials))
    return Outcome("done", trained, seconds)


def training(
    step: int, *, steps: int = 100, rate: float = 10.0, may_end_early: bool = False
) -> Progress:
    return Progress(
        {}, replicas=5, step=step, steps=steps, rate=rate, time=time.time(),
        may_end_early=may_end_early,
    )  # fmt: skip


def played(
    seconds: Sequence[float], jobs: int
) -> list[tuple[float, TimeLeft | None, float]]:
    """Play a run of units that last so long; at every end: the time, what is forecast
    and what is true.
    """
    clock = Clock()
    begin = clock.now
    forecast = Forecast(jobs, clock=clock)
    forecast.start({unit(number): 5 for number in range(len(seconds))})
    free, ends = [0.0] * jobs, []
    for number, lasts in enumerate(seconds):
        end = heapq.heappop(free) + lasts
        heapq.heappush(free, end)
        ends.append((end, number))
    found = []
    for end, number in sorted(ends):
        clock.now = begin + end
        forecast.end(unit(number), done(unit(number), seconds[number]))
        found.append((end, forecast.left({}), max(free) - end))
    return found


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_conditions_that_last_equally_long_are_forecast_exactly(
    jobs: int, count: int
) -> None:
    for _, forecast, truth in played([60.0] * count, jobs):
        if truth == 0:
            # they end at one time: nothing is left, or nothing that takes time
            assert forecast is None
        else:
            assert forecast is not None
            assert forecast.seconds == pytest.approx(truth)
            assert not forecast.at_most


@pytest.mark.parametrize("jobs", [1, 2])
def test_conditions_of_several_sizes_are_forecast_by_their_mean(jobs: int) -> None:
    seconds = [50.0, 70.0, 55.0, 65.0, 60.0, 62.0, 58.0]
    for _, forecast, truth in played(seconds, jobs)[1:-1]:
        assert forecast is not None
        assert forecast.seconds == pytest.approx(truth, abs=16)


def test_nothing_is_said_before_a_condition_has_ended() -> None:
    forecast = Forecast()
    forecast.start({unit(1): 5, unit(2): 5})
    assert forecast.left({}) is None
    assert forecast.left({unit(1): training(50)}) is None
    # neither a failure nor the work of another process tells how long one lasts
    forecast.end(unit(1), Outcome("failed", seconds=3.0))
    assert forecast.left({}) is None
    forecast.start({unit(1): 5, unit(2): 5})
    forecast.end(unit(1), Outcome("done", seconds=3.0))
    assert forecast.left({}) is None


def test_trials_that_an_earlier_command_began_are_no_measure() -> None:
    clock = Clock()
    forecast = Forecast(clock=clock)
    forecast.start({unit(1): 5, unit(2): 5, unit(3): 5}, resumed={unit(1)})
    forecast.end(unit(1), done(unit(1), 1.0))
    assert forecast.left({}) is None
    forecast.end(unit(2), done(unit(2), 40.0))
    left = forecast.left({})
    assert left is not None
    assert left.seconds == pytest.approx(40.0)


def test_missing_trials_count_and_not_conditions() -> None:
    forecast = Forecast(clock=Clock())
    forecast.start({unit(1): 5, unit(2): 1, unit(3): 0})
    forecast.end(unit(1), done(unit(1), 50.0))
    assert forecast.left({}) == TimeLeft(10.0)


@pytest.mark.parametrize(("seconds", "left"), [(10.0, 10.0), (39.0, 39.0)])
def test_what_helpers_gain_is_measured_and_not_believed(
    seconds: float, left: float
) -> None:
    clock = Clock()
    forecast = Forecast(clock=clock)
    forecast.start({unit(number): 5 for number in range(9)})
    clock.now += 10
    forecast.end(unit(0), done(unit(0), 10.0))
    assert forecast.left({}) == TimeLeft(80.0)
    clock.now += 1
    forecast.help(3)  # unit 1 in this process; 2, 3 and 4 in others
    assert forecast.left({}) == TimeLeft(79.0, at_most=True)
    clock.now += 9
    forecast.end(unit(1), done(unit(1), 10.0))  # partly without help
    assert str(forecast.left({})).startswith("at most about")
    clock.now += seconds - 9
    forecast.end(unit(2), done(unit(2), seconds))
    # the last four are in work, three of them since just now
    forecast.end(unit(3), done(unit(3), seconds))
    forecast.end(unit(4), done(unit(4), seconds))
    assert forecast.left({}) == TimeLeft(left)


def test_a_training_that_is_slower_than_others_says_so_itself() -> None:
    clock = Clock()
    forecast = Forecast(clock=clock)
    forecast.start({unit(1): 5, unit(2): 5})
    forecast.end(unit(1), done(unit(1), 10.0))
    # 90 steps of 5 replicas, 10 a second
    assert forecast.left({unit(2): training(10)}) == TimeLeft(45.0)
    # 2 s: something may come after the training
    assert forecast.left({unit(2): training(96)}) == TimeLeft(10.0)
    clock.now += 30
    assert forecast.left({}) is None  # longer than others: nothing tells how long


def test_a_rule_that_may_end_a_training_makes_its_steps_a_bound() -> None:
    clock = Clock()
    forecast = Forecast(clock=clock)
    forecast.start({unit(1): 5, unit(2): 5, unit(3): 5})
    forecast.end(unit(1), done(unit(1), 10.0))
    clock.now += 4
    early = {unit(2): training(10, may_end_early=True)}
    assert forecast.left(early) == TimeLeft(16.0)  # the others ended early as well
    clock.now += 26
    assert forecast.left(early) == TimeLeft(55.0, at_most=True)
    assert str(forecast.left(early)) == "at most about 55 s left"


def test_work_of_another_command_on_the_same_run_is_seen() -> None:
    forecast = Forecast(clock=Clock())
    forecast.start({unit(number): 5 for number in range(4)})
    forecast.end(unit(0), done(unit(0), 10.0))
    assert forecast.left({}) == TimeLeft(30.0)
    # unit 3 is in work elsewhere: 1 of 10 s is done, unit 1 and 2 wait for us
    assert forecast.left({unit(3): training(82)}) == TimeLeft(20.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 s"), (9.9, "10 s"), (12.4, "10 s"), (58.0, "1 min"), (90.0, "1 min 30 s"),
        (299.0, "5 min"), (3_599.0, "1 h"), (4_400.0, "1 h 15 min"), (90_000.0, "25 h"),
    ],
)  # fmt: skip
def test_an_estimate_has_no_digits_that_nobody_knows(seconds: float, text: str) -> None:
    assert roughly(seconds) == text
    assert str(TimeLeft(seconds)) == f"about {text} left"


def test_what_is_pending_is_read_from_the_store_only_where_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("toy", preset="quick", seeds=3)
    folder = Store(tmp_path).create(plan.identity, preset="quick")
    first, second = plan.groups
    record: Any = Record(first[0], 1, {"answer": 42.0}, {}, {}, {})
    folder.write_trial(record)
    assert pending_trials(folder, plan, 5) == {first: 2, second: 3}
    monkeypatch.setattr(type(folder), "read_trial", None)
    assert pending_trials(folder, plan, 6) == {first: 3, second: 3}
    assert pending_trials(folder, plan, 0) == {first: 0, second: 0}
    assert begun_before(folder, plan) == set()
    path = folder.checkpoint_path(second[0], 0)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert begun_before(folder, plan) == {second}
