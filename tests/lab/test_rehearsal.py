"""A dry run measures: one whole evaluation, and a short training that needs few
samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nablab import training
from nablab.contract import Condition, Experiment, Lab, Trial, Trials
from nablab.errors import UsageError
from nablab.lab.notebook import Notebook
from nablab.lab.rehearsal import Estimate, Rehearsal
from nablab.lab.short_training import stretched
from tests.conftest import Nablab
from tests.toys.toy import Toy


def test_an_evaluation_is_measured_once_and_the_short_training_takes_few_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[training.Recipe] = []
    trained: list[training.Recipe] = []

    def watched(function: Any, recipes: list[training.Recipe]) -> Any:
        return lambda *given, **options: (
            recipes.append(given[2]),
            function(*given, **options),
        )[1]

    monkeypatch.setattr(
        training, "measure_speed", watched(training.measure_speed, measured)
    )
    monkeypatch.setattr(training, "train", watched(training.train, trained))
    x, y = torch.randn(400, 3), torch.zeros(400, dtype=torch.int64)
    own = training.PerReplicaTargets(torch.zeros(2, 400, dtype=torch.int64))
    rehearsal = Rehearsal(
        Toy(), Trials([Condition(width=3)], [0, 1]), device="cpu", replicas="auto"
    )
    result = rehearsal.train(
        training.Supervised(lambda: nn.Linear(3, 2), "cross_entropy"),
        (x, y),
        training.Recipe(
            steps=3_000,
            held_out={"test": (x + 1, y), "own": (x, own)},
            train_samples=300,
        ),
        seeds=[0, 1],
    )
    assert len(measured[0].held_out["test"][0]) == 400
    assert measured[0].train_samples == 300
    assert [len(part) for part in trained[0].held_out["test"]] == [256, 256]
    few, labels = trained[0].held_out["own"]
    assert few.data_ptr() == x.data_ptr()  # still the training set's, so predicted once
    assert labels.values.shape == (2, 256)
    assert trained[0].train_samples == 256
    assert result.train_loss.shape == (2, 3_000)


LEARNERS = Path(__file__).parents[1] / "learners"


class Clock:
    """Goes on only when somebody works."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


TRIALS = Trials([Condition(size=1)], [0, 1])


def trial_of(seed: int) -> Trial:
    return Trial(Condition(size=1), seed)


@dataclass(frozen=True)
class Working(Experiment):
    """How long does it take?"""

    work: Callable[[Any, Clock], None]
    clock: Clock

    def run(self, trials: Trials, lab: Lab) -> None:
        self.work(lab, self.clock)


def rehearsed(work: Callable[[Any, Clock], None]) -> tuple[Estimate, float, float]:
    """The estimate, the time that the whole takes, and the time that the rehearsal
    took.
    """
    clock = Clock()
    whole = Working(work, clock)
    begin = clock.now
    whole.run(TRIALS, Notebook(whole, TRIALS))
    wanted = clock.now - begin
    rehearsal = Rehearsal(whole, TRIALS, device="cpu", replicas="auto", clock=clock)
    begin = clock.now
    estimate = rehearsal.rehearse()
    return estimate, wanted, clock.now - begin


def a_loop(lab: Any, clock: Clock) -> None:
    clock.work(3)
    for step in lab.steps(1_000):
        clock.work(1.0 if step == 0 else 0.05)
    clock.work(0.5)


def tiny_steps(lab: Any, clock: Clock) -> None:
    for _ in lab.steps(1_000_000):
        clock.work(1e-5)


def slow_steps(lab: Any, clock: Clock) -> None:
    for _ in lab.steps(50):
        clock.work(60)


def one_loop_per_seed(lab: Any, clock: Clock) -> None:
    for seed in (0, 1):
        for step in lab.steps(1_000):
            clock.work(0.01)
            lab.log(trial_of(seed), step, height=0.0)
        lab.record(trial_of(seed), height=0.0)


def loops_in_loops(lab: Any, clock: Clock) -> None:
    for _ in lab.steps(40):
        clock.work(0.1)
        for _ in lab.steps(100):
            clock.work(0.01)


def short_loops(lab: Any, clock: Clock) -> None:
    for total in (0, 1, 2, 3):
        for _ in lab.steps(total):
            clock.work(1)


def left_at_once(lab: Any, clock: Clock) -> None:
    for _ in lab.steps(10_000):
        clock.work(0.01)
        break


def item_by_item(lab: Any, clock: Clock) -> None:
    for item in lab.each(range(30)):
        clock.work(2 if item == 0 else 0.5)
    clock.work(0.5)


def two_items(lab: Any, clock: Clock) -> None:
    for item in lab.each("ab"):
        clock.work(2 if item == "a" else 0.5)


def items_with_loops(lab: Any, clock: Clock) -> None:
    for _ in lab.each(range(20)):
        for _ in lab.steps(1_000):
            clock.work(0.05)


def a_library(lab: Any, clock: Clock) -> None:
    for seed in (0, 1):
        turns, own_seed = lab.budget(160), lab.seed(trial_of(seed), "weights")
        assert own_seed
        clock.work(0.02 * turns)
        lab.record(trial_of(seed), height=0.0)
        clock.work(1)


def a_library_that_warms_up(lab: Any, clock: Clock) -> None:
    for step, seed in enumerate((0, 1, 0)):
        clock.work(0.1 * lab.budget(320))
        clock.work(0 if step else 2)
        lab.record(trial_of(seed), height=0.0)


def a_library_with_fixed_costs(lab: Any, clock: Clock) -> None:
    for seed in (0, 1, 0, 1):
        clock.work(0.5 + 0.1 * lab.budget(320))
        lab.record(trial_of(seed), height=0.0)


def a_library_that_does_nothing(lab: Any, clock: Clock) -> None:
    for seed in (0, 1):
        clock.work(0.5)
        assert lab.budget(1) == 1
        lab.record(trial_of(seed), height=0.0)


def a_library_in_a_loop(lab: Any, clock: Clock) -> None:
    for _ in lab.steps(60):
        clock.work(0.1 * lab.budget(32))


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (a_loop, 0.1),
        (tiny_steps, 0.1),
        (slow_steps, 0.1),
        (one_loop_per_seed, 0.1),
        (loops_in_loops, 0.1),
        (short_loops, 1.0),
        (left_at_once, 1.0),
        (item_by_item, 0.2),
        (two_items, 1.0),
        (items_with_loops, 0.1),
        (a_library, 0.3),
        (a_library_that_warms_up, 0.1),
        (a_library_with_fixed_costs, 0.1),
        (a_library_that_does_nothing, 1.0),
        (a_library_in_a_loop, 0.1),
    ],
)
def test_a_few_steps_tell_the_time_of_all(work: Any, most: float) -> None:
    estimate, wanted, spent = rehearsed(work)
    assert estimate.seconds == pytest.approx(wanted, rel=0.02)
    assert spent - 3.5 * (work is a_loop) <= most * wanted + 1e-9
    assert not estimate.run_in_full


def test_what_an_earlier_condition_set_up_is_measured_by_one_item() -> None:
    warm: set[tuple[str, int]] = set()
    taken: list[int] = []
    for _ in range(2):
        clock = Clock()

        def work(lab: Any, clock: Clock) -> None:
            for item in lab.each(range(10)):
                taken.append(item)
                clock.work(1)
            for item in lab.each(range(100, 110)):
                taken.append(item)
                clock.work(2 if item == 100 else 1)

        lab = Rehearsal(
            Working(work, clock),
            TRIALS,
            device="cpu",
            replicas="auto",
            warm=warm,
            clock=clock,
        )
        found = lab.rehearse().seconds
    assert taken == [0, 1, 100, 101, 0, 100]
    assert found == pytest.approx(10 + 20)  # 100 is the one that lasts


def test_predictions_are_made_for_a_part_and_reckoned_for_all() -> None:
    build = lambda: nn.Linear(3, 2)  # noqa: E731
    x = torch.randn(4_000, 3)
    recipe = training.Recipe(steps=5)
    result = training.train(
        training.Supervised(build), (x, torch.zeros(4_000, 2)), recipe, seeds=[1, 2]
    )
    missing: list[float] = []
    short = stretched(result, 1_000, missing.append)
    assert short.train_loss.shape == (2, 1_000)
    assert len(list(short)) == 2
    outputs = short.predict(x, at="best")
    whole = result.predict(x, at="best")
    assert outputs.shape == whole.shape
    assert torch.equal(outputs[:, :500], whole[:, :500])
    assert torch.equal(outputs[:, 3_500:], whole[:, :500])
    assert len(missing) == 1
    assert missing[0] > 0
    assert torch.equal(short.predict(x[:100]), result.predict(x[:100]))
    assert len(missing) == 1


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_slow_steps_make_a_short_training(
    pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    usual = training.train

    def watched(*given: Any, **options: Any) -> Any:
        trained.append(given[2].steps)
        return usual(*given, **options)

    def speed(*given: Any, **options: Any) -> training.Speed:
        return training.Speed(pause, 0.0, 0.0, "sequential", 1_000, 100)

    monkeypatch.setattr(training, "train", watched)
    monkeypatch.setattr(training, "measure_speed", speed)
    lab = Rehearsal(Toy(), TRIALS, device="cpu", replicas="auto")
    lab.train(
        training.Supervised(lambda: nn.Linear(1, 1)),
        (torch.zeros(4, 1), torch.zeros(4, 1)),
        training.Recipe(steps=1_000),
        seeds=[0, 1],
    )
    assert trained == [4 if pause else 20]


class Napping(training.Probe):
    """Takes its time at each look."""

    def __init__(self, every: int, enough: int | None) -> None:
        self.every, self.enough_looks, self.looks = every, enough, 0

    def on_step_end(self, context: Any) -> None:
        self.looks += 1
        time.sleep(0.01)


class ByClass(Napping):
    every = 50

    def __init__(self) -> None:
        self.looks = 0


class Frozen(Napping):
    """Nothing of it can be changed but what it counts."""

    def __init__(self) -> None:
        vars(self).update(every=50, looks=0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "every":
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("probe", "looks"),
    [
        (Napping(50, None), 20),
        (Napping(50, 2), 2),
        (Napping(500, None), 2),
        (ByClass(), 20),
        (Frozen(), 0),
    ],
)
def test_looks_of_probes_are_part_of_the_estimate(probe: Any, looks: int) -> None:
    every, before = probe.every, dict(vars(probe))
    lab = Rehearsal(Toy(), TRIALS, device="cpu", replicas="auto")
    lab.train(
        training.Supervised(lambda: nn.Linear(1, 1)),
        (torch.zeros(4, 1), torch.zeros(4, 1)),
        training.Recipe(steps=1_000, probes=[probe]),
        seeds=[0, 1],
    )
    assert probe.looks == looks
    if looks:
        assert lab.estimate.seconds > 0.01 * (1_000 // every)
    assert {**vars(probe), "looks": 0} == before


@pytest.mark.parametrize("every", [1, 7, 300])
def test_a_probe_that_changes_its_pace_gets_its_own_back(every: int) -> None:
    def build() -> nn.Module:
        return nn.Linear(1, 1)

    data = torch.zeros(4, 1), torch.zeros(4, 1)
    probe = training.GradientNorms(build, data, every=every)
    for _ in range(2):  # it may be given to a second training
        lab = Rehearsal(Toy(), TRIALS, device="cpu", replicas="auto")
        lab.train(
            training.Supervised(build),
            data,
            training.Recipe(steps=1_000, probes=[probe]),
            seeds=[0, 1],
        )
    assert probe._period == every


def test_the_estimate_says_what_it_is_of() -> None:
    assert rehearsed(one_loop_per_seed)[0].steps == 2_000
    assert rehearsed(one_loop_per_seed)[0].engine == "own loop"
    assert not rehearsed(one_loop_per_seed)[0].may_end_early
    assert rehearsed(a_library)[0].engine == "library's loop"
    assert rehearsed(a_library)[0].may_end_early  # it may converge


def test_a_loop_that_nobody_can_shorten_is_run_in_full() -> None:
    estimate, wanted, spent = rehearsed(lambda lab, clock: clock.work(7))
    assert estimate.run_in_full
    assert estimate.seconds == wanted == spent == 7


def test_a_dry_run_says_what_it_ran_in_full(
    nablab_here: Nablab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(Path(__file__).parent / "plain"))
    done = nablab_here("run", "arithmetic", "--dry-run")
    assert done.returncode == 0
    assert "run in full" in done.stdout
    assert "calls none of lab.train, lab.steps, lab.each and lab.budget" in " ".join(
        done.stdout.split()
    )


def test_a_dry_run_refuses_a_state_that_cannot_be_saved() -> None:
    with pytest.raises(UsageError, match=r"state\['numbers'\]: it is of type set"):
        rehearsed(lambda lab, clock: lab.steps(5, state={"numbers": {1}}))


@pytest.mark.slow  # it measures, and other work on the machine is measured too
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rosenblatt", {"dimensions": (10,), "steps": 300_000}),
        ("rosenblatt", {"dimensions": (10,), "steps": 200, "pause": 0.03}),
        ("fold-search", {"epochs": 320, "samples": 600}),
    ],
)
def test_a_dry_run_is_within_a_factor_of_one_and_a_half(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nablab import catalogue

    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(LEARNERS))
    experiment = catalogue.find(name)(**settings)
    trials = Trials(experiment.conditions()[:1], range(3))
    if name == "fold-search":  # importing is no part of the estimate
        import sklearn.model_selection
        import sklearn.neural_network

        assert sklearn.model_selection
        assert sklearn.neural_network
    begin = time.perf_counter()
    estimate = Rehearsal(experiment, trials, device="cpu", replicas="auto").rehearse()
    spent = time.perf_counter() - begin
    begin = time.perf_counter()
    experiment.run(trials, Notebook(experiment, trials))
    seconds = time.perf_counter() - begin
    print(
        f"{name}: {estimate.seconds:.2f} s foretold, {seconds:.2f} s taken, "
        f"{spent:.2f} s for the dry run"
    )
    assert seconds / 1.5 < estimate.seconds < seconds * 1.5
    assert spent < 0.15 * seconds
