"""The image path against common training loops.

The presets on images are given in absolute figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.child import Cost, cost
from benchmarks.contest import OURS, Race, Side
from benchmarks.image_cases import (
    Images,
    lenet,
    load,
    perceptron,
    simple_convolutional,
)
from benchmarks.instruments import measure_races
from benchmarks.peers import image_loops
from benchmarks.startup import nablab_command
from benchmarks.table import Findings, Goal, Table, significant
from nablab import instruments, training

BATCH, COLOR_BATCH, WIDE_BATCH, SCORED = 64, 32, 600, 500
SEEDS, EPOCHS, ALPHAS = 5, 10, 61
WIDTHS = (50, 100, 200, 300, 500, 700, 1000, 1300, 1600, 2000)
NOTEBOOK = "notebook loop"
GIGABYTE = 1e9

# Commands as a user gives them: words after `nablab run`, and the goals for their time.
COMMANDS: tuple[tuple[tuple[str, ...], tuple[str, str] | None], ...] = (
    (("cnn-depth", "--preset", "fast"), ("20 s", "8 s")),
    (
        ("random-labels", "--preset", "full", "shares=1.0", "--seeds", "1"),
        ("4 min", "60 s"),
    ),
    *(
        ((name, "--preset", "standard"), None)
        for name in (
            "cnn-depth",
            "random-labels",
            "parameters-vs-generalization",
            "interpolation",
            "sensitivity",
            "sharpness",
        )
    ),
    (("weight-trajectories", "--preset", "mnist"), None),
    (("gradient-norm", "--preset", "mnist"), None),
    (("loss-landscape", "--preset", "mnist"), None),
    (("--all", "--preset", "quick"), ("4 min", "2 min")),
)
QUICK_COMMANDS = ((("cnn-depth", "--preset", "quick"), None),)


def measure(*, repeats: int, quick: bool, say: Callable[[str], None]) -> Findings:
    """Run the races, then whole runs."""
    images, color = load(quick=quick), load("cifar10", quick=quick)
    races = [
        _epoch(images, quick),
        _color_epoch(color, quick),
        _widths(images, quick),
        _interpolation(images, quick),
    ]
    rows, goals, notes = measure_races(races, repeats, say)
    notes = [*(each.note for each in (images, color) if each.note), *notes]
    columns = ("measure", "side", "seconds", "nablab is faster by")
    table = Table("Images: how many times faster nablab is", columns, rows, notes)
    runs = measure_runs(QUICK_COMMANDS if quick else COMMANDS, say)
    return Findings([table, *runs.tables], [*goals, *runs.goals])


def train(
    build: Callable[[], nn.Module],
    images: Images,
    *,
    seeds: int,
    epochs: int,
    batch_size: int,
) -> None:
    """Do what an experiment does, without evaluations: the loops have none either."""
    steps = epochs * -(-len(images.train[0]) // batch_size)
    training.fit(
        build,
        images.train,
        seeds=range(seeds),
        steps=steps,
        loss="cross_entropy",
        batch_size=batch_size,
        prepare=images.prepare,
        precision="auto",
        train_samples=1,
        eval_every=steps,
    )


def _epoch(images: Images, quick: bool) -> Race:
    share = 1.0 if quick else 0.25
    part = images.first(int(share * len(images.train[0])))

    return Race(
        f"one epoch of LeNet on {len(images.train[0]):,} images ({images.name}), batch "
        f"{BATCH}",
        {
            OURS: lambda: Side(
                lambda: train(lenet, images, seeds=1, epochs=1, batch_size=BATCH)
            ),
            NOTEBOOK: lambda: Side(
                lambda: image_loops.notebook_epoch(lenet, part, BATCH), share
            ),
            "Lightning, images in memory": lambda: Side(
                image_loops.lightning_epoch(lenet, part, BATCH), share
            ),
            "Keras 3 on JAX": lambda: Side(image_loops.keras_epoch(images, BATCH)),
        },
        {
            NOTEBOOK: ("4x", "10x"),
            "Lightning, images in memory": ("1.2x", "2x"),
            "Keras 3 on JAX": ("1.2x", "2x"),
        },
    )


def _color_epoch(images: Images, quick: bool) -> Race:
    """Race the simple network of cifar-cnn."""
    share = 1.0 if quick else 0.2
    part = images.first(int(share * len(images.train[0])))

    def ours() -> None:
        train(simple_convolutional, images, seeds=1, epochs=1, batch_size=COLOR_BATCH)

    def notebook() -> None:
        image_loops.notebook_epoch(simple_convolutional, part, COLOR_BATCH)

    return Race(
        f"one epoch of conv32-pool-dense on {len(images.train[0]):,} images "
        f"({images.name}), batch {COLOR_BATCH}",
        {
            OURS: lambda: Side(ours),
            NOTEBOOK: lambda: Side(notebook, share),
        },
        {NOTEBOOK: ("4x", "12x")},
    )


def _widths(images: Images, quick: bool) -> Race:
    widths = WIDTHS[:2] if quick else WIDTHS
    share = 1.0 if quick else 0.1
    part = images.first(int(share * len(images.train[0])))

    def ours() -> None:
        for hidden in widths:
            train(
                lambda h=hidden: perceptron(h),
                images,
                seeds=SEEDS,
                epochs=1,
                batch_size=WIDE_BATCH,
            )  # type: ignore[misc]

    def notebook() -> None:
        for hidden in widths:
            image_loops.notebook_epoch(lambda h=hidden: perceptron(h), part, WIDE_BATCH)  # type: ignore[misc]

    return Race(
        f"{len(widths)} widths of 784-h-10, {SEEDS} seeds, {EPOCHS} epochs, batch "
        f"{WIDE_BATCH}",
        {
            OURS: lambda: Side(ours, 1 / EPOCHS),
            NOTEBOOK: lambda: Side(notebook, share / EPOCHS / SEEDS),
        },
        {NOTEBOOK: ("10x", "40x")},
    )


def _interpolation(images: Images, quick: bool) -> Race:
    count = 5 if quick else ALPHAS
    share = 1 / count if quick else 0.1 / count
    torch.manual_seed(0)
    first, second = (lenet().eval() for _ in range(2))
    sets = {"train": images.train, "test": images.test}
    prepared = {name: (images.prepare(x), y) for name, (x, y) in sets.items()}

    def ours() -> None:
        instruments.interpolate(
            first,
            second,
            "cross_entropy",
            prepared,
            count=count,
            metrics=("accuracy",),
            batch_size=SCORED,
            predict=training.stacked_predictor(first, prepared["test"][0]),
        )

    def loop() -> None:
        part = share * count
        for split, (x, _) in sets.items():
            few = images.first(int(part * len(x)), split=split)
            image_loops.notebook_evaluation(first, few, SCORED, split=split)

    return Race(
        f"interpolation of LeNet, {count} alphas, train and test images",
        {OURS: lambda: Side(ours), "loop over a DataLoader": lambda: Side(loop, share)},
        {"loop over a DataLoader": ("20x", "60x")},
    )


def measure_runs(
    commands: Sequence[tuple[tuple[str, ...], tuple[str, str] | None]],
    say: Callable[[str], None],
) -> Findings:
    """Measure wall time and peak memory of whole commands.

    Each runs once, into an empty store.
    """
    rows, goals, notes = [], [], []
    for words, wanted in commands:
        name = " ".join(("nablab run", *words))
        say(name)
        done = _run(words)
        if done.exit_code:
            notes.append(f"{name} ended with {done.exit_code}: {done.complaint}")
            continue
        seconds, gigabytes = (
            significant(done.seconds),
            significant(done.peak_bytes / GIGABYTE),
        )
        say(f"  {seconds} s, {gigabytes} GB")
        rows.append((name, f"{seconds} s", f"{done.peak_bytes / 1e6:,.0f} MB"))
        if wanted:
            goals.append(Goal(f"{name}, wall time", f"{seconds} s", *wanted))
        if "standard" in words:
            goals.append(
                Goal(f"{name}, peak memory", f"{gigabytes} GB", "3 GB", "1.5 GB")
            )
    notes.append(
        "One run each, from an empty store, with the report written; data and compiled "
        "kernels are there. Peak memory is the largest resident set of any process of "
        "the run (1 MB = 10⁶ bytes)."
    )
    return Findings(
        [
            Table(
                "Whole runs on images",
                ("command", "wall time", "peak memory"),
                rows,
                notes,
            )
        ],
        goals,
    )


def _run(words: Sequence[str]) -> Cost:
    with tempfile.TemporaryDirectory(prefix="nablab-bench-") as folder:
        return cost(
            [*nablab_command(), "run", *words, "--quiet", "--store", f"{folder}/runs"]
        )
