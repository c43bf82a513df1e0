"""Our sides: `nablab.training.fit`, and its engines alone.

There is the whole of ``fit``, its fast engine alone, and the engine that needs no
compiler.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from benchmarks.cases import LEARNING_RATE, Case
from benchmarks.peers import Absent
from nablab import training
from nablab.training import Unsupported
from nablab.training.engine import FloatArray
from nablab.training.fused import compiler

OPTIMIZER = training.Adam(learning_rate=LEARNING_RATE)

# `fit` evaluates 100 times unless told otherwise: every 200 steps of a training of
# 20,000.
EVAL_EVERY = 200


class Fit:
    """Everything that a user pays: building, the loop, the curves, the evaluations."""

    name = "nablab"

    def __init__(self, case: Case, compile_seconds: float) -> None:
        self.replicas, self.compile_seconds = case.replicas, compile_seconds
        self._case, self._data = case, case.data()

    def start(self) -> None:
        """Do nothing: each training starts afresh, within the clock."""

    def train(self, steps: int) -> FloatArray:
        """Run a whole training of ``steps`` steps."""
        result = training.fit(
            self._case.build,
            self._data,
            seeds=range(self.replicas),
            steps=steps,
            optimizer=OPTIMIZER,
            eval_every=EVAL_EVERY,
        )
        return result.train_loss.T


class EngineAlone:
    """One of the engines, without the loop around it."""

    def __init__(
        self,
        name: str,
        case: Case,
        engine: Callable[..., training.Engine],
        compile_seconds: float,
    ) -> None:
        self.name, self.replicas, self.compile_seconds = (
            name,
            case.replicas,
            compile_seconds,
        )
        self._modules: list[nn.Module] = case.modules()
        self._data: tuple[Tensor, Tensor] = case.data()
        self._make = engine
        try:
            self.start()
        except Unsupported as reason:
            raise Absent(str(reason)) from reason

    def start(self) -> None:
        """Make a new engine."""
        self._engine = self._make(
            self._modules,
            *self._data,
            loss="mse",
            optimizer=OPTIMIZER,
            per_replica_targets=False,
        )

    def train(self, steps: int) -> FloatArray:
        """Advance by ``steps`` steps."""
        return self._engine.advance(np.ones(steps), None)


@contextmanager
def fresh_kernel(repeats: int) -> Iterator[list[float]]:
    """Compile the kernel into empty caches, and give the seconds of each.

    The last cache is left for use. The list is empty if this machine cannot compile the
    kernel.
    """
    before = os.environ.get("NABLAB_CACHE")
    with tempfile.TemporaryDirectory(prefix="nablab-bench-") as folder:
        try:
            yield _compile_times(folder, repeats)
        finally:
            if before is None:
                os.environ.pop("NABLAB_CACHE")
            else:
                os.environ["NABLAB_CACHE"] = before


def _compile_times(folder: str, repeats: int) -> list[float]:
    seconds = []
    for repeat in range(repeats):
        os.environ["NABLAB_CACHE"] = str(Path(folder, str(repeat)))
        began = time.perf_counter()
        try:
            compiler.load("float")
        except Unsupported:
            return []
        seconds.append(time.perf_counter() - began)
    return seconds
