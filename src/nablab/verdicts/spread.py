"""Whether the seeds vary, and how.

What no interval of a few values can know is said here.

Seeds are replicates only if they differ. Five equal values are five copies of one draw,
or a quantity that the seed does not touch, or an outcome so coarse that it had no room
to differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from nablab.contract import Claim, Condition, Record
from nablab.statistics.resampling import Array
from nablab.text.naming import words
from nablab.verdicts.values import Group, values_of, whose

OUTLIER_DISTANCE = 12.0
"""An outlier lies this many robust standard deviations from the median.

One of them is 1.4826 times the median distance from the median. 3 % of samples of five
normal values have an outlier, and under 1 % of samples of seven or more.
"""


RANKS = " The scale 'ranks' asks what most seeds do."
EXACT = (
    " If it is a property of the condition and not of the seed, such as a number of "
    "parameters, say exact=True in the claim."
)


COARSEST = 100
"""Shares of more parts than this hardly agree in all seeds by chance."""


def same_for_all_seeds(side: Iterable[Record], metric: str) -> tuple[float, ...]:
    """Return what every one of at least two seeds gave, trial by trial.

    Empty if the seeds differ.
    """
    by_seed: dict[int, dict[Condition, float]] = {}
    for record in side:
        if metric in record.scalars:
            by_seed.setdefault(record.seed, {})[record.condition] = float(
                record.scalars[metric]
            )
    seeds = list(by_seed.values())
    if len(seeds) < 2 or any(seed != seeds[0] for seed in seeds[1:]):
        return ()
    given = tuple(seeds[0].values())
    return () if any(map(math.isnan, given)) else given


def constant(side: Iterable[Record], metric: str) -> float:
    """Return the one finite value that all trials share, else NaN.

    It takes at least two seeds.
    """
    values = set(same_for_all_seeds(side, metric))
    only = values.pop() if len(values) == 1 else math.nan
    return only if math.isfinite(only) else math.nan


def only_zero_or_one(sides: Iterable[Sequence[Record]], metric: str) -> bool:
    """Tell whether every trial gave 0 or 1: an outcome that happens or does not."""
    values = np.concatenate([values_of(side, metric) for side in sides])
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def no_replicates(sides: Mapping[str, Sequence[Record]], claim: Claim) -> str:
    """Explain why seeds that all gave one result are not replicates.

    Empty if they vary, or may be equal by nature.

    Coarse values, such as a count of epochs, a share of a few points or infinity, can
    be equal by nature. Others cannot: then the seed does not reach what it should, or
    the quantity has no randomness.
    """
    for name, side in sides.items():
        values = same_for_all_seeds(side, claim.metric)
        if not values or all(map(_coarse, values)):
            continue
        which = f", {values[0]:.6g}" if len(set(values)) == 1 else ""
        remedy = {
            "difference": " If it has no randomness, claim a bound on the other side "
            "against this value.",
            "equality": EXACT,
        }.get(claim.kind, "")
        return (
            f"All {_seeds(side)} seeds{whose(claim, name)} gave the same "
            f"{words(claim.metric)}{which}: they look like copies of one result, not "
            f"replicates; does the seed reach it?{remedy}"
        )
    return ""


def no_spread(
    values: Sequence[Group], names: Sequence[str], claim: Claim, what: str = ""
) -> str:
    """Explain why means cannot be judged where no value varies; empty if they can.

    There are two sides, or only one.
    """
    arrays = [np.array(list(group.values())) for group in values]
    if sum(
        len(array) > 1 and bool((array == array[0]).all()) for array in arrays
    ) < min(2, len(arrays)):
        return ""
    seeds, whom = (
        min(map(len, arrays)),
        whose(claim, names[0]) if len(names) == 1 else "",
    )
    return (
        f"All {seeds} seeds{whom} gave the same {what or words(claim.metric)}, so how "
        "much it varies from seed to seed is not "
        f"known.{EXACT if claim.kind == 'equality' else RANKS}"
    )


def constant_ratio(claim: Claim) -> str:
    """Explain why pairs that differ by one factor in every seed cannot be judged."""
    return (
        f"Two levels differ by the same factor in {words(claim.metric)} in every seed, "
        f"so how much it varies from seed to seed is not known.{EXACT}"
    )


def equal_by_nature(
    sides: Mapping[str, Sequence[Record]], claim: Claim
) -> tuple[str, ...]:
    """Write a sentence for each side whose seeds all gave the same coarse values."""
    said = []
    for name, side in sides.items():
        values = same_for_all_seeds(side, claim.metric)
        if values:
            what = f"{values[0]:g}" if len(set(values)) == 1 else "the same values"
            said.append(
                f"All {_seeds(side)} seeds{whose(claim, name)} gave {what}; if they "
                "are copies of one result, they count for too much."
            )
    return tuple(said)


def outliers(
    groups: Sequence[Group], names: Sequence[str], claim: Claim
) -> tuple[str, ...]:
    """Write a sentence for each side with values far from the rest.

    A few seeds cannot know the mean of such values.
    """
    said = []
    for name, group in zip(names, groups, strict=True):
        values = np.array(list(group.values()))
        far = _far(values)
        if far.any():
            several = int(far.sum())
            said.append(
                f"{several} of {len(values)} values{whose(claim, name)} "
                f"{'lies' if several == 1 else 'lie'} far from the rest, and so few "
                "seeds hardly know the mean of such values; the scale 'ranks' compares "
                "what most seeds give."
            )
    return tuple(said)


def _far(values: Array) -> Array:
    distance = np.abs(values - np.median(values))
    usual = 1.4826 * float(np.median(distance))
    return np.asarray(
        (distance > OUTLIER_DISTANCE * usual)
        if usual > 0 and len(values) > 3
        else np.zeros(len(values), bool)
    )


def _coarse(value: float) -> bool:
    """Tell whether a value is infinite or a fraction with a small denominator.

    The denominator is at most `COARSEST`.
    """
    if math.isinf(value):
        return True
    return abs(
        value - float(Fraction(value).limit_denominator(COARSEST))
    ) <= 1e-9 * abs(value)


def _seeds(side: Iterable[Record]) -> int:
    return len({record.seed for record in side})
