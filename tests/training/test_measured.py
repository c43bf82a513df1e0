"""Which engine is faster is measured once, kept, and measured anew when what was kept
is of no use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from nablab import data
from nablab.training import choose, fit, measured
from nablab.training.inputs import Inputs


class Scripted:
    """An engine whose step takes a given time."""

    def __init__(self, seconds):
        self.seconds, self.steps = seconds, 0

    def advance(self, rates, batches):
        time.sleep(self.seconds)
        self.steps += len(rates)
        return np.zeros((len(rates), 1))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "SECONDS", 0.004)
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sides():
    """Two engines, of 1 and 4 ms a step, and how often each was made."""
    made = []

    def maker(name, seconds):
        def make():
            made.append(name)
            return Scripted(seconds), torch.zeros(2, 1, 4, dtype=torch.int64)

        return make

    return {"fast": maker("fast", 0.001), "slow": maker("slow", 0.004)}, made


def the_file():
    [path] = measured.folder().glob("*.json")
    return path


def test_the_answer_is_the_time_of_a_step(sides):
    found = measured.milliseconds("a network", sides[0])
    assert 1 <= found["fast"] < found["slow"]
    assert found["slow"] >= 4


def test_it_is_measured_once(sides):
    engines, made = sides
    first = measured.milliseconds("a network", engines)
    assert measured.milliseconds("a network", engines) == first
    assert made == ["fast", "slow"]
    measured.milliseconds("another network", engines)
    assert made == ["fast", "slow"] * 2


def test_threads_and_version_are_part_of_the_question(sides, monkeypatch):
    engines, made = sides
    measured.milliseconds("a network", engines)
    monkeypatch.setattr(torch, "__version__", "0.0")
    measured.milliseconds("a network", engines)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    measured.milliseconds("a network", engines)
    assert made == ["fast", "slow"] * 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"milliseconds": {"fast": 1}}',
        b'{"milliseconds": {"fast": 1, "slow": -1}}',
        b'{"milliseconds": {"fast": 1, "slow": "x"}}',
        b'{"milliseconds": {"fast": 1, "slow": NaN}}',
    ],
)
def test_an_unreadable_answer_is_measured_anew_and_replaced(sides, content):
    engines, made = sides
    measured.milliseconds("a network", engines)
    the_file().write_bytes(content)
    found = measured.milliseconds("a network", engines)
    assert made == ["fast", "slow"] * 2
    assert json.loads(the_file().read_text())["milliseconds"] == found


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    sides, monkeypatch, tmp_path
):
    """A file where the folder should be: also the superuser cannot write below it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "file"))
    engines, made = sides
    for _ in range(2):
        assert measured.milliseconds("a network", engines)["fast"] >= 1
    assert made == ["fast", "slow"] * 2


def test_two_processes_at_once_leave_one_whole_answer(tmp_path):
    lines = (
        "from nablab.training import measured",
        "for _ in range(50):",
        "    measured._write(measured.folder() / 'x.json', {'milliseconds': {'a': 1.0, "
        "'b': 2.0}})",
        "    assert measured._read(measured.folder() / 'x.json', {'a', 'b'}) == {'a': "
        "1.0, 'b': 2.0}",
    )
    environment = {**os.environ, "NABLAB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", "\n".join(lines)]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == ["x.json"]


def wide():
    """A convolution, so that no engine for dense networks serves; 73,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 500),
        nn.Linear(500, 3),
    )


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))


def chosen(monkeypatch, times, build, **options):
    """The engine and the notes where bfloat16 counts as fast; the options are those of
    `fit`.
    """
    asked = []

    def answer(key, engines):
        asked.append(key)
        # both can be made and take a step on their batches
        for make in engines.values():
            engine, batches = make()
            assert engine.advance(np.ones(1), batches[:1]).shape == (1, 1)
        return times

    monkeypatch.setattr(measured, "milliseconds", answer)
    monkeypatch.setattr(
        "nablab.training.inputs.multiplies_bfloat16_fast", lambda device: True
    )
    notes: list[str] = []
    x = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    settings = {"precision": "auto", "batch_size": 16, "seeds": [1, 2], **options}
    result = fit(
        build,
        (x, torch.arange(40) % 3),
        steps=2,
        loss="cross_entropy",
        prepare=data.Normalize((0.5,), (0.5,)),
        on_note=notes.append,
        **settings,
    )
    return result.engine, " ".join(notes), asked


@pytest.mark.parametrize("batch_size", [16, pytest.param(None, marks=pytest.mark.slow)])
def test_the_faster_engine_trains_and_the_times_are_said(monkeypatch, batch_size):
    slow = {"fused-images": 4.4, "sequential": 3.1}
    engine, note, asked = chosen(monkeypatch, slow, wide, batch_size=batch_size)
    assert engine == "sequential"
    assert "not fused-images: measured: 4.4 against 3.1 ms a step" in note
    assert len(asked) == 1
    fast = {"fused-images": 3.1, "sequential": 4.4}
    engine, note, _ = chosen(monkeypatch, fast, wide, batch_size=batch_size)
    assert engine == "fused-images"
    assert "fused-images engine (measured: 3.1 against 4.4 ms a step" in note


@pytest.mark.slow
def test_what_is_obvious_is_not_measured(monkeypatch):
    slow = {"fused-images": 4.4, "sequential": 3.1}
    for build, options, engine in (
        (small, {}, "fused-images"),
        (wide, {"precision": "float32"}, "fused-images"),
        (wide, {"precision": "bfloat16"}, "sequential"),
        (wide, {"replicas": "sequential"}, "sequential"),
        (wide, {"replicas": "batched"}, "fused-images"),
    ):
        found, _, asked = chosen(monkeypatch, slow, build, **options)
        assert (found, asked) == (engine, []), options


@pytest.mark.slow
def test_measuring_leaves_the_replicas_as_they_were(monkeypatch):
    """`_one_replica` copies: the network that trains starts from its own weights."""
    torch.manual_seed(0)
    modules = [wide()]
    before = [p.detach().clone() for p in modules[0].parameters()]
    request = choose.Request(
        modules=modules,
        x=torch.rand(40, 1, 8, 8),
        y=torch.arange(40) % 3,
        loss="cross_entropy",
        optimizer=choose_adam(),
        per_replica_targets=False,
        seeds=[1],
        batch_size=16,
        inputs=Inputs(bfloat16=True, automatic=True),
    )
    choose.choose(choose.ORDERS["auto"], request, lambda note: None)
    assert all(
        torch.equal(p, b) for p, b in zip(modules[0].parameters(), before, strict=True)
    )


def choose_adam():
    from nablab.training import Adam

    return Adam()
