"""An interrupted training ends with the same bytes as an uninterrupted one; a bad file
starts it over.
"""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nablab import training
from nablab.errors import Interrupted, StoreError
from nablab.training import (
    Adam,
    Checkpoint,
    EarlyStopping,
    Plateau,
    Probe,
    checkpoints,
    choose,
    fit,
)
from nablab.training.history import History


def dense():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))


def noisy():
    return nn.Sequential(
        nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1)
    )


class Normed(nn.Module):
    """What the fused engine cannot serve and the batched one can."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)
        )

    def forward(self, x):
        return self.layers(x)


class Summing(Probe):
    """A probe with findings of its own."""

    every = 3

    def __init__(self):
        self.total = torch.zeros(3, dtype=torch.float64)

    def on_step_end(self, context):
        self.total = self.total * 0.9 + torch.from_numpy(context.losses[:, -1].copy())

    def state(self):
        return {"total": self.total}

    def load_state(self, state):
        self.total = state["total"]


def options(**changes):
    draw = torch.Generator().manual_seed(0)
    x, far = torch.randn(14, 2, generator=draw), torch.randn(4, 2, generator=draw)
    found = {
        "data": (x, torch.sin(x.sum(1, keepdim=True))),
        "seeds": [4, 5, 6],
        "steps": 60,
        "batch_size": 4,
        "eval_every": 7,
        "optimizer": Adam([0.02, 1e25, 0.05], weight_decay=0.01),
        "schedule": training.Cosine(),
        "held_out": {"far": (far, torch.zeros(4, 1))},
        "stop": [EarlyStopping("far_loss", patience=4)],
        "converged": Plateau(20, 0.1),
    }
    return found | changes


def ask_after(calls):
    """A ``should_stop`` that says yes at its n-th call."""
    left = iter(range(calls - 1, -1, -1))
    return lambda: next(left, 1) == 0


def same_bytes(one, other):
    for field in dataclasses.fields(one):
        if field.name == "seconds":
            continue  # the clock's, not the computation's
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tobytes() == b.tobytes(), field.name
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes(), (
                    field.name,
                    key,
                )
        elif not callable(a):
            assert a == b, field.name


@pytest.mark.parametrize(
    ("build", "engine", "batch_size"),
    [
        (dense, "fused", 4),
        (dense, "fused", None),
        (Normed, "batched", 4),
        (noisy, "sequential", 5),
        (dense, "sequential", None),
    ],
)
def test_interrupted_at_any_chunk_the_bytes_are_the_same(
    build, engine, batch_size, tmp_path
):
    task = options(
        batch_size=batch_size,
        replicas="sequential" if engine == "sequential" else "auto",
    )
    whole_probe, notes = Summing(), []
    whole = fit(build, **task, probes=[whole_probe])
    assert whole.engine == engine
    assert "diverged" in whole.stop_reason

    path = tmp_path / "fit.safetensors"
    for calls in [1, 2, 1, 3, 10**6]:
        probe = Summing()
        arguments = {
            "probes": [probe],
            "checkpoint": Checkpoint(path),
            "should_stop": ask_after(calls),
        }
        if calls == 10**6:
            resumed = fit(build, **task, **arguments, on_note=notes.append)
            continue
        with pytest.raises(Interrupted, match="the same call goes on from there"):
            fit(build, **task, **arguments, on_note=notes.append)
    assert sum("goes on from step" in note for note in notes) == 4
    same_bytes(resumed, whole)
    assert checkpoints.digest(probe.state()) == checkpoints.digest(whole_probe.state())


def interrupted(path, **changes):
    """Leave a checkpoint behind."""
    with pytest.raises(Interrupted):
        fit(
            dense,
            **options(**changes),
            checkpoint=Checkpoint(path),
            should_stop=ask_after(4),
        )
    return path


def test_seconds_go_on_where_the_checkpoint_left_off(tmp_path):
    path = interrupted(tmp_path / "fit.safetensors")
    kept = load_file(path)["history/evaluation_seconds"].tolist()
    resumed = fit(dense, **options(), checkpoint=Checkpoint(path))
    assert 1 < len(kept) < len(resumed.seconds)
    assert resumed.seconds[: len(kept)].tolist() == kept
    assert resumed.seconds[0] == 0
    assert (np.diff(resumed.seconds) > 0).all()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"", "cannot be read"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "checksum"),
        (
            lambda content: content.replace(b'\\"format\\": 1', b'\\"format\\": 9'),
            "format 9",
        ),
        (lambda content: content.replace(b'"nablab"', b'"someon"'), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_training_starts_over(
    damage, reason, tmp_path
):
    path = interrupted(tmp_path / "fit.safetensors")
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    notes = []
    result = fit(dense, **options(), checkpoint=Checkpoint(path), on_note=notes.append)
    assert any(reason in note and "starts from step 0" in note for note in notes), notes
    same_bytes(result, fit(dense, **options()))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seeds": [4, 5, 7]}, "seeds"),
        ({"steps": 61}, "steps"),
        ({"optimizer": Adam(0.02)}, "optimizer"),
        ({"schedule": training.Constant()}, "schedule"),
        ({"batch_size": 5}, "batch size"),
        ({"eval_every": 8}, "evaluations"),
        ({"stop": []}, "stopping rules"),
        ({"replicas": "sequential"}, "replicas"),
        ({"data": (torch.ones(14, 2), torch.ones(14, 1))}, "data"),
    ],
)
def test_the_checkpoint_of_another_training_is_not_used(changes, key, tmp_path):
    path, notes = interrupted(tmp_path / "fit.safetensors"), []
    result = fit(
        dense, **options(**changes), checkpoint=Checkpoint(path), on_note=notes.append
    )
    assert any(f"these differ: {key}" in note for note in notes), notes
    same_bytes(result, fit(dense, **options(**changes)))


def test_another_architecture_is_not_used(tmp_path):
    path, notes = interrupted(tmp_path / "fit.safetensors"), []
    fit(Normed, **options(), checkpoint=Checkpoint(path), on_note=notes.append)
    assert any("architecture" in note for note in notes)


def without_fused(*arguments, **keywords):
    raise training.Unsupported("there is no compiler today")


def test_the_engine_of_the_checkpoint_goes_on(tmp_path, monkeypatch):
    """Written by the batched engine for want of a compiler, resumed where there is one."""
    path = tmp_path / "fit.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(choose, "FusedEngine", without_fused)
        expected = fit(dense, **options())
        interrupted(path)
    result = fit(dense, **options(), checkpoint=Checkpoint(path))
    assert result.engine == "batched"
    same_bytes(result, expected)


def test_without_the_engine_of_the_checkpoint_training_starts_over(
    tmp_path, monkeypatch
):
    path, notes = interrupted(tmp_path / "fit.safetensors"), []
    monkeypatch.setattr(choose, "FusedEngine", without_fused)
    result = fit(dense, **options(), checkpoint=Checkpoint(path), on_note=notes.append)
    assert result.engine == "batched"
    assert any("engine (fused) cannot serve here" in note for note in notes)
    assert any("not fused: there is no compiler today" in note for note in notes)


PROGRAM = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_checkpoints import noisy, options
from nablab.training import Checkpoint, fit
torch.set_num_threads(1)
task = options(steps=900, eval_every=100, stop=[])
result = fit(noisy, **task, checkpoint=Checkpoint(sys.argv[2], every_seconds=0.0))
print(result.train_loss.tobytes().hex()[-400:], result.final.tobytes().hex())
"""


@pytest.mark.slow
def test_killed_without_warning_it_resumes_to_the_same_bytes(tmp_path):
    path = tmp_path / "fit.safetensors"
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(path)]
    for _ in range(2):
        size = path.stat().st_mtime_ns if path.exists() else None
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_mtime_ns == size:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = fit(noisy, **options(steps=900, eval_every=100, stop=[]))
    assert resumed.split() == [
        result.train_loss.tobytes().hex()[-400:],
        result.final.tobytes().hex(),
    ]


def test_checkpoints_are_saved_in_time_and_kept_for_the_caller(tmp_path):
    path = tmp_path / "fit.safetensors"
    fit(dense, **options(), checkpoint=Checkpoint(path, every_seconds=3600))
    assert not path.exists()
    whole = fit(dense, **options(), checkpoint=Checkpoint(path, every_seconds=0))
    assert path.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.safetensors"]
    same_bytes(fit(dense, **options(), checkpoint=Checkpoint(path)), whole)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        checkpoints.save(
            tmp_path / "file" / "fit.safetensors", {"a": torch.zeros(1)}, {}
        )


def test_save_and_load_are_inverse(tmp_path):
    tensors = {
        "a": torch.randn(3, 2).T,
        "empty": torch.zeros(3, 0, dtype=torch.int64),
        "flag": torch.tensor(True),
        "nan": torch.tensor([float("nan"), float("inf")], dtype=torch.float64),
    }
    checkpoints.save(
        tmp_path / "x", tensors, {"fingerprint": {"seeds": [1, 2**62]}, "step": 3}
    )
    found, facts = checkpoints.load(tmp_path / "x", {"seeds": [1, 2**62]})
    assert facts["step"] == 3
    assert checkpoints.digest(found) == checkpoints.digest(tensors)


def test_an_evaluation_that_ended_a_replica_is_remembered_as_it_was():
    """Converged, then ended by a probe; infinite at an evaluation: both survive a
    checkpoint.
    """

    def record():
        return History(
            3, 40, (EarlyStopping("train_loss", patience=9),), Plateau(10, 0.1)
        )

    def parameters():
        return {"w": torch.arange(3.0)}

    before, after = record(), record()
    for values in (
        [1.0, 1.0, 1.0],
        [1.0, 0.5, 1.0],
        [1.0, 0.2, np.inf],
        [1.0, 0.1, 1.0],
    ):
        before.add_evaluation({"train_loss": np.array(values)}, parameters)
        if before.step == 20:
            before.end(0, "probe", before.step)
        before.add_losses(np.ones((10, 3)))
    assert before.stop_reason == ["probe", "budget", "diverged"]
    assert before.converged.tolist() == [True, False, False]

    tensors, facts = before.state()
    after.load_state(tensors, facts, parameters)
    again, facts_again = after.state()
    assert facts_again == facts
    for name, tensor in tensors.items():
        assert tensor.numpy().tobytes() == again[name].numpy().tobytes(), name
