"""Principal components of color images, and linear autoencoders on the way to them.

All sides of the race see the same centered float32 images. Each is scored by how much
more variance it loses than the best components do, in float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import baselines, data, models, training

OURS, TORCH = "nablab", "torch.linalg.svd"
SOLVERS = ("auto", "randomized", "covariance_eigh")  # of scikit-learn
ADAM, PRECONDITIONED, ALTERNATING = "Adam", "preconditioned steps", "alternating"
RATE = 0.8  # of a preconditioned step, as in autoencoder-vs-svd
ENOUGH = 1e-3


def measure(
    spec: str = "cifar10",
    *,
    count: int = 128,
    code: int = 64,
    repeats: int,
    epochs: int = 100,
    size: int = 32,
    channels: int = 3,
    say: Callable[[str], None],
) -> Findings:
    """Time both subjects.

    Args:
        spec: Labeled images.
        count: Components of the race.
        code: Of the linear autoencoders, which see gray images.
        repeats: Turns of the race; torch.linalg.svd takes one.
        epochs: Adam's, at most.
        size: Height and width of images.
        channels: Of the race's images.
        say: Told what is measured.
    """
    say("principal components")
    first = race(spec, count, repeats=repeats, size=size, channels=channels)
    say("linear autoencoders")
    second = linear(spec, code, epochs=epochs, size=size)
    return Findings([*first.tables, *second.tables], [*first.goals, *second.goals])


def race(spec: str, count: int, *, repeats: int, size: int, channels: int) -> Findings:
    """Find the first components on each side, in turns."""
    images = data.image_task(spec, size=size, channels=channels).train()[0]
    x = images.flatten(1).float() / 255
    x -= x.mean(0)
    axes: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}

    def ours() -> float:
        begun = time.perf_counter()
        found = baselines.principal_components(x, count)
        seconds = time.perf_counter() - begun
        axes[OURS], sizes[OURS] = found.axes, (found.variances * len(x)).sqrt()
        return seconds

    def theirs() -> float:
        begun = time.perf_counter()
        _, values, right = torch.linalg.svd(x, full_matrices=False)
        seconds = time.perf_counter() - begun
        axes[TORCH], sizes[TORCH] = right[:count], values[:count]
        return seconds

    def learned(solver: str) -> float:
        from sklearn.decomposition import PCA

        samples = x.numpy()
        begun = time.perf_counter()
        found = PCA(count, svd_solver=solver, random_state=0).fit(samples)
        seconds = time.perf_counter() - begun
        axes[solver] = torch.from_numpy(found.components_)
        sizes[solver] = torch.from_numpy(found.singular_values_)
        return seconds

    sides: dict[str, Callable[[], float]] = {OURS: ours} | {
        solver: lambda solver=solver: learned(solver) for solver in SOLVERS
    }
    seconds = take_turns(sides, repeats)
    seconds[TORCH] = [theirs()]
    moments = baselines.Moments.of(x)
    exact = baselines.principal_components(moments, count)
    ours_median = Spread.of(seconds[OURS]).median
    ratios = {
        name: Spread.of(values).median / ours_median for name, values in seconds.items()
    }
    rows = [
        (
            name if name in (OURS, TORCH) else f"scikit-learn's PCA, {name}",
            spread_text(Spread.of(values), " s"),
            f"{significant(ratios[name])}x",
            f"{excess(axes[name], moments, exact):.1e}",
            f"{worst(sizes[name], (exact.variances * len(x)).sqrt()):.1e}",
        )
        for name, values in seconds.items()
    ]
    notes = [
        f"{len(x):,} images of {spec} as {x.shape[1]:,} float32 numbers, centered; "
        f"{count} components; {torch.get_num_threads()} threads. The excess is what is "
        "lost beyond the smallest possible loss, as a share of it; the last column is "
        f"the largest relative error of a singular value. {repeats} turns, one of "
        f"{TORCH}."
    ]
    header = ("side", "time", "ratio", "excess", "singular values")
    table = Table("Principal components", header, rows, notes)
    best = min(SOLVERS, key=lambda name: ratios[name])
    goals = [
        Goal(f"SVD against {TORCH}", f"{significant(ratios[TORCH])}x", "5x", "10x"),
        Goal(
            "SVD against scikit-learn's PCA",
            f"{significant(ratios['auto'])}x; {significant(ratios[best])}x ({best})",
            "1.5x",
            "3x",
        ),
    ]
    return Findings([table], goals)


def excess(
    axes: Tensor, moments: baselines.Moments, exact: baselines.PrincipalComponents
) -> float:
    """Return how much more than the best components axes (k, d) lose, as a share."""
    basis = torch.linalg.qr(axes.double().T)[0]
    lost = moments.total - float((basis * (moments.covariance @ basis)).sum())
    return lost / exact.lost(len(axes)) - 1


def worst(found: Tensor, wanted: Tensor) -> float:
    """Return the largest relative error."""
    return float((found.double() / wanted - 1).abs().max())


def linear(spec: str, code: int, *, epochs: int, size: int) -> Findings:
    """Time linear autoencoders of gray images until they are near SVD."""
    images = baselines.centered_images(spec, size=size, channels=1)
    solved = {
        PRECONDITIONED: by_steps(
            images, code, lambda net, s: net.preconditioned_step(s, RATE)
        ),
        ALTERNATING: by_steps(images, code, lambda net, s: net.alternate(s)),
        ADAM: by_adam(images, code, epochs),
    }
    rows = [
        (
            name,
            f"{significant(reached)} s" if math.isfinite(reached) else "not reached",
            f"{last:.1e}",
            f"{significant(seconds)} s",
        )
        for name, (reached, last, seconds) in solved.items()
    ]
    notes = [
        f"{len(images.train):,} gray images of {spec}, {code} numbers in the code. "
        f"Adam gets {epochs:,} epochs, in batches of 250; its time includes scoring."
    ]
    header = ("by", f"to an excess of {ENOUGH:g}", "excess in the end", "took")
    table = Table("Linear autoencoders against SVD", header, rows, notes)
    fastest = min(reached for reached, _, _ in solved.values())
    goals = [
        Goal("linear autoencoder", f"{significant(fastest)} s", "60 s", "15 s"),
        Goal(
            "alternating least squares",
            f"{solved[ALTERNATING][1]:.1e}",
            "1e-8",
            "1e-10",
        ),
    ]
    return Findings([table], goals)


def by_steps(
    images: baselines.CenteredImages,
    code: int,
    step: Callable[[baselines.LinearAutoencoder, Tensor], None],
    most: int = 1_000,
) -> tuple[float, float, float]:
    """Return the seconds until the excess is enough, the last excess, all seconds."""
    covariance, best = images.moments.covariance, images.best(code) * images.inputs
    rng = np.random.default_rng(0)
    net = baselines.LinearAutoencoder.start(images.inputs, code, rng)
    begun, reached, last = time.perf_counter(), math.inf, math.inf
    for _ in range(most):
        step(net, covariance)
        before, last = last, net.lost(covariance) / best - 1
        if last <= ENOUGH:
            reached = min(reached, time.perf_counter() - begun)
        if 0 <= before - last < 1e-14:
            break
    return reached, max(last, 1e-16), time.perf_counter() - begun


def by_adam(
    images: baselines.CenteredImages, code: int, epochs: int
) -> tuple[float, float, float]:
    """Train the same by Adam, with a learning rate that falls to 0."""
    x, best = images.train.flatten(1), images.best(code)
    steps = epochs * -(-len(x) // 250)
    begun = time.perf_counter()
    result = training.train(
        training.Supervised(
            lambda: models.dense_autoencoder(images.inputs, code, bias=False), "mse"
        ),
        (x, x),
        training.Recipe(
            epochs=epochs,
            batch_size=250,
            optimizer=training.Adam(1e-3),
            schedule=training.Linear(warmup_steps=steps // 10),
            train_samples=min(1_000, len(x)),
            eval_every=steps,
        ),
        seeds=[0],
        on_note=lambda _: None,
    )
    seconds = time.perf_counter() - begun
    (outcome,) = result
    net = baselines.LinearAutoencoder.of(outcome.module())
    last = net.lost(images.moments.covariance) / images.inputs / best - 1
    return (seconds if last <= ENOUGH else math.inf), max(last, 1e-16), seconds
