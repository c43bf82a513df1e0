"""Which of two engines is faster for a network, measured once on this machine and kept.

Between a compiled engine in float32 and PyTorch in bfloat16 the winner depends on the
layers, the batch and the processor, and no count of operations tells it. A few steps of
one replica do. The answer lies in the user's cache folder, so that the next training of
the same kind takes the same engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import platformdirs
import torch
from torch import Tensor

from nablab.errors import StoreError
from nablab.files import atomic
from nablab.threads import borrowed, give_engines
from nablab.training.engine import Engine

ROUNDS = 3  # in turns; the fastest counts, for other work on the machine only slows
LONGEST_SECONDS = 60.0  # that another process is waited for
SECONDS = 0.05  # of each engine in each round, at least one step


def milliseconds(
    key: str, engines: Mapping[str, Callable[[], tuple[Engine, Tensor]]]
) -> dict[str, float]:
    """Return milliseconds per step by engine: from the cache, or measured now.

    What is measured is put into the cache.

    Args:
        key: Everything on which the answer depends, beside this machine and PyTorch.
        engines: What makes each engine and the indices (steps, K, batch) of its
            batches; called to measure.
    """
    path = folder() / f"{_digest(key)}.json"
    known = _read(path, set(engines))
    if known is not None:
        return known
    with _alone(path.with_suffix(".lock")):
        known = _read(path, set(engines))  # another process may have measured meanwhile
        if known is None:
            known = _measure(engines)
            _write(path, {"key": key, "milliseconds": known})
    return known


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let processes that ask at the same time wait for one answer.

    Otherwise they would train with different engines.
    """
    lock = filelock.FileLock(path, timeout=LONGEST_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    # the folder cannot be written, or is on a disk without locks
    except (OSError, filelock.Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def folder() -> Path:
    """Return the folder where answers are kept.

    It is ``$NABLAB_CACHE/engines``, or below the user's cache folder.
    """
    return (
        Path(os.environ.get("NABLAB_CACHE") or platformdirs.user_cache_dir("nablab"))
        / "engines"
    )


def _digest(key: str) -> str:
    machine = (
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(os.cpu_count()),
        str(torch.get_num_threads()),
        torch.__version__,
    )
    return hashlib.sha256("\n".join([key, *machine]).encode()).hexdigest()[:24]


def _read(path: Path, names: set[str]) -> dict[str, float] | None:
    """Read the answer of a file; None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["milliseconds"]
        answer = {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return (
        answer
        if set(answer) == names and all(value > 0 for value in answer.values())
        else None
    )


def _write(path: Path, answer: Mapping[str, object]) -> None:
    """Keep an answer; where that is impossible, the next training measures again."""
    try:
        atomic.write_bytes(path, json.dumps(answer, indent=1).encode(), durable=False)
    except StoreError:
        return


def _measure(
    engines: Mapping[str, Callable[[], tuple[Engine, Tensor]]],
) -> dict[str, float]:
    with borrowed():
        give_engines(
            torch.get_num_threads()
        )  # the answer must not depend on how many processes share the cores
        return _measured({name: make() for name, make in engines.items()})


def _measured(made: Mapping[str, tuple[Engine, Tensor]]) -> dict[str, float]:
    best = dict.fromkeys(made, float("inf"))
    # the first step sets up what later ones use again
    for engine, batches in made.values():
        engine.advance(np.ones(1), batches[:1])
    for _ in range(ROUNDS):
        for name, (engine, batches) in made.items():
            steps, began = 0, time.perf_counter()
            while time.perf_counter() - began < SECONDS:
                engine.advance(np.ones(1), batches[steps % len(batches)][None])
                steps += 1
            best[name] = min(best[name], 1e3 * (time.perf_counter() - began) / steps)
    return best
