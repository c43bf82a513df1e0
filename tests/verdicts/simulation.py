"""Error rates and power of verdicts, by simulation: the cases, and a table of what was
measured.

``python -m tests.verdicts.simulation`` prints the table of ``docs/verdicts.md``; the
slow tests hold the same numbers against what that page promises.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from scipy.special import ndtr, ndtri

from nablab.contract import Claim, Condition, Level, Record, Records
from nablab.verdicts import judge

RUNS = 1_000
RESAMPLES = 999
WIDTHS = (1, 2, 4, 8)

Array = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True)
class Case:
    """Claims about data whose truth is known.

    Attributes:
        name: What is compared.
        truth: ``null`` (the effect is exactly at the threshold) or ``effect``.
        seeds: Of the smallest group.
        claims: Judged together, so Holm corrects over them.
        draw: Makes the records of one run.
        power: What the page promises for ``supported`` where the effect is there.
    """

    name: str
    truth: str
    seeds: int
    claims: tuple[Claim, ...]
    draw: Callable[[np.random.Generator], Records]
    power: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Shares of runs: any claim supported, any refuted, and the mean share of supported
    claims.
    """

    supported: float
    refuted: float
    each: float


def measure(case: Case, runs: int = RUNS, resamples: int = RESAMPLES) -> Rates:
    """Judge ``runs`` data sets of a case."""
    generator = np.random.default_rng(20_261_121)
    found: Counter[str] = Counter()
    for _ in range(runs):
        outcomes = [
            v.outcome
            for v in judge(case.claims, case.draw(generator), resamples=resamples)
        ]
        assert len(outcomes) == len(case.claims)
        found["supported"] += "supported" in outcomes
        found["refuted"] += "refuted" in outcomes
        found["each"] += outcomes.count("supported")
    total = runs * len(case.claims)
    return Rates(
        found["supported"] / runs, found["refuted"] / runs, found["each"] / total
    )


def allowed(rate: float = 0.05, runs: int = RUNS) -> float:
    """The rate and two standard errors of a simulation of so many runs: 6.4 % for 5 %
    in 1,000.
    """
    return rate + 2 * math.sqrt(rate * (1 - rate) / runs)


def records_of(
    groups: dict[Level, Sequence[float]], by: str = "model", **levels: Level
) -> list[Record]:
    """One record per value; the position is the seed."""
    return [
        Record(Condition(**{by: level}, **levels), seed, {"error": float(value)})
        for level, values in groups.items()
        for seed, value in enumerate(values)
    ]


# --- distributions ------------------------------------------------------------


def normal(generator: np.random.Generator, n: int) -> Array:
    """Mean 0, standard deviation 1."""
    return generator.normal(size=n)


def wide(generator: np.random.Generator, n: int) -> Array:
    """Mean 0, standard deviation 3."""
    return 3 * generator.normal(size=n)


def lognormal(generator: np.random.Generator, n: int) -> Array:
    """Skewed and positive; the logarithm has mean 0 and standard deviation 1."""
    return np.exp(generator.normal(size=n))


SHAPES: dict[str, tuple[Draw, Draw, float]] = {
    "normal": (normal, normal, 1),
    "lognormal": (lognormal, lognormal, 1),
    "sd 3 against 1": (wide, normal, 1),
    "twice as many": (normal, normal, 2),
    "sd 3 against 1, twice as many of the latter": (wide, normal, 2),
}


# --- cases --------------------------------------------------------------------


def two_groups(
    shape: str, seeds: int, scale: str, shift: float = 0.0, **options: Any
) -> Case:
    """Claim: ``a`` is higher than ``b``; its true shift is ``shift`` on the scale."""
    first, second, ratio = SHAPES[shape]

    def draw(generator: np.random.Generator) -> Records:
        x, y = first(generator, seeds) + shift, second(generator, round(ratio * seeds))
        if options.get("paired"):
            shared = generator.normal(size=seeds)
            x, y = x + shared, y + shared
        if scale == "log10":
            x, y = 10**x, 10**y
        return Records(records_of({"a": list(x), "b": list(y)}))

    claim = Claim.greater("error", "a", "b", by="model", scale=scale, **options)
    kind = "paired" if options.get("paired") else "two groups"
    at = f", at d = {claim.smallest_effect:.2g}" if claim.smallest_effect else ""
    return Case(f"{kind}, {scale}, {shape}{at}", "null", seeds, (claim,), draw)


def bound(shape: str, seeds: int, scale: str, sign: int, margin: float = 0.0) -> Case:
    """Claim: the mean (median for ranks) is on one side of where it is exactly."""
    source = SHAPES[shape][0]
    center = {"lognormal": 1.0 if scale == "ranks" else math.exp(0.5)}.get(shape, 0.0)

    def draw(generator: np.random.Generator) -> Records:
        values = source(generator, seeds) + sign * margin
        return Records(
            records_of({"a": list(10**values if scale == "log10" else values)})
        )

    make = Claim.at_least if sign > 0 else Claim.at_most
    claim = make(
        "error",
        10**center if scale == "log10" else center,
        scale=scale,
        smallest_effect=margin,
    )
    word = "at least" if sign > 0 else "at most"
    at = f", at d = {margin:.2g}" if margin else ""
    return Case(f"bound ({word}), {scale}, {shape}{at}", "null", seeds, (claim,), draw)


def trend(
    shape: str,
    seeds: int,
    slope: float = 0.0,
    paired: bool = False,
    at_truth: bool = True,
) -> Case:
    """Claim: the error rises along four widths; its true tau is the threshold if
    ``at_truth``.
    """
    source = SHAPES[shape][0]
    last = SHAPES[shape][1]

    def draw(generator: np.random.Generator) -> Records:
        shared = generator.normal(size=seeds) * paired
        groups: dict[Level, Sequence[float]] = {
            width: list(
                (last if step == 0 else source)(generator, seeds)
                + shared
                + slope * step
            )
            for step, width in enumerate(WIDTHS)
        }
        return Records(records_of(groups, by="width"))

    threshold = tau_of_slope(slope, seeds, paired) if at_truth else 0.0
    claim = Claim.rises("error", by="width", paired=paired, smallest_effect=threshold)
    at = f", at d = {threshold:.2g}" if threshold else ""
    name = f"trend{' of paired seeds' if paired else ''}, {shape}{at}"
    return Case(name, "null", seeds, (claim,), draw)


def tau_of_slope(slope: float, seeds: int, paired: bool) -> float:
    """Expected tau-b of normal values whose mean rises by ``slope`` from level to
    level.

    Paired seeds share a normal value, so values of different seeds differ with variance
    4, not 2.
    """
    steps = range(len(WIDTHS))
    trials = len(WIDTHS) * seeds
    same, other = (seeds, 2.0) if paired else (0, math.sqrt(2))
    gain = 0.0
    for gap in (j - i for i in steps for j in steps if i < j):
        gain += same * (2 * float(ndtr(slope * gap / math.sqrt(2))) - 1)
        gain += (seeds**2 - same) * (2 * float(ndtr(slope * gap / other)) - 1)
    untied = math.comb(len(WIDTHS), 2) * seeds**2
    return gain / math.sqrt(untied * math.comb(trials, 2))


def correlation(seeds: int, paired: bool = False) -> Case:
    """Claim: two metrics rise together, over two conditions per seed; they are
    independent.
    """

    def draw(generator: np.random.Generator) -> Records:
        return Records(
            Record(
                Condition(model=m),
                s,
                {"error": generator.normal(), "norm": generator.normal()},
            )
            for m in "ab"
            for s in range(seeds)
        )

    claim = Claim.correlates("error", "norm", paired=paired)
    return Case(
        f"correlation{' of paired seeds' if paired else ''}",
        "null",
        seeds,
        (claim,),
        draw,
    )


def equality(seeds: int, scale: str) -> Case:
    """Claim: equal within 20 %; the true difference is 20 %."""

    def draw(generator: np.random.Generator) -> Records:
        x, y = 10 ** (0.02 * generator.normal(size=(2, seeds)))
        return Records(records_of({"a": list(1.2 * x), "b": list(y)}))

    claim = Claim.equal("error", by="model", margin=0.2, scale=scale)
    return Case(f"equality, {scale}, at the margin", "null", seeds, (claim,), draw)


def family(shift: float, seeds: int, power: float = 0.0) -> Case:
    """Six claims of independent data, judged together."""
    claims = tuple(
        Claim.greater("error", "a", "b", by="model", where={"target": k})
        for k in range(6)
    )

    def draw(generator: np.random.Generator) -> Records:
        return Records(
            record
            for target in range(6)
            for record in records_of(
                {
                    "a": list(normal(generator, seeds) + shift),
                    "b": list(normal(generator, seeds)),
                },
                target=target,
            )
        )

    truth = "effect" if shift else "null"
    name = (
        f"two groups, linear, normal, {shift:g} sd apart, in a family of 6"
        if shift
        else "family of 6"
    )
    return Case(name, truth, seeds, claims, draw, power)


def with_power(case: Case, name: str, power: float) -> Case:
    """A case whose effect is there, and is found with at least this probability."""
    return Case(name, "effect", case.seeds, case.claims, case.draw, power)


def power_cases() -> Iterator[Case]:
    """Effects of two standard deviations, and what finds them."""
    for seeds, alone, together in ((5, 0.70, 0.60), (10, 0.95, 0.95)):
        yield with_power(
            two_groups("normal", seeds, "linear", 2.0),
            "two groups, linear, normal, 2 sd apart, alone",
            alone,
        )
        yield family(2.0, seeds, together)
    for seeds, power in ((5, 0.7), (10, 0.95)):
        ranks = two_groups("normal", seeds, "ranks", 2.0)
        yield with_power(ranks, "two groups, ranks, normal, 2 sd apart, alone", power)
        rising = trend("normal", seeds, slope=1.0, at_truth=False)
        yield with_power(rising, "trend, normal, 1 sd per step, 4 levels", 0.95)
    ten = two_groups("normal", 10, "linear", 2.0, paired=True)
    yield with_power(ten, "paired, linear, 1.4 sd of the differences", 0.9)


@dataclass(frozen=True)
class Advice:
    """Whether the advised number of seeds decides as often as it should."""

    name: str
    pilot: int
    advised: int
    decided: float


def advice_cases(runs: int = RUNS) -> Iterator[Advice]:
    """A pilot whose effect and spread are the true ones, and how often the advised
    seeds decide.
    """
    for options, pilot, shift, members in (
        ({}, 5, 1.0, 1),
        ({}, 5, 0.7, 1),
        ({}, 5, 1.0, 6),
        ({"paired": True}, 5, 0.8, 1),
        ({"scale": "log10", "smallest_effect": 0.5}, 5, 1.5, 1),
        ({"scale": "ranks"}, 10, 0.7, 1),
        ({"scale": "ranks", "smallest_effect": 0.2}, 10, 1.0, 1),
        ({"scale": "ranks", "paired": True}, 10, 0.8, 1),
    ):
        yield _advice(options, pilot, shift, members, runs)


def _advice(
    options: dict[str, Any], pilot: int, shift: float, members: int, runs: int
) -> Advice:
    claims = tuple(
        Claim.greater("error", "a", "b", by="model", where={"target": k}, **options)
        for k in range(members)
    )
    log10, paired = options.get("scale") == "log10", options.get("paired", False)

    def records(first: Callable[[], Array], second: Callable[[], Array]) -> Records:
        groups = [
            (k, first() + shift, 0.0 * second() if paired else second())
            for k in range(members)
        ]
        return Records(
            record
            for k, x, y in groups
            for record in records_of(
                {"a": list(10**x if log10 else x), "b": list(10**y if log10 else y)},
                target=k,
            )
        )

    scores = ndtri((np.arange(pilot) + 0.5) / pilot)
    scores = scores / scores.std(ddof=1)
    first = judge(claims, records(lambda: scores, lambda: scores), resamples=RESAMPLES)[
        0
    ]
    advised = first.seeds_needed or 0
    generator = np.random.default_rng(7)
    decided = 0
    for _ in range(runs):
        drawn = records(
            lambda: generator.normal(size=advised),
            lambda: generator.normal(size=advised),
        )
        decided += (
            judge(claims, drawn, resamples=RESAMPLES)[0].outcome != "inconclusive"
        )
    words = ", ".join(f"{key}={value}" for key, value in options.items()) or "linear"
    name = (
        f"{words}; effect of {shift:g} "
        f"sd{f'; family of {members}' if members > 1 else ''}"
    )
    return Advice(name, pilot, advised, decided / runs)


def null_cases() -> Iterator[Case]:
    """Every kind of claim, with the effect exactly at its threshold."""
    for seeds in (5, 10):
        for shape in SHAPES:
            yield two_groups(shape, seeds, "linear")
            if shape != "lognormal":
                yield two_groups(shape, seeds, "log10")
            yield two_groups(shape, seeds, "ranks")
        yield two_groups("normal", seeds, "linear", 1.0, smallest_effect=1.0)
        yield two_groups("sd 3 against 1", seeds, "linear", 1.0, smallest_effect=1.0)
        for d in (0.3, 0.6):
            shift = math.sqrt(2) * float(ndtri((1 + d) / 2))
            yield two_groups("normal", seeds, "ranks", shift, smallest_effect=d)
        for shape in ("normal", "lognormal", "sd 3 against 1"):
            yield two_groups(shape, seeds, "linear", paired=True)
            yield two_groups(shape, seeds, "ranks", paired=True)
        yield two_groups("normal", seeds, "log10", paired=True)
        yield two_groups(
            "normal", seeds, "linear", 1.0, paired=True, smallest_effect=1.0
        )
        for sign in (-1, 1):
            for shape in ("normal", "lognormal"):
                yield bound(shape, seeds, "linear", sign)
            yield bound("lognormal", seeds, "ranks", sign)
        yield bound("normal", seeds, "log10", -1)
        yield bound("normal", seeds, "linear", -1, 1.0)
        for shape in ("normal", "lognormal", "sd 3 against 1"):
            yield trend(shape, seeds)
        yield trend("normal", seeds, paired=True)
        yield trend("normal", seeds, slope=0.5)
        yield trend("normal", seeds, slope=0.5, paired=True)
        yield correlation(seeds)
        yield correlation(seeds, paired=True)
        yield equality(seeds, "linear")
        yield equality(seeds, "log10")
        yield family(0.0, seeds)


def main() -> None:
    """Print every case with its rates, in percent."""
    start = time.perf_counter()
    print(
        "| effect at the threshold | seeds | supported % | refuted % |\n"
        "|---|---|---|---|"
    )
    for case in null_cases():
        rates = measure(case)
        print(
            f"| {case.name} | {case.seeds} | {100 * rates.supported:.1f} | "
            f"{100 * rates.refuted:.1f} |",
            flush=True,
        )
    print(
        "\n| effect that is there | seeds | promised % | found % |\n|---|---|---|---|"
    )
    for case in power_cases():
        rates = measure(case)
        print(
            f"| {case.name} | {case.seeds} | {100 * case.power:.0f} | "
            f"{100 * rates.each:.1f} |",
            flush=True,
        )
    print("\n| pilot | its seeds | advised seeds | decided % |\n|---|---|---|---|")
    for advice in advice_cases():
        print(
            f"| {advice.name} | {advice.pilot} | {advice.advised} | "
            f"{100 * advice.decided:.0f} |",
            flush=True,
        )
    versions = (
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy "
        f"{scipy.__version__}"
    )
    print(
        "\n"
        f"{RUNS} runs each, {RESAMPLES} resamples; {time.perf_counter() - start:.0f} s "
        f"on {os.cpu_count()} cores; {versions}"
    )


if __name__ == "__main__":
    main()
