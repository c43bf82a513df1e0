"""From records to numbers.

One value per seed on the claim's scale, and what had to be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nablab.contract import Claim, Level, Record, Scale
from nablab.statistics.resampling import Array
from nablab.text.naming import words

Group = dict[int, float]
"""One value per seed."""

LARGEST = 1e150
"""Beyond it, or below its inverse, the squares that a spread is made of overflow or
vanish.
"""


def of_level(
    records: Iterable[Record], claim: Claim, level: Level | None
) -> list[Record]:
    """Select the records in which the claim's factor stands at ``level``."""
    return [
        r for r in records if claim.by in r.condition and r.condition[claim.by] == level
    ]


def array(group: Group) -> Array:
    """Return the values in the order of the seeds."""
    return np.array([group[seed] for seed in sorted(group)], dtype=np.float64)


def summary(side: Iterable[Record], metric: str) -> dict[str, float]:
    """Return the mean, the median, the number of values and the number of NaN."""
    values = values_of(side, metric)
    usable = values[~np.isnan(values)]
    both = np.isposinf(usable).any() and np.isneginf(usable).any()
    with np.errstate(over="ignore"):
        mean = float(usable.mean()) if len(usable) and not both else math.nan
    return {
        "mean": mean,
        "median": _median(usable),
        "n": len(usable),
        "nan": len(values) - len(usable),
    }


def relative(a: float, b: float) -> float:
    """Compute the relative difference to the smaller of the two.

    Infinite if it is 0 or the signs differ.

    >>> relative(100.0, 150.0), relative(0.0, 1.0)
    (0.5, inf)
    """
    small, large = sorted((a, b), key=abs)
    if small == large:
        return 0.0
    return large / small - 1 if small * large > 0 else math.inf


def prepare(
    sides: Mapping[str, Sequence[Record]], claim: Claim
) -> tuple[list[Group], tuple[str, ...], str]:
    """Reduce every side to one value per seed on the claim's scale.

    Args:
        sides: The trials to compare; the name says who they are in messages, empty for
            all.
        claim: Its metric and scale.

    Returns:
        The values of each side, the caveats, and why it failed, empty if it did not.
    """
    metric, scale = claim.metric, claim.scale
    values = np.concatenate([values_of(side, metric) for side in sides.values()])
    failure = _empty_side(sides, claim) or _unfit(values, metric, scale)
    if failure:
        return [{} for _ in sides], (), failure
    caveats, floor = [], 0.0
    zeros = int((values == 0).sum())
    if scale == "log10" and zeros:
        floor = float(values[values > 0].min())
        count = "1 zero counts" if zeros == 1 else f"{zeros} zeros count"
        caveats.append(f"{count} as {floor:.3g}, the smallest positive value.")
    groups = [_one_per_seed(side, metric, scale, floor) for side in sides.values()]
    if scale == "ranks" and claim.kind in ("difference", "bound"):
        lost = int(np.isnan(values).sum())
        if lost:
            caveats.append(
                f"{lost} of {len(values)} trials ended in NaN; each counts against the "
                "conclusion."
            )
        return groups, tuple(caveats), ""
    groups = [
        {seed: value for seed, value in group.items() if not math.isnan(value)}
        for group in groups
    ]
    return groups, (*caveats, *_caveats_of_nan(sides, claim)), ""


def no_order(values: Array, metric: str) -> str:
    """Explain why values without a rank order cannot be judged; empty if they can."""
    same = len(values) > 1 and bool((values == values[0]).all())
    return (
        f"Every trial has the same {words(metric)}, so there is no order to test."
        if same
        else ""
    )


def values_of(side: Iterable[Record], metric: str) -> Array:
    """Return the metric of every trial that has it."""
    return np.array(
        [record.scalars[metric] for record in side if metric in record.scalars],
        dtype=np.float64,
    )


def _empty_side(sides: Mapping[str, Sequence[Record]], claim: Claim) -> str:
    """Explain why a side without a single number cannot be judged."""
    for name, side in sides.items():
        values = values_of(side, claim.metric)
        if not len(values):
            return f"No trial{whose(claim, name)} recorded '{claim.metric}'."
        if np.isnan(values).all():
            return f"Every trial{whose(claim, name)} ended in NaN."
    return ""


def _unfit(values: Array, metric: str, scale: Scale) -> str:
    """Explain why values cannot be put on the scale; empty if they can."""
    if scale == "ranks":
        return ""
    some = f"Some values of {words(metric)}"
    if np.isinf(values).any():
        return (
            f"{some} are infinite and have no mean; the scale 'ranks' can compare them."
        )
    size = np.abs(values[values != 0])
    if scale == "linear" and ((size > LARGEST) | (size < 1 / LARGEST)).any():
        return f"{some} are too large or too small for the scale 'linear'; use 'log10'."
    if scale == "log10" and (values < 0).any():
        return f"{some} are negative and have no logarithm."
    if scale == "log10" and not (values > 0).any():
        return f"All values of {words(metric)} are 0 and have no logarithm."
    return ""


def _one_per_seed(
    side: Iterable[Record], metric: str, scale: Scale, floor: float
) -> Group:
    """Return each seed's value on the scale; NaN if any of its trials is NaN."""
    by_seed: dict[int, list[float]] = {}
    for record in side:
        if metric in record.scalars:
            value = float(record.scalars[metric])
            value = (
                math.log10(max(value, floor))
                if scale == "log10" and not math.isnan(value)
                else value
            )
            by_seed.setdefault(record.seed, []).append(value)
    middle: Callable[[list[float]], float] = _median if scale == "ranks" else _mean
    return {seed: middle(values) for seed, values in by_seed.items()}


def _mean(values: Sequence[float]) -> float:
    # Sorted, so that the order of the records does not show in the last digit.
    return math.fsum(sorted(values)) / len(values)


def _median(values: Sequence[float] | Array) -> float:
    """Return the median; NaN for no values, any NaN, or a middle between infinities."""
    ordered = sorted(float(value) for value in values)
    if not ordered or any(math.isnan(value) for value in ordered):
        return math.nan
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else low / 2 + high / 2


def _caveats_of_nan(
    sides: Mapping[str, Sequence[Record]], claim: Claim
) -> tuple[str, ...]:
    counts = {name: summary(side, claim.metric) for name, side in sides.items()}
    return tuple(
        f"{count['nan']:.0f} of {count['nan'] + count['n']:.0f} "
        f"trials{whose(claim, name)} ended in NaN and "
        f"{'is' if count['nan'] == 1 else 'are'} left out."
        for name, count in counts.items()
        if count["nan"]
    )


def whose(claim: Claim, name: str) -> str:
    """Say which trials a sentence speaks of; empty for all."""
    return f" with {claim.by} = {name}" if name else ""
