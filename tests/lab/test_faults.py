"""Faults, done for real: kill -9, Ctrl-C, a full disk, two processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nablab import open_run
from nablab.lab.status import read_state
from nablab.lab.store import RunFolder
from tests.conftest import Nablab
from tests.lab.disks import small_disk
from tests.lab.test_runner import trial_bytes

# Long enough to be hit in the middle on any machine: the sequential engine takes about
# 0.3 ms a step.
LONG = (
    "run",
    "toy",
    "steps=1_500",
    "widths=3,5",
    "--seeds",
    "2",
    "--replicas",
    "sequential",
)


def start(
    *words: str, cwd: Path, checkpoint_seconds: float = 0.2
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nablab", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "NABLAB_CHECKPOINT_SECONDS": str(checkpoint_seconds)},
        # so that a signal can be sent to it and its workers as a terminal does
        start_new_session=True,
    )


def wait_for(root: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline = time.time() + 180  # a busy machine takes a minute to start
    while time.time() < deadline:
        found = sorted(root.glob(pattern))
        if found:
            return found[0]
        if process.poll() is not None:
            raise AssertionError(f"the run ended early:\n{process.communicate()[0]}")
        time.sleep(0.01)
    raise AssertionError(f"{pattern} never came")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The trials of the long run when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("reference")
    environment = {
        **os.environ,
        "NABLAB_EXPERIMENTS": str(Path(__file__).parents[1] / "toys"),
    }
    subprocess.run(
        [sys.executable, "-m", "nablab", *LONG], check=True, cwd=folder, env=environment
    )
    return trial_bytes(next(folder.glob("runs/toy/*")))


def test_kill_9_in_the_middle_of_a_trial(
    tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    for _ in range(2):  # twice: a resumed run may be killed, too
        process = start(*LONG, cwd=tmp_path)
        checkpoint = wait_for(tmp_path, "runs/toy/*/checkpoints/*.safetensors", process)
        process.kill()
        process.communicate()
        folder = checkpoint.parent.parent
        assert read_state(RunFolder(folder)) == "crashed"
        assert "crashed" in nablab_here("runs").stdout
    done = nablab_here(*LONG)
    assert done.returncode == 0, done.stderr
    assert trial_bytes(folder) == reference
    assert read_state(RunFolder(folder)) == "done"
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.slow
def test_what_a_killed_process_was_writing_is_swept(
    tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    process = start(*LONG, cwd=tmp_path)
    checkpoint = wait_for(tmp_path, "runs/toy/*/checkpoints/*.safetensors", process)
    process.kill()
    process.communicate()
    folder = checkpoint.parent.parent
    trial = folder / next(iter(reference))
    trial.parent.mkdir(parents=True, exist_ok=True)
    # As a write cut short leaves them; the window is too short to be hit by a kill at
    # will.
    leftovers = [
        trial.with_name(".arrays.npz.abc.tmp"),
        checkpoint.with_name(f".{checkpoint.name}.abc.tmp"),
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    assert nablab_here(*LONG).returncode == 0
    assert trial_bytes(folder) == reference
    assert not any(path.exists() for path in leftovers)


def test_a_kill_between_the_last_trial_and_the_clean_up_leaves_no_checkpoint(
    tmp_path: Path, nablab_here: Nablab
) -> None:
    words = ("run", "toy", "widths=3", "--seeds", "1")
    assert nablab_here(*words).returncode == 0
    folder = next(tmp_path.glob("runs/toy/*"))
    trial = next(folder.glob("trials/*")).name
    checkpoint = folder / "checkpoints" / f"{trial.rpartition('-s')[0]}-0.safetensors"
    checkpoint.write_bytes(b"half")
    assert nablab_here(*words).returncode == 0
    assert not checkpoint.exists()


@pytest.mark.slow  # the same with PyTorch's engine is above
def test_kill_9_with_the_fused_engine(tmp_path: Path, nablab: Nablab) -> None:
    settings = (
        "targets=sinc",
        "trio=none",
        "networks=1-30-30-30-1",
        "steps=20_000",
        "--seeds",
        "2",
    )
    words = ("run", "deep-vs-shallow", *settings)
    undisturbed = nablab(*words, "--store", "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    process = start(*words, cwd=tmp_path)
    checkpoint = wait_for(
        tmp_path, "runs/deep-vs-shallow/*/checkpoints/*.safetensors", process
    )
    process.kill()
    process.communicate()
    done = nablab(*words)
    assert done.returncode == 0, done.stderr
    folder = checkpoint.parent.parent
    assert trial_bytes(folder) == trial_bytes(
        next(tmp_path.glob("undisturbed/deep-vs-shallow/*"))
    )
    notes = open_run(str(folder)).view().notes
    assert any("fused engine" in note for note in notes)
    assert any("goes on from step" in note for note in notes)


def test_kill_9_between_the_trials_of_a_batch(
    tmp_path: Path, nablab_here: Nablab, reference: dict[str, bytes]
) -> None:
    process = start(*LONG, cwd=tmp_path)
    first = wait_for(tmp_path, "runs/toy/*/trials/*/trial.json", process)
    process.kill()
    process.communicate()
    folder = first.parents[2]
    assert nablab_here(*LONG).returncode == 0
    assert trial_bytes(folder) == reference


@pytest.mark.parametrize(
    ("number", "jobs"),
    [
        pytest.param(signal.SIGINT, "1", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "2", marks=pytest.mark.slow),
        (signal.SIGTERM, "2"),
        pytest.param(signal.SIGHUP, "2", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_saves_and_says_how_to_go_on(
    tmp_path: Path,
    nablab_here: Nablab,
    reference: dict[str, bytes],
    number: signal.Signals,
    jobs: str,
) -> None:
    process = start(*LONG, "--jobs", jobs, cwd=tmp_path)
    progress = wait_for(tmp_path, "runs/toy/*/progress/*.json", process)
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=180)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert "finishing the step" in text
    assert "nablab run toy" in text
    folder = progress.parent.parent
    assert read_state(RunFolder(folder)) == "interrupted"
    assert list(folder.glob("checkpoints/*.safetensors"))
    assert nablab_here(*LONG).returncode == 0
    assert trial_bytes(folder) == reference


@pytest.mark.slow
def test_a_run_goes_on_when_its_reader_leaves(tmp_path: Path) -> None:
    process = start(*LONG, cwd=tmp_path)
    assert process.stdout is not None
    assert "toy" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert read_state(RunFolder(next(tmp_path.glob("runs/toy/*")))) == "done"


def test_two_processes_on_one_store_do_the_work_once(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    processes = [start(*LONG, cwd=tmp_path) for _ in range(2)]
    texts = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert trial_bytes(next(tmp_path.glob("runs/toy/*"))) == reference
    trained = [
        line for text in texts for line in text.splitlines() if "2 trials in" in line
    ]
    assert len(trained) == 2, texts  # two conditions, each trained by one of the two


def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    import psutil

    process = start(*LONG, "--jobs", "2", cwd=tmp_path)
    wait_for(tmp_path, "runs/toy/*/progress/*.json", process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_a_full_disk_stops_the_run_and_keeps_what_was_finished(
    nablab: Nablab, nablab_here: Nablab, tmp_path: Path
) -> None:
    with small_disk(megabytes=1) as disk:
        store = str(disk / "runs")
        words = ("run", "toy", "--preset", "quick", "--store", store)
        assert nablab_here(*words).returncode == 0
        before = trial_bytes(next(disk.glob("runs/toy/*")))
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler = disk / "filler"
        filler.write_bytes(b"\0" * (free - 8_192))
        full = nablab(*words, "steps=20_000")  # longer curves than what is left
        assert full.returncode == 1
        assert "No space left" in full.stderr
        assert "Traceback" not in full.stderr
        states = {
            path.name: read_state(RunFolder(path)) for path in disk.glob("runs/toy/*")
        }
        assert "running" not in states.values()
        assert not list(disk.glob("runs/toy/*/go-*"))
        filler.unlink()
        assert before == {
            k: v
            for p in disk.glob("runs/toy/*")
            for k, v in trial_bytes(p).items()
            if k in before
        }
        again = nablab_here(*words, "steps=20_000")
        assert again.returncode == 0, again.stderr


def test_an_unwritable_store_is_refused_at_once(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    done = nablab_here(
        "run", "toy", "--preset", "quick", "--store", str(tmp_path / "file" / "runs")
    )
    assert done.returncode == 1
    assert "--store" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_a_compiler_the_run_goes_on_and_says_so_once(
    nablab: Nablab, tmp_path: Path
) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    cache = str(tmp_path / "cache")
    done = nablab(
        "run", "toy", "--preset", "quick", PATH=str(empty), NABLAB_CACHE=cache, CC=""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiler") == 1, done.stdout


def test_a_store_of_a_newer_version_is_refused(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    assert nablab_here("run", "toy", "--preset", "quick").returncode == 0
    config = next(tmp_path.glob("runs/toy/*/config.json"))
    config.write_text(config.read_text().replace('"format": 1', '"format": 99'))
    for words in (
        ("run", "toy", "--preset", "quick"),
        ("report", "toy"),
        ("compare", "toy", "toy"),
    ):
        done = nablab_here(*words)
        assert done.returncode == 1
        assert "newer nablab" in done.stderr
