"""A path of penalties on texts, side by side, against one network after the other.

What a comparison of regularizations costs: the same dense network on the words of Bible
verses, for kinds of penalties and weights of each and seeds. The peers train a few of
the networks as one would write it down, and their time is multiplied: the plain loop
with samples by index, and the loop over a `DataLoader` that most notebooks have.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import data, training
from nablab.training.batches import Batches

WORDS, CLASSES, BATCH, RATE = 1_000, 4, 256, 1e-3
WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS, RATES = 5, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OURS, LOOP, LOADER = "nablab", "PyTorch loop", "PyTorch loop, DataLoader"
CHECKED_STEPS = 20
# Relative to the loss; float32 sums in another order give up to 1e-5 in these steps.
TOLERANCE = 1e-4

Samples = tuple[Tensor, Tensor]


def measure(*, repeats: int, steps: int, seeds: int = SEEDS) -> Findings:
    """Time a step of a network on each side, in turns.

    Raises:
        RuntimeError: The sides do not train the same network.
    """
    pair = samples()
    distance = largest_difference(pair)
    if distance > TOLERANCE:
        raise RuntimeError(f"The sides' losses differ by {distance:.1e}.")
    networks = (4 * len(WEIGHTS) + len(RATES)) * seeds
    sides: dict[str, Callable[[], int]] = {
        OURS: lambda: by_the_lab(pair, steps, seeds),
        LOOP: lambda: len(by_hand(pair, steps, batches_by_index(pair, steps))),
        LOADER: lambda: len(by_hand(pair, steps, batches_by_loader(pair))),
    }
    for side in sides.values():
        side()  # compiles, and fills caches
    seconds = take_turns({name: _timed(side) for name, side in sides.items()}, repeats)
    ratios = {
        name: Spread.of(
            [theirs / ours for theirs, ours in zip(values, seconds[OURS], strict=True)]
        )
        for name, values in seconds.items()
    }
    rows = [
        (
            name,
            spread_text(Spread.of([1e3 * value for value in values]), " ms"),
            spread_text(ratios[name], "x"),
        )
        for name, values in seconds.items()
    ]
    notes = [
        f"{WORDS}-64-64-{CLASSES} on {len(pair[1]):,} verses, batches of {BATCH}, "
        f"{steps:,} steps; {networks} networks here, one network there; "
        f"{torch.get_num_threads()} threads; {repeats} turns. Before the clock starts, "
        f"losses differ by at most {distance:.1e}."
    ]
    table = Table(
        "A path of penalties", ("side", "per network and step", "ratio"), rows, notes
    )
    slowest = min(ratios[LOOP].median, ratios[LOADER].median)
    goal = Goal("a path of penalties", f"{significant(slowest)}x", "8x", "30x")
    return Findings([table], [goal])


def samples() -> Samples:
    """Return the words of verses, uint8 (N, words), and their classes."""
    texts = data.text_task("king-james").texts()
    vocabulary = data.Vocabulary.build(texts.texts, size=WORDS)
    return data.multi_hot(vocabulary.encode(texts.texts), WORDS), texts.labels


def build(dropout: float = 0.0) -> nn.Module:
    """Build the network, with dropout behind each ReLU if asked."""
    behind = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Linear(WORDS, 64),
        nn.ReLU(),
        *behind,
        nn.Linear(64, 64),
        nn.ReLU(),
        *behind,
        nn.Linear(64, CLASSES),
    )


def by_the_lab(pair: Samples, steps: int, seeds: int = SEEDS) -> int:
    """Train the path of four penalties and of dropout; return the steps of all."""
    weights = [weight for weight in WEIGHTS for _ in range(seeds)]
    half = [weight / 2 for weight in weights]
    penalties: tuple[dict[str, Any], ...] = (
        {"l1": weights},
        {"proximal_l1": weights},
        {"weight_decay": weights},
        {"proximal_l1": half, "weight_decay": half},
    )
    taken = 0
    for numbers in penalties:
        own = [*range(seeds)] * len(WEIGHTS)
        taken += _trained(pair, steps, own, build, **numbers).train_loss.size
    for rate in RATES:
        made = _trained(pair, steps, range(seeds), lambda rate=rate: build(rate))
        taken += made.train_loss.size
    return taken


def _trained(
    pair: Samples,
    steps: int,
    seeds: Iterable[int],
    make: Callable[[], nn.Module],
    **numbers: Any,
) -> training.Training:
    return training.train(
        training.Supervised(make, "cross_entropy"),
        pair,
        training.Recipe(
            steps=steps,
            batch_size=BATCH,
            optimizer=training.Adam(RATE, **numbers),
            prepare=torch.Tensor.float,
            train_samples=BATCH,
            eval_every=steps,
        ),
        seeds=[*seeds],
        on_note=lambda _: None,
    )


def by_hand(
    pair: Samples, steps: int, batches: Iterator[Samples], weight: float = 1e-4
) -> list[float]:
    """Train one network with an L1 penalty as one would write it down."""
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    losses: list[float] = []
    for x, y in itertools.islice(batches, steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        size = sum(parameter.abs().sum() for parameter in net.parameters())
        (loss + weight * size).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def batches_by_index(pair: Samples, steps: int) -> Iterator[Samples]:
    """Yield batches of float samples, chosen by index, in the lab's order."""
    x, y = pair[0].float(), pair[1]
    order = Batches(len(y), BATCH, [0], torch.device("cpu"))
    for _, _, indices in order.between(0, steps):
        assert indices is not None
        for chosen in indices[:, 0]:
            yield x[chosen], y[chosen]


def batches_by_loader(pair: Samples) -> Iterator[Samples]:
    """Yield batches of a `DataLoader`, epoch after epoch."""
    both = torch.utils.data.TensorDataset(pair[0].float(), pair[1])
    loader = torch.utils.data.DataLoader(both, batch_size=BATCH, shuffle=True)
    while True:
        yield from loader


def largest_difference(pair: Samples) -> float:
    """Return how far the lab's losses are from those of the plain loop, relatively."""
    theirs = by_hand(pair, CHECKED_STEPS, batches_by_index(pair, CHECKED_STEPS))
    ours = _trained(pair, CHECKED_STEPS, [0], build, l1=1e-4).train_loss[0]
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def _timed(side: Callable[[], int]) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        steps = side()
        return (time.perf_counter() - start) / steps

    return turn
