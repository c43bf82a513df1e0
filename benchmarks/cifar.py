"""CIFAR-10 fast: one step against the public recipe's network, and whole trainings.

A step of nablab's is all of a training's step: images drawn, moved, normalized and
laid out, forward, backward, the optimizer. The peer's is the pass forward and back and
the optimizer, on a batch that lies ready: its recipe moves all images once an epoch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from benchmarks.peers import airbench
from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import baselines, data, training

BATCH = 1_024
OURS = "nablab"
PEER, FROZEN = "public recipe's network", "the same, whitening's bias frozen"
LIMITS = {80: ("90 s", "45 s"), 90: ("8 min", "4 min"), 94: ("40 min", "15 min")}


def measure(
    spec: str = "cifar10",
    *,
    repeats: int,
    steps: int,
    batch: int = BATCH,
    budgets: tuple[int, ...] = (80, 90),
    say: Callable[[str], None],
) -> Findings:
    """Time both subjects.

    Args:
        spec: Color images of 32 x 32 pixels.
        repeats: Turns of the step.
        steps: Of one turn.
        batch: Images of a step.
        budgets: Of `nablab.baselines.BUDGETS`, each trained once.
        say: Told what is measured.
    """
    task = data.image_task(spec, size=32, channels=3)
    say("a step of CIFAR-10")
    found = [step_race(task.images(), repeats=repeats, steps=steps, batch=batch)]
    for budget in budgets:
        say(f"CIFAR-10 to {budget} %")
        found.append(whole(task, budget))
    return Findings(
        [table for one in found for table in one.tables],
        [goal for one in found for goal in one.goals],
    )


def step_race(
    train: data.ImageSet, *, repeats: int, steps: int, batch: int
) -> Findings:
    """Time a step of equal networks on equal batches, in turns."""
    some = train.first(batch)
    ready = train.normalize(some.images)
    peers = {
        name: airbench.Step(ready, some.labels, bias=bias)
        for name, bias in ((PEER, True), (FROZEN, False))
    }
    own = dataclasses.replace(
        baselines.BUDGETS[94],
        batch_size=batch,
        widths=airbench.WIDTHS,
        convolutions=(2, 2, 2),
        patch=2,
        stride=1,
    )
    seconds = take_turns(
        {
            OURS: lambda: by_the_lab(own, train, steps),
            **{
                name: lambda peer=peer: timed(peer, steps)
                for name, peer in peers.items()
            },
        },
        repeats,
    )
    rows, ratios = [], {}
    for name, values in seconds.items():
        pairs = zip(values, seconds[OURS], strict=True)
        ratios[name] = Spread.of([theirs / ours for theirs, ours in pairs])
        spread = spread_text(Spread.of(values), " s")
        rows.append((name, spread, spread_text(ratios[name], "x")))
    notes = [
        f"Batches of {batch:,}, blocks of {', '.join(map(str, airbench.WIDTHS))} "
        f"filters; nablab in {training.convolution_precision()}, the peer in bfloat16, "
        f"channels last; {torch.get_num_threads()} threads, {repeats} turns of {steps} "
        "steps."
    ]
    table = Table(
        "A step of a CIFAR-10 network", ("side", "a step", "ratio"), rows, notes
    )
    measured = f"{significant(ratios[PEER].median)}x"
    return Findings(
        [table], [Goal("a step of CIFAR-10's network", measured, "1x", "1.5x")]
    )


def by_the_lab(own: baselines.FastImages, train: data.ImageSet, steps: int) -> float:
    """Train for some steps twice; return the seconds of one the second time."""
    recipe = dataclasses.replace(
        own.recipe(train), epochs=None, steps=2 * steps, eval_every=steps
    )
    found = training.train(
        own.learner(train),
        own.samples(train),
        recipe,
        seeds=[0],
        on_note=lambda _: None,
    )
    # Evaluated before, halfway and at the end: the first half has what a start costs.
    return float(found.seconds[2] - found.seconds[1]) / steps


def timed(step: Callable[[], None], steps: int) -> float:
    """Take some steps after one that fills caches; return the seconds of one."""
    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def whole(task: data.Task, budget: int) -> Findings:
    """Train once by the settings of a budget, and score the test split once.

    The time is that of everything after the images are in memory: whitening, training
    and one evaluation.
    """
    own, train, test = baselines.BUDGETS[budget], task.images(), task.images("test")
    start = time.perf_counter()
    found = training.train(
        own.learner(train),
        own.samples(train),
        own.recipe(train, held_out={"test": (test.images, test.labels)}),
        seeds=[0],
        on_note=lambda _: None,
    )
    seconds = time.perf_counter() - start
    scores = baselines.accuracies(
        found[0].module(), train.normalize, test.images, test.labels
    )
    plain, averaged = (f"{100 * scores[k]:.2f} %" for k in ("plain", "averaged"))
    row = (f"{budget} %", plain, averaged, f"{seconds:.1f} s")
    columns = ("budget", "test accuracy", "with views averaged", "time")
    notes = [
        f"{len(train):,} images, {own.epochs} epochs, blocks of "
        f"{', '.join(map(str, own.widths))} filters, one seed; "
        f"{torch.get_num_threads()} threads. The time holds two evaluations of the "
        "test split, before and after training, and no averaging of views."
    ]
    least, aim = LIMITS[budget]
    table = Table(f"CIFAR-10 to {budget} %", columns, [row], notes)
    goal = Goal(f"CIFAR-10 to {budget} %", f"{plain} in {seconds:.0f} s", least, aim)
    return Findings([table], [goal])
