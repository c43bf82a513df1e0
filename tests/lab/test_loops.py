"""Loops of an experiment's own: shown, stopped, saved, and resumed with the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablab
from nablab import open_run
from nablab.contract import Condition, Experiment, Record, Trial, Trials
from nablab.errors import Interrupted, UsageError
from nablab.files import atomic
from nablab.lab import loop_files, loops, reading
from nablab.lab.contents import Progress
from nablab.lab.notebook import Notebook
from nablab.lab.session import Session
from nablab.lab.status import read_state
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder
from tests.conftest import Nablab
from tests.lab.test_faults import start, wait_for
from tests.lab.test_runner import trial_bytes

LEARNERS = Path(__file__).parents[1] / "learners"
CONDITION = Condition(size=3)


def trial_of(seed: int) -> Trial:
    return Trial(CONDITION, seed)


# (lab, called once a step): may raise Killed
Work = Callable[[Any, Callable[[], None]], None]


class Killed(BaseException):
    """Ends the work as a kill does: nothing is tidied up on the disk."""


@dataclass(frozen=True)
class Empty(Experiment):
    """Is there anything?"""


@dataclass
class Walker:
    """A random walk, one state of a loop."""

    place: np.ndarray
    rng: np.random.Generator

    def go(self) -> float:
        # in place: what is kept of it must be a copy
        self.place += self.rng.normal(size=2)
        return float(self.place.sum())


def walker(lab: Any, seed: int, name: str = "walk") -> Walker:
    return Walker(np.zeros(2), lab.rng(trial_of(seed), name))


@pytest.fixture
def lab_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """Make the lab of a run in a folder; every process that takes up the run makes one."""
    # no power is cut in these tests
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def make(folder: Path = tmp_path, seeds: Any = (0, 1)) -> Session:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        return Session(
            Empty(),
            Trials([CONDITION], seeds),
            folder=RunFolder(folder),
            stop=StopToken.create(folder),
            device="cpu",
            replicas="auto",
        )

    return make


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save at every step."""
    monkeypatch.setattr(loops, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(loops, "SAVING_SHARE", 0.0)
    monkeypatch.setenv("NABLAB_CHECKPOINT_SECONDS", "1e-9")


def as_bytes(records: list[Record]) -> list[Any]:
    return [
        (
            record.seed,
            [(name, value.hex()) for name, value in record.scalars.items()],
            list(record.notes.items()),
            {
                name: (c.steps.tobytes(), c.values.tobytes())
                for name, c in record.curves.items()
            },
            {
                name: (array.dtype, array.tobytes())
                for name, array in record.arrays.items()
            },
        )
        for record in records
    ]


# Experiments of all shapes


def one_after_the_other(lab: Any, tick: Callable[[], None]) -> None:
    for seed in (0, 1):
        walk = walker(lab, seed)
        for step in lab.steps(3, state=walk, name="first"):
            lab.log(trial_of(seed), step, height=walk.go())
            tick()
        lab.log(trial_of(seed), 3, height=100.0)  # between the loops
        for step in lab.steps(4, state={"walk": walk}, name="second"):
            lab.log(trial_of(seed), 4 + step, height=walk.go())
            tick()
            if step == 1:
                lab.record(
                    trial_of(seed),
                    early=float(walk.place[0]),
                    word="said in the middle",
                )
                lab.curve(trial_of(seed), "given", [1, 2], [0.5, 0.25])
                lab.array(trial_of(seed), "middle", walk.place)
        lab.record(trial_of(seed), final=walk.go())


def left_early(lab: Any, tick: Callable[[], None]) -> None:
    for seed in (0, 1):
        walk = walker(lab, seed)
        for step in lab.steps(50, state=walk):
            lab.log(trial_of(seed), step, height=walk.go())
            tick()
            if step == 2 + seed:
                break
        for step in lab.steps(3, state=walk):
            lab.log(trial_of(seed), 100 + step, height=walk.go())
            tick()
        lab.record(trial_of(seed), final=walk.go())


def nested(lab: Any, tick: Callable[[], None]) -> None:
    walk, outer = walker(lab, 0), walker(lab, 1, "outer")
    for epoch in lab.steps(3, state={"walk": walk, "outer": outer}):
        outer.go()
        for step in lab.steps(2 + epoch, state=walk):
            lab.log(trial_of(0), 10 * epoch + step, height=walk.go())
            tick()
        lab.log(trial_of(1), epoch, height=outer.go())
    for _ in lab.steps(2, state=walk):
        walk.go()
        tick()
    lab.record(trial_of(0), final=walk.go())
    lab.record(trial_of(1), final=outer.go())


def without_a_state(lab: Any, tick: Callable[[], None]) -> None:
    sums = [0.0, 0.0]
    for seed in (0, 1):
        walk = walker(lab, seed)
        for step in lab.steps(3):
            sums[seed] += walk.go()
            lab.log(trial_of(seed), step, height=sums[seed])
            tick()
        for step in lab.steps(3, state=walk):
            lab.log(trial_of(seed), 3 + step, height=walk.go())
            tick()
        for step in lab.steps(2, state={}):  # only what it logs
            lab.log(trial_of(seed), 10 + step, height=float(step))
            tick()
        lab.record(trial_of(seed), final=walk.go(), total=sums[seed])


def around_a_stateless_loop(lab: Any, tick: Callable[[], None]) -> None:
    walk = walker(lab, 0)
    for turn in lab.steps(2):
        for step in lab.steps(3, state=walk):
            lab.log(trial_of(0), 3 * turn + step, height=walk.go())
            tick()
    for seed in (0, 1):
        lab.record(trial_of(seed), final=walk.go())


def held_in_a_zip(lab: Any, tick: Callable[[], None]) -> None:
    walk = walker(lab, 0)
    for turn in lab.steps(3, state=walk):
        # it stops before the loop does
        pairs = zip(lab.steps(9), range(2), strict=False)
        for step, _ in pairs:
            lab.log(trial_of(0), 9 * turn + step, height=walk.go())
            tick()
    for seed in (0, 1):
        lab.record(trial_of(seed), final=walk.go())


def nothing_at_all(lab: Any, tick: Callable[[], None]) -> None:
    walk = walker(lab, 0)
    for _ in lab.steps(0, state=walk):
        raise AssertionError
    for _ in lab.steps(1, state=walk):
        walk.go()
        tick()
    for seed in (0, 1):
        lab.record(trial_of(seed), final=walk.go())


def item_by_item(lab: Any, tick: Callable[[], None]) -> None:
    for seed in lab.each((0, 1), name="seeds"):
        for mark in lab.each("abc"):
            lab.record(trial_of(seed), **{mark: walker(lab, seed, mark).go()})
            tick()
    for _ in lab.each([]):
        raise AssertionError
    lab.array(trial_of(1), "after", [1.0])
    for seed in lab.each((0, 1)):
        lab.record(trial_of(seed), final=float(seed))
        tick()


SHAPES = [
    item_by_item,
    one_after_the_other,
    left_early,
    nested,
    without_a_state,
    around_a_stateless_loop,
    held_in_a_zip,
    nothing_at_all,
]


def killer(at: int) -> Callable[[], None]:
    """What raises `Killed` when it is called so many times."""
    calls = iter(range(1, 10**6))

    def tick() -> None:
        if next(calls) == at:
            raise Killed

    return tick


def counter() -> tuple[Callable[[], None], list[int]]:
    calls: list[int] = []
    return lambda: calls.append(1), calls


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("work", SHAPES)
def test_killed_at_any_step_and_resumed_with_the_same_bytes(
    work: Work, lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    tick, calls = counter()
    undisturbed = lab_of(tmp_path / "undisturbed")
    work(undisturbed, tick)
    expected = as_bytes(undisturbed.records())
    in_memory = Notebook(Empty(), Trials([CONDITION], (0, 1)))
    work(in_memory, lambda: None)
    assert as_bytes(in_memory.records()) == expected
    for at in range(1, len(calls) + 1):
        folder = tmp_path / str(at)
        for again in (at, 2):  # a resumed run may be killed, too
            with contextlib.suppress(Killed):  # the second time it may be done before
                work(lab_of(folder), killer(again))
        tick, left = counter()
        resumed = lab_of(folder)
        work(resumed, tick)
        assert as_bytes(resumed.records()) == expected, at
        if work in (one_after_the_other, left_early, nested):
            # The one in which it was killed is taken again, and the one before if that
            # left its loop.
            assert len(left) <= len(calls) - at + 2


@pytest.mark.parametrize("work", SHAPES)
def test_what_was_not_saved_is_done_again_with_the_same_bytes(
    work: Work,
    lab_of: Callable[..., Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saves come now and then, so that files hold finished loops in a row, or are older
    than the kill.
    """
    tick, calls = counter()
    undisturbed = lab_of(tmp_path / "undisturbed")
    work(undisturbed, tick)
    expected = as_bytes(undisturbed.records())
    monkeypatch.setattr(loops, "LOOK_SECONDS", 0.0)
    for at in range(1, len(calls) + 1):
        for every in (2, 3, 5):
            folder = tmp_path / f"{at}-{every}"
            for last in (at, 3):
                with contextlib.suppress(Killed):
                    work(_saving(lab_of(folder), every), killer(last))
            resumed = lab_of(folder)
            work(resumed, lambda: None)
            assert as_bytes(resumed.records()) == expected, (at, every)


@pytest.mark.usefixtures("eager")
def test_trainings_before_in_and_after_loops_keep_their_checkpoints_apart(
    lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    import torch
    from torch import nn

    from nablab.training import Recipe, Supervised

    x = torch.linspace(-1, 1, 8)[:, None]

    def train(lab: Any, tick: Callable[[], None], name: str) -> None:
        seeds = [lab.seed(trial_of(seed), name) for seed in (0, 1)]
        result = lab.train(
            Supervised(lambda: nn.Linear(1, 1)),
            (x, x**2),
            Recipe(steps=20),
            seeds=seeds,
        )
        tick()
        for place in (0, 1):
            lab.record(trial_of(place), **{name: result.final[place]})

    def work(lab: Any, tick: Callable[[], None]) -> None:
        walk = walker(lab, 0)
        train(lab, tick, "before")
        for turn in lab.steps(3, state=walk):
            lab.log(trial_of(0), turn, height=walk.go())
            train(lab, tick, f"turn_{turn}")
        for step in lab.steps(2, state=walk):
            lab.log(trial_of(0), 3 + step, height=walk.go())
            tick()
        train(lab, tick, "after")

    tick, calls = counter()
    undisturbed = lab_of(tmp_path / "undisturbed")
    work(undisturbed, tick)
    assert len(calls) == 7
    for at in range(1, len(calls) + 1):
        with pytest.raises(Killed):
            work(lab_of(tmp_path / str(at)), killer(at))
        resumed = lab_of(tmp_path / str(at))
        work(resumed, lambda: None)
        assert as_bytes(resumed.records()) == as_bytes(undisturbed.records()), at
        assert not [note for note in resumed.notes if "is not used" in note]


def _saving(lab: Session, every: int) -> Session:
    """Let a lab save at every so many looks."""
    walking, looks = lab._loops, iter(range(10**6))
    look = walking._look

    def counted(*given: Any) -> float:
        walking._save_at = 0.0 if next(looks) % every == every - 1 else float("inf")
        return look(*given)

    walking._look = counted  # type: ignore[method-assign]
    return lab


def test_an_error_in_the_body_does_not_pass_for_the_end_of_the_loop(
    lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    def work(lab: Any, fails: bool) -> list[int]:
        seen = []
        for step in lab.steps(5, state={}):
            seen.append(step)
            if fails and step == 2:
                raise RuntimeError("out of luck")
        return seen

    with pytest.raises(RuntimeError):
        work(lab_of(), fails=True)
    assert work(lab_of(), fails=False) == [0, 1, 2, 3, 4]


# What a checkpoint belongs to


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"total": 9}, "total was 8 and is 9"),
        ({"name": "other"}, "name was 'walk' and is 'other'"),
        ({"parts": ("a", "b")}, r"state was ['a'] and is ['a', 'b']"),
    ],
)
def test_another_loop_is_noticed_and_starts_anew(
    changed: dict[str, Any], reason: str, lab_of: Callable[..., Session]
) -> None:
    def work(
        lab: Any,
        tick: Callable[[], None],
        total: int = 8,
        name: str = "walk",
        parts: Any = "a",
    ) -> Any:
        walk = walker(lab, 0)
        for _ in lab.steps(2, state=walk):
            walk.go()
        steps = []
        for step in lab.steps(total, state=dict.fromkeys(parts, walk), name=name):
            walk.go()
            steps.append(step)
        for step in lab.steps(3, state=walk):
            walk.go()
            tick()
            steps.append(step)
        return steps

    with pytest.raises(Killed):
        work(lab_of(), killer(2))
    lab = lab_of()
    total = changed.get("total", 8)
    # the later loop starts anew, too
    assert work(lab, lambda: None, **changed) == [*range(total), 0, 1, 2]
    note = next(note for note in lab.notes if "is not used" in note)
    assert reason in note
    assert "starts from step 0" in note


@pytest.mark.usefixtures("eager")
def test_checkpoints_of_other_seeds_and_damaged_ones_are_not_used(
    lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    def work(lab: Any, tick: Callable[[], None]) -> list[int]:
        seen = []
        for step in lab.steps(4, state={}):
            tick()
            seen.append(step)
        return seen

    with pytest.raises(Killed):
        work(lab_of(), killer(3))
    other = lab_of(seeds=(0, 1, 2))
    assert work(other, lambda: None) == [0, 1, 2, 3]
    assert "these differ: seeds" in other.notes[0]
    with pytest.raises(Killed):
        work(lab_of(), killer(3))
    path = next(tmp_path.glob("checkpoints/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-2])
    damaged = lab_of()
    assert work(damaged, lambda: None) == [0, 1, 2, 3]
    assert "cannot be read" in damaged.notes[0]


@pytest.mark.usefixtures("eager")
def test_a_loop_that_goes_on_says_from_where(lab_of: Callable[..., Session]) -> None:
    def work(lab: Any, tick: Callable[[], None]) -> list[int]:
        return [step for step in lab.steps(5, state={}, name="climb") if tick() is None]

    with pytest.raises(Killed):
        work(lab_of(), killer(4))
    lab = lab_of()
    assert work(lab, lambda: None) == [3, 4]
    assert lab.notes == ["The loop 'climb' goes on from step 3 of 5."]


# Refusals


@pytest.mark.parametrize(
    ("total", "state", "message"),
    [
        (-1, None, "takes 0 or more steps, not -1"),
        (2.5, None, "takes a whole number of steps, not 2.5"),
        (3, {"seen": set()}, r"cannot save state\['seen'\]: it is of type set"),
        (3, Walker(np.zeros(2), {1}), r"cannot save state\['rng'\]: it is of type set"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    total: Any, state: Any, message: str, lab_of: Callable[..., Session]
) -> None:
    for lab in (lab_of(), Notebook(Empty(), Trials([CONDITION], (0,)))):
        with pytest.raises(UsageError, match=message):
            lab.steps(total, state=state)


def test_a_curve_never_goes_back(lab_of: Callable[..., Session]) -> None:
    lab = lab_of()
    lab.log(trial_of(0), 0, height=1.0)
    for step in lab.steps(2):
        lab.log(trial_of(0), 1 + step, height=1.0)
    for _ in lab.steps(1):
        with pytest.raises(
            UsageError, match="seed 0, curve 'height': step 2 cannot come after step 2"
        ):
            lab.log(trial_of(0), 2, height=1.0)
    with pytest.raises(UsageError, match="curve 'height'"):
        lab.log(trial_of(1), 2.5, height=1.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="curve 'height'"):
        lab.log(trial_of(1), 2, height="high")  # type: ignore[arg-type]
    lab.curve(trial_of(0), "height", [1], [1.0])
    lab.record(trial_of(0), answer=1)
    lab.record(trial_of(1), answer=1)
    with pytest.raises(
        UsageError, match=r"'height' was given to lab\.curve and to lab\.log"
    ):
        lab.records()


@pytest.mark.parametrize("amount", [0, -3, 2.5, True, "many"])
def test_a_budget_is_a_whole_number(
    amount: Any, lab_of: Callable[..., Session]
) -> None:
    assert lab_of().budget(7) == 7
    with pytest.raises(
        UsageError, match=r"lab\.budget takes a whole number of 1 or more"
    ):
        lab_of().budget(amount)


# What it costs, and how soon it stops


def test_a_step_costs_less_than_a_microsecond(lab_of: Callable[..., Session]) -> None:
    def seconds(steps: Iterator[int]) -> float:
        began = time.perf_counter()
        for _ in steps:
            pass
        return time.perf_counter() - began

    many = 200_000
    lab = lab_of()
    assert (
        min(
            seconds(lab.steps(many, state={})) - seconds(iter(range(many)))
            for _ in range(5)
        )
        < 1e-6 * many
    )


def test_nothing_is_written_before_a_save_is_due(
    lab_of: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of short loops leave a file now and then."""
    monkeypatch.setattr(loop_files, "MOST_BYTES", 16_000)
    written: list[Path] = []
    write = atomic.write_bytes

    def watched(path: Path, content: bytes, **options: Any) -> None:
        written.append(path)
        write(path, content, **options)

    monkeypatch.setattr(atomic, "write_bytes", watched)
    lab = lab_of()
    for _ in range(100):
        walk = walker(lab, 0)
        for _ in lab.steps(2, state=walk):
            walk.go()
    assert written == []
    walk.place = np.zeros(1_000)
    for _ in range(4):
        for _ in lab.steps(1, state=walk):
            pass
    assert len(written) == 1  # they took much memory
    monkeypatch.setattr(loop_files, "MOST_BYTES", 1e9)
    monkeypatch.setattr(loop_files, "MOST_LOOPS", 10)
    for _ in range(15):
        for _ in lab.steps(1, state={}):
            pass
    assert len(written) == 2  # they were many


def test_a_request_to_stop_is_seen_between_two_steps_and_saves(
    lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    lab = lab_of()
    walk, taken = walker(lab, 0), 0
    for _ in lab.steps(4, state=walk):
        walk.go()

    def go_on() -> None:
        nonlocal taken
        for step in lab.steps(1_000_000, state=walk):
            walk.go()
            taken = step + 1
            if step == 10:
                lab._stop.request()

    began = time.perf_counter()
    with pytest.raises(
        Interrupted, match=r"Stopped in loop 2 at step [\d,]+ of 1,000,000; it goes on"
    ):
        go_on()
    assert time.perf_counter() - began < 2
    place = walk.place
    again = lab_of()
    walk = walker(again, 0)
    assert list(again.steps(4, state=walk)) == []
    assert next(again.steps(1_000_000, state=walk)) == taken
    assert walk.place.tobytes() == place.tobytes()


def test_a_loop_shows_how_far_it_is(
    lab_of: Callable[..., Session], tmp_path: Path
) -> None:
    lab = lab_of()
    for _ in lab.steps(1_000, state={}):
        pass
    progress = reading.read(next(tmp_path.glob("progress/*.json")), Progress)
    assert progress is not None
    assert (progress.step, progress.steps, progress.replicas) == (1, 1_000, 1)
    assert progress.rate > 0
    assert not progress.may_end_early


@pytest.mark.parametrize("ends_early", [True, False])
def test_a_training_shows_whether_a_rule_may_end_it(
    lab_of: Callable[..., Session], tmp_path: Path, ends_early: bool
) -> None:
    import torch
    from torch import nn

    from nablab.training import Recipe, Supervised, Threshold

    x = torch.linspace(-1, 1, 8)[:, None]
    lab = lab_of()
    lab.train(
        Supervised(lambda: nn.Linear(1, 1)),
        (x, x**2),
        Recipe(steps=20, stop=[Threshold(1e-30)] if ends_early else []),
        seeds=[lab.seed(trial_of(seed), "weights") for seed in (0, 1)],
    )
    progress = reading.read(next(tmp_path.glob("progress/*.json")), Progress)
    assert progress is not None
    assert progress.steps == 20
    assert progress.may_end_early == ends_early


# Two experiments, in processes of their own

ROSENBLATT = ("run", "rosenblatt", "dimensions=3,5", "steps=800", "--seeds", "2")
SLOWER = 0.0005  # seconds a step: long enough to be hit in the middle on any machine


@pytest.fixture
def _learners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(LEARNERS))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The trials of the perceptron when nothing disturbs it."""
    settings: dict[str, Any] = {"dimensions": (3, 5), "steps": 800, "pause": SLOWER}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NABLAB_EXPERIMENTS", str(LEARNERS))
        done = nablab.run(
            "rosenblatt",
            seeds=2,
            jobs=1,
            store=tmp_path_factory.mktemp("reference"),
            **settings,
        )
    return trial_bytes(done.folder.path)


@pytest.mark.usefixtures("_learners")
def test_kill_9_in_the_middle_of_a_loop(
    tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    words = (*ROSENBLATT, f"pause={SLOWER}", "--jobs", "1")
    process = start(*words, cwd=tmp_path)
    checkpoint = wait_for(
        tmp_path, "runs/rosenblatt/*/checkpoints/*.safetensors", process
    )
    process.kill()
    process.communicate()
    folder = checkpoint.parent.parent
    assert read_state(RunFolder(folder)) == "crashed"
    assert nablab_here(*words).returncode == 0
    assert trial_bytes(folder) == reference
    assert any(
        "goes on from step" in note for note in open_run(str(folder)).view().notes
    )
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.usefixtures("_learners")
@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_saves_within_two_seconds_and_the_run_goes_on(
    jobs: str, tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    words = (*ROSENBLATT, f"pause={SLOWER}", "--jobs", jobs)
    # saved by the request to stop alone
    process = start(*words, cwd=tmp_path, checkpoint_seconds=3_600)
    progress = wait_for(tmp_path, "runs/rosenblatt/*/progress/*.json", process)
    assert not list(progress.parents[1].glob("checkpoints/*.safetensors"))
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    folder = progress.parent.parent
    while not list(folder.glob("checkpoints/*.safetensors")):
        assert time.monotonic() - asked < 2
        time.sleep(0.01)
    text, _ = process.communicate(timeout=180)
    assert process.returncode == 130, text
    assert "finishing the step" in text
    assert "Traceback" not in text
    assert read_state(RunFolder(folder)) == "interrupted"
    assert nablab_here(*words).returncode == 0
    assert trial_bytes(folder) == reference


@pytest.mark.usefixtures("_learners")
def test_a_second_ctrl_c_ends_a_long_step_and_keeps_the_trials_that_were_done(
    tmp_path: Path, nablab_here: Nablab
) -> None:
    words = ("run", "rosenblatt", "dimensions=3,5", "steps=1", "pause=4", "--seeds=1")
    process = start(*words, "--jobs=1", cwd=tmp_path)
    first = wait_for(tmp_path, "runs/rosenblatt/*/trials/*/trial.json", process)
    kept, changed = first.read_bytes(), first.stat().st_mtime_ns
    time.sleep(0.5)  # in the step of the other condition
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=180)
    assert time.monotonic() - asked < 3
    assert process.returncode == 130, text
    assert "Ctrl-C again ends at once" in text
    assert "Stopped at once. What was done is kept" in text
    assert "Traceback" not in text
    folder = first.parents[2]
    assert read_state(RunFolder(folder)) == "interrupted"
    assert list(folder.glob("trials/*/trial.json")) == [first]
    assert nablab_here(*words).returncode == 0
    assert len(list(folder.glob("trials/*/trial.json"))) == 2
    assert (first.read_bytes(), first.stat().st_mtime_ns) == (kept, changed)


@pytest.mark.slow  # starting workers takes seconds
@pytest.mark.usefixtures("_learners")
def test_two_jobs_give_the_same_bytes(
    tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    assert nablab_here(*ROSENBLATT, f"pause={SLOWER}", "--jobs", "2").returncode == 0
    assert trial_bytes(next(tmp_path.glob("runs/rosenblatt/*"))) == reference


@pytest.mark.slow
@pytest.mark.usefixtures("_learners")
def test_a_grid_search_gives_the_same_bytes_with_one_job_and_two(
    tmp_path: Path, nablab_here: Nablab
) -> None:
    words = ("run", "fold-search", "--preset", "quick")
    for jobs in ("1", "2"):
        assert nablab_here(*words, "--jobs", jobs, "--store", jobs).returncode == 0
    one, two = (
        trial_bytes(next(tmp_path.glob(f"{jobs}/fold-search/*"))) for jobs in ("1", "2")
    )
    assert len(one) == 8
    assert one == two


NO_TORCH = """
import sys
from nablab import catalogue
from nablab.contract import Trials
from nablab.lab.loop_files import Loop
from nablab.lab.notebook import Notebook
from nablab.lab.rehearsal import Rehearsal

experiment = catalogue.find("rosenblatt")(dimensions=(3,), steps=500)
trials = Trials(experiment.conditions()[:1], [0])
notebook = Notebook(experiment, trials)
experiment.run(trials, notebook)
assert notebook.records()[0].scalars["mistakes_over_bound"] <= 1
rehearsal = Rehearsal(experiment, trials, device="cpu", replicas="auto")
assert rehearsal.rehearse().steps == 500
loop = Loop(0, 5, "", {"rng": notebook.rng(trials[0], "loop")})
loop.go_on(loop.mark(3, done=False, following=1))
assert "numpy" in sys.modules
assert "torch" not in sys.modules, "torch was imported"
"""


def test_a_loop_with_numpy_imports_no_torch() -> None:
    environment = {**os.environ, "NABLAB_EXPERIMENTS": str(LEARNERS)}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
