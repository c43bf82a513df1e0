"""Null effects of every kind: claim by shape of the values by trials a seed by number
of seeds.

Trials of one seed share its luck, and for correlations the conditions have qualities of
their own; neither has to do with what is claimed. ``python -m tests.verdicts.grid``
prints the rates of every cell; with ``300 1000 0 2`` it takes the first half of the
cells, 300 runs each, and 1,000 where that leaves a doubt.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import numpy as np

from nablab.contract import Claim, Condition, Record, Records
from tests.verdicts.simulation import Array, Case, Rates, measure

SEEDS = (3, 4, 5, 7, 10)
TRIALS = (1, 2, 4, 8)
RESAMPLES = 199
MARGIN = 0.2


def _normal(z: Array) -> Array:
    return z


def _right(z: Array) -> Array:
    return np.asarray(np.exp(z))


def _left(z: Array) -> Array:
    return np.asarray(3 - np.exp(z))


def _heavy(z: Array) -> Array:
    """Student's t with two degrees of freedom, by its quantile function: the variance
    is infinite.
    """
    u = np.clip(0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))), 1e-12, 1 - 1e-12)
    return np.asarray((2 * u - 1) / np.sqrt(2 * u * (1 - u)))


def _tied(z: Array) -> Array:
    return np.asarray(np.round(0.7 * z))


def _rare(z: Array) -> Array:
    """0 or 1, one in ten."""
    return np.asarray((z > 1.2815515655446004).astype(np.float64))


def _even(z: Array) -> Array:
    """0 or 1, one in two."""
    return np.asarray((z > 0).astype(np.float64))


SHAPES: Mapping[str, tuple[Callable[[Array], Array], float]] = {
    "normal": (_normal, 0.0),
    "skewed to the right": (_right, math.exp(0.5)),
    "skewed to the left": (_left, 3 - math.exp(0.5)),
    "heavy tails": (_heavy, 0.0),
    "ties": (_tied, 0.0),
    "0 or 1, 10 %": (_rare, 0.1),
    "0 or 1, 50 %": (_even, 0.5),
}
"""How a normal value becomes one of the shape, and the mean."""


def lucky(
    generator: np.random.Generator, seeds: int, trials: int, luck: Array
) -> Array:
    """Standard normal values of shape (trials, seeds), half of whose variance is the
    seed's luck.
    """
    return np.asarray((luck + generator.normal(size=(trials, seeds))) / math.sqrt(2))


def difference(shape: str, seeds: int, trials: int, **options: object) -> Case:
    """Both levels give the same; paired seeds share their luck."""
    make = SHAPES[shape][0]

    def draw(generator: np.random.Generator) -> Records:
        luck = generator.normal(size=(2, seeds))
        sides = [
            make(
                lucky(generator, seeds, trials, luck[0 if options.get("paired") else k])
            )
            for k in (0, 1)
        ]
        return Records(
            Record(Condition(model=model, target=t), s, {"error": float(side[t, s])})
            for model, side in zip("ab", sides, strict=True)
            for t in range(trials)
            for s in range(seeds)
        )

    return _case(
        "less",
        shape,
        seeds,
        trials,
        Claim.less("error", "a", "b", by="model", **options),
        draw,
    )


def equality(shape: str, seeds: int, trials: int, **options: object) -> Case:
    """One level gives a fifth more than the other, which is the margin."""
    make = SHAPES[shape][0]

    def draw(generator: np.random.Generator) -> Records:
        luck = generator.normal(size=(2, seeds))
        sides = [
            factor * np.exp(0.1 * make(lucky(generator, seeds, trials, luck[k])))
            for k, factor in ((0, 1 + MARGIN), (1, 1.0))
        ]
        return Records(
            Record(Condition(model=model, target=t), s, {"error": float(side[t, s])})
            for model, side in zip("ab", sides, strict=True)
            for t in range(trials)
            for s in range(seeds)
        )

    claim = Claim.equal("error", by="model", margin=MARGIN, **options)
    return _case("equal", shape, seeds, trials, claim, draw)


@lru_cache
def _median(shape: str, trials: int) -> float:
    """Of the seeds' medians, by simulation."""
    generator = np.random.default_rng(0)
    values = SHAPES[shape][0](
        lucky(generator, 200_001, trials, generator.normal(size=200_001))
    )
    return float(np.median(np.median(values, axis=0)))


def bound(shape: str, seeds: int, trials: int, **options: object) -> Case:
    """The mean of the seeds (their median for ranks) is exactly at the bound."""
    make, mean = SHAPES[shape]
    line = _median(shape, trials) if options.get("scale") == "ranks" else mean

    def draw(generator: np.random.Generator) -> Records:
        values = make(lucky(generator, seeds, trials, generator.normal(size=seeds)))
        return Records(
            Record(Condition(target=t), s, {"error": float(values[t, s])})
            for t in range(trials)
            for s in range(seeds)
        )

    return _case(
        "at most", shape, seeds, trials, Claim.at_most("error", line, **options), draw
    )


def trend(shape: str, seeds: int, trials: int, **options: object) -> Case:
    """Four widths give the same; a seed has the same luck at all of them."""
    make = SHAPES[shape][0]

    def draw(generator: np.random.Generator) -> Records:
        luck = generator.normal(size=seeds)
        return Records(
            Record(Condition(width=width, target=t), s, {"error": float(values[t, s])})
            for width in (1, 2, 4, 8)
            for values in [make(lucky(generator, seeds, trials, luck))]
            for t in range(trials)
            for s in range(seeds)
        )

    return _case(
        "rises", shape, seeds, trials, Claim.rises("error", by="width", **options), draw
    )


def correlation(
    shape: str, seeds: int, trials: int, quality: str = "networks", **options: object
) -> Case:
    """Two metrics that have nothing to do with each other, over networks (or networks
    by rates).

    Args:
        shape: Of the values of both metrics.
        seeds: Number of seeds.
        trials: Number of conditions.
        quality: Who has a quality of its own for each metric: ``networks``; ``rates``,
            two to a network, so that the network's quality is shared; ``fixed``,
            networks of which one metric is a property, such as their number of
            parameters; ``none``.
        options: Of the claim.
    """
    make = SHAPES[shape][0]
    rates = 2 if quality == "rates" and trials > 1 else 1

    def metric(generator: np.random.Generator, fixed: bool) -> Array:
        networks = np.repeat(generator.normal(size=(trials // rates, 1)), rates, axis=0)
        if fixed:
            return np.asarray(make(np.repeat(networks, seeds, axis=1)))
        weight = 0.0 if quality == "none" else 1.0
        values = lucky(generator, seeds, trials, generator.normal(size=seeds))
        return np.asarray(make((values + weight * networks) / math.sqrt(1 + weight)))

    def draw(generator: np.random.Generator) -> Records:
        x, y = metric(generator, quality == "fixed"), metric(generator, False)
        return Records(
            Record(
                Condition(network=t // rates, rate=t % rates),
                s,
                {"error": float(x[t, s]), "norm": float(y[t, s])},
            )
            for t in range(trials)
            for s in range(seeds)
        )

    claim = Claim.correlates("error", "norm", **options)
    return _case(f"correlates, {quality}", shape, seeds, trials, claim, draw)


def _case(
    kind: str,
    shape: str,
    seeds: int,
    trials: int,
    claim: Claim,
    draw: Callable[[np.random.Generator], Records],
) -> Case:
    paired = ", paired" if claim.paired else ""
    scale = f", {claim.scale}" if claim.kind not in ("trend", "correlation") else ""
    return Case(
        f"{kind}{scale}{paired}; {shape}; {trials} trials a seed",
        "null",
        seeds,
        (claim,),
        draw,
    )


KINDS: Mapping[str, tuple[Callable[..., Case], Mapping[str, object]]] = {
    "less": (difference, {}),
    "less, ranks": (difference, {"scale": "ranks"}),
    "less, paired": (difference, {"paired": True}),
    "less, paired, ranks": (difference, {"paired": True, "scale": "ranks"}),
    "at most": (bound, {}),
    "at most, ranks": (bound, {"scale": "ranks"}),
    "rises": (trend, {}),
    "rises, paired": (trend, {"paired": True}),
    "correlates, networks": (correlation, {}),
    "correlates, networks, paired": (correlation, {"paired": True}),
    "correlates, rates": (correlation, {"quality": "rates"}),
    "correlates, rates, paired": (correlation, {"quality": "rates", "paired": True}),
    "correlates, fixed": (correlation, {"quality": "fixed"}),
    "correlates, none": (correlation, {"quality": "none"}),
    "equal": (equality, {}),
    "equal, paired": (equality, {"paired": True}),
}


def cells(kind: str, shape: str) -> Iterator[Case]:
    """All numbers of trials and seeds.

    With ranks, one outcome in two has no median to be a bound.
    """
    make, options = KINDS[kind]
    if make is bound and options.get("scale") == "ranks" and shape.startswith("0 or 1"):
        return
    for trials in TRIALS:
        for seeds in SEEDS:
            yield make(shape, seeds, trials, **options)


def rates(case: Case, first: int = 300, runs: int = 1_000) -> Rates:
    """Of one cell: a first look, and all runs unless that shows 2 % or less.

    Of 300 runs with a true rate of 5 % so few come out wrong once in a hundred times.
    """
    found = measure(case, runs=first, resamples=RESAMPLES)
    if first >= runs or max(found.supported, found.refuted) <= 0.02:
        return found
    return measure(case, runs=runs, resamples=RESAMPLES)


def every_cell() -> list[Case]:
    """All of them, in an order that has nothing to do with them."""
    listed = [case for kind in KINDS for shape in SHAPES for case in cells(kind, shape)]
    return [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]


def main() -> None:
    """Print the rates of every cell, in percent."""
    given = [int(value) for value in sys.argv[1:]]
    first, runs, part, parts = given + [300, 1_000, 0, 1][len(given) :]
    for case in every_cell()[part::parts]:
        found = rates(case, first, runs)
        shares = f"{100 * found.supported:.1f} | {100 * found.refuted:.1f}"
        print(f"| {case.name} | {case.seeds} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
