"""What the loop costs a learner: a step of `Minimize` against the same step by hand.

Both sides train one network by the same loss on batches of 64, on one thread. The
difference is what the lab adds to a step: random numbers that are a function of the
step, batches by index, curves, and the check that the loss is finite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import training

SAMPLES, BATCH, WIDTH, RATE = 2_000, 64, 64, 1e-3
OURS, BARE = "nablab, Minimize", "PyTorch loop"


def measure(*, repeats: int, steps: int) -> Findings:
    """Time a step of both sides, in turns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 20, generator=generator)
    y = torch.randn(SAMPLES, 1, generator=generator)
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: by_the_lab(x, y, steps),
        BARE: lambda: by_hand(x, y, steps),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for side in sides.values():
            side()
        turns = {name: _timed(side, steps) for name, side in sides.items()}
        seconds = take_turns(turns, repeats)
    finally:
        torch.set_num_threads(threads)
    # The smallest of each: what disturbs a machine only ever adds.
    overhead = 100 * (min(seconds[OURS]) / min(seconds[BARE]) - 1)
    rows = [
        (name, spread_text(Spread.of([1e6 * value for value in values]), " µs"))
        for name, values in seconds.items()
    ]
    notes = [
        f"20-{WIDTH}-{WIDTH}-1, batches of {BATCH}, fused Adam, {steps:,} steps, one "
        f"thread; {repeats} turns. Overhead, from the smallest of each: "
        f"{significant(overhead)} %."
    ]
    table = Table("A step of a learner", ("side", "per step"), rows, notes)
    goal = Goal(
        "a learner's overhead per step", f"{significant(overhead)} %", "10 %", "3 %"
    )
    return Findings([table], [goal])


def build() -> nn.Module:
    """Build a small network, so that the loop weighs most."""
    return nn.Sequential(
        nn.Linear(20, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 1),
    )


def loss_of(net: nn.Module, batch: Mapping[str, Tensor], moment: Any) -> Any:
    """Compute the mean squared error, as `Minimize` takes it."""
    return {"loss": (net(batch["x"]) - batch["y"]).square().mean()}


def by_the_lab(x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Train by `nablab.training.train`, and return the loss of every step."""
    result = training.train(
        training.Minimize(build, loss_of),
        {"x": x, "y": y},
        training.Recipe(
            steps=steps,
            batch_size=BATCH,
            optimizer=training.Adam(RATE),
            train_samples=0,
            eval_every=steps,
        ),
        seeds=[0],
        replicas="sequential",
    )
    losses: list[float] = result.train_loss[0].tolist()
    return losses


def by_hand(x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Train as one would write it down, and return the loss of every step."""
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    while len(losses) < steps:
        order = torch.randperm(len(x), generator=generator)
        for places in order.split(BATCH)[: steps - len(losses)]:
            batch = {"x": x[places], "y": y[places]}
            optimizer.zero_grad()
            loss = loss_of(net, batch, None)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def _timed(side: Callable[[], object], steps: int) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        side()
        return (time.perf_counter() - start) / steps

    return turn
