"""Learners of every kind in the laboratory: killed, stopped, shared between processes,
foretold.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import nablab
from nablab import catalogue
from nablab.contract import Trials
from nablab.lab.runner import Plan
from nablab.runs import rehearse
from tests.conftest import Nablab
from tests.lab.test_faults import start, wait_for
from tests.lab.test_runner import trial_bytes

LEARNERS = Path(__file__).parents[1] / "learners"
# Long enough to be hit in the middle: a second or more of training for each group of
# trials.
LONG = {
    "beta-vae": ("epochs=60",),
    "ring-gan": ("steps=300",),
    "reading": ("epochs=40",),
}
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _learners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(LEARNERS))


def words_of(name: str) -> tuple[str, ...]:
    return ("run", name, "--preset", "quick", *LONG[name])


def folder_of(root: Path, name: str) -> Path:
    return next(root.glob(f"{name}/*"))


def undisturbed(nablab_here: Nablab, name: str, *options: str) -> dict[str, bytes]:
    """The trials of the long run when nothing disturbs it."""
    done = nablab_here(*words_of(name), "--store", "undisturbed", "--fresh", *options)
    assert done.returncode == 0, done.stderr
    return trial_bytes(folder_of(Path("undisturbed"), name))


@pytest.mark.slow  # in this process interrupts are tests/training/test_learners.py's
@pytest.mark.parametrize("name", LONG)
def test_kill_9_in_training_and_resumed(
    name: str, nablab_here: Nablab, tmp_path: Path
) -> None:
    process = start(*words_of(name), "--jobs", "1", cwd=tmp_path)
    checkpoint = wait_for(tmp_path, f"runs/{name}/*/checkpoints/*.safetensors", process)
    process.kill()
    process.communicate()
    done = nablab_here(*words_of(name))
    assert done.returncode == 0, done.stderr
    folder = checkpoint.parent.parent
    assert any(
        "goes on from step" in note
        for note in nablab.open_run(str(folder)).view().notes
    )
    assert not list(folder.glob("checkpoints/*"))
    assert trial_bytes(folder) == undisturbed(nablab_here, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_stops_within_two_seconds(
    name: str, nablab_here: Nablab, tmp_path: Path
) -> None:
    process = start(*words_of(name), "--jobs", "1", cwd=tmp_path)
    wait_for(tmp_path, f"runs/{name}/*/checkpoints/*.safetensors", process)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 2, text
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert nablab_here(*words_of(name)).returncode == 0
    assert trial_bytes(folder_of(tmp_path / "runs", name)) == undisturbed(
        nablab_here, name
    )


@pytest.mark.slow  # in the fast tests this is test_loops'
@pytest.mark.parametrize("name", ["ring-gan", "reading"])
def test_two_processes_give_the_bytes_of_one(name: str, tmp_path: Path) -> None:
    runs = [
        nablab.run(name, preset="quick", jobs=jobs, store=tmp_path / str(jobs))
        for jobs in (1, 2)
    ]
    assert trial_bytes(runs[0].folder.path) == trial_bytes(runs[1].folder.path)


def test_a_trial_that_is_lost_is_trained_again_with_its_whole_batch(
    nablab_here: Nablab,
) -> None:
    words = ("run", "beta-vae", "--preset", "quick")
    assert nablab_here(*words).returncode == 0
    folder = folder_of(Path("runs"), "beta-vae")
    before = nablab.open_run(str(folder)).scalars
    shutil.rmtree(next(folder.glob("trials/*-s0")))
    done = nablab_here(*words)
    assert done.returncode == 0, done.stderr
    assert "2 trials in" in done.stdout  # its seed, at both levels
    after = nablab.open_run(str(folder)).scalars
    # Two trials are trained otherwise than the four before, and round otherwise.
    assert np.allclose(after["value"], before["value"], rtol=1e-4)


def test_levels_that_share_a_batch_are_trials_of_their_own() -> None:
    experiment = catalogue.find("beta-vae")(betas=(1.0, 2.0, 4.0))
    (group,) = experiment.groups()
    trials = Trials(group, [0, 1])
    assert dict(trials.condition) == {"data": "digits"}
    assert trials.each("beta") == (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
    assert [trial.seed for trial in trials] == [0, 1] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_dry_run_foretells_the_time(name: str, tmp_path: Path) -> None:
    settings = dict(word.split("=") for word in LONG[name])
    experiment = catalogue.find(name)(
        **{key: 2 * int(value) for key, value in settings.items()}
    )
    plan = Plan(experiment, "quick", seeds=2)
    rehearse(plan)  # warms up
    foretold = sum(estimate.seconds for estimate in rehearse(plan))
    options = {key: 2 * int(value) for key, value in settings.items()}
    run = nablab.run(name, preset="quick", jobs=1, store=tmp_path, **options)
    taken = run.view().environment["seconds"]
    print(f"{name}: {foretold:.2f} s foretold, {taken:.2f} s taken")
    assert taken / 1.5 < foretold < taken * 1.5
