"""A machine that is not idle.

Every engine and the plain PyTorch loop are timed, alone and beside busy processes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from benchmarks.cases import ALL, Case
from benchmarks.image_cases import CLASSES, lenet, perceptron
from benchmarks.peers.laboratory import OPTIMIZER
from benchmarks.peers.notebook import PlainLoop
from benchmarks.table import Findings, Goal, Table, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import threads, training
from nablab.training import Unsupported
from nablab.training.fused.bfloat16 import FusedBfloat16Engine
from nablab.training.fused.images import FusedImageEngine
from nablab.training.inputs import Inputs

AT_LEAST, AIM = "3x", "2.2x"
REPLICAS, BATCH = 4, 64
SPINNING = "while True: pass"


@contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Start this number of processes that each keep a core busy."""
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", SPINNING]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(
    *, repeats: int, turn_seconds: float, say: Callable[[str], None]
) -> Findings:
    """Time the same work on a quiet and on a busy machine, in turns."""
    rows: list[Sequence[str]] = []
    goals, notes = [], []
    for name, make in _sides().items():
        say(name)
        try:
            work = make()
        except Unsupported as reason:
            notes.append(f"No {name}: {reason}")
            continue
        idle, busy = _race(work, repeats, turn_seconds)
        ratio = Spread.of([slow / fast for slow, fast in zip(busy, idle, strict=True)])
        rows.append(
            [
                name,
                *(
                    spread_text(Spread.of([1e6 * s for s in part]))
                    for part in (idle, busy)
                ),
            ]
        )
        rows[-1] = [*rows[-1], spread_text(ratio, "x")]
        if not name.startswith("PyTorch"):
            goals.append(
                Goal(
                    f"busy against idle, {name}", spread_text(ratio, "x"), AT_LEAST, AIM
                )
            )
    notes += [
        f"Busy: beside {threads.cores()} processes that each keep a core busy, one for "
        "each core.",
        f"A step is one of all replicas: {REPLICAS} of each engine, 1 of the plain "
        "loop.",
    ]
    columns = ("side", "idle, µs a step", "busy, µs a step", "busy / idle")
    return Findings([Table("A busy machine", columns, rows, notes)], goals)


def _race(
    work: Callable[[int], object], repeats: int, turn_seconds: float
) -> tuple[list[float], list[float]]:
    """Time a step, idle and busy, once each in every round; in seconds."""
    steps = 1
    while (seconds := _seconds(work, steps)) < turn_seconds / 2:
        steps = max(2 * steps, int(steps * turn_seconds / seconds / 2))

    def busy() -> float:
        with neighbors(threads.cores()):
            return _seconds(work, steps) / steps

    found = take_turns(
        {"idle": lambda: _seconds(work, steps) / steps, "busy": busy}, repeats
    )
    return found["idle"], found["busy"]


def _seconds(work: Callable[[int], object], steps: int) -> float:
    began = time.perf_counter()
    work(steps)
    return time.perf_counter() - began


def _sides() -> dict[str, Callable[[], Callable[[int], object]]]:
    deep = next(case for case in ALL if case.name == "deep")
    return {
        "sequential": partial(_dense, training.SequentialEngine, deep),
        "batched": partial(_dense, training.BatchedEngine, deep),
        "fused": partial(_dense, training.FusedEngine, deep),
        "fused-images": partial(_images, FusedImageEngine, lenet, Inputs(), REPLICAS),
        "fused-images, one network": partial(
            _images, FusedImageEngine, lenet, Inputs(), 1
        ),
        "fused-bfloat16": partial(
            _images,
            FusedBfloat16Engine,
            partial(perceptron, 300),
            Inputs(bfloat16=True),
            REPLICAS,
        ),
        "sequential, LeNet": partial(
            _images, training.SequentialEngine, lenet, Inputs(), REPLICAS
        ),
        "PyTorch loop": partial(_loop, deep),
    }


def _dense(
    engine: Callable[..., training.Engine], case: Case
) -> Callable[[int], object]:
    modules = training.build_replicas(case.build, range(REPLICAS))
    made = engine(
        modules,
        *case.data(),
        loss="mse",
        optimizer=OPTIMIZER,
        per_replica_targets=False,
    )
    return lambda steps: made.advance(np.ones(steps), None)


def _images(
    engine: Callable[..., training.Engine],
    build: Callable[[], torch.nn.Module],
    inputs: Inputs,
    replicas: int,
) -> Callable[[int], object]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 1, 28, 28, generator=draw)
    y = torch.randint(CLASSES, (BATCH,), generator=draw)
    modules = training.build_replicas(build, range(replicas))
    made = engine(
        modules,
        x,
        y,
        loss="cross_entropy",
        optimizer=OPTIMIZER,
        per_replica_targets=False,
        inputs=inputs,
    )
    return lambda steps: made.advance(np.ones(steps), None)


def _loop(case: Case) -> Callable[[int], object]:
    loop = PlainLoop(case, fused=False)
    loop.start()
    return loop.train
