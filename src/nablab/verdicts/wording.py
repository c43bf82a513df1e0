"""Verdicts in plain words.

The claim's sentence, why it was judged so, and by which method.

Effects have a file of their own, ``effects.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from nablab.contract import Claim, Level
from nablab.errors import UsageError
from nablab.statistics.small_samples import ALPHA
from nablab.text.naming import words
from nablab.verdicts.effects import (
    COMPARISONS,
    SIDES,
    amount,
    claimed_bound,
    compared,
    number,
    on_scale,
    quantity,
    share,
    size,
)

if TYPE_CHECKING:
    from nablab.verdicts.evidence import Evidence

FEW_SEEDS = 30


def sentence(claim: Claim, scope: Mapping[str, Level]) -> str:
    """Write the claim in words, with its scope.

    A sentence of the claim's own may hold the fields first, second, metric, scope and
    level.

    Raises:
        UsageError: The claim's own sentence has another field.
    """
    level = next(iter(scope.values()), "")
    where = ", ".join(f"{words(factor)} {value}" for factor, value in scope.items())
    if not claim.sentence:
        return _with(where, _generated(claim))
    try:
        text = claim.sentence.format(
            first=claim.first,
            second=claim.second,
            metric=words(claim.metric),
            scope=where,
            level=level,
        )
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"The sentence of the claim on '{claim.metric}' cannot be filled in: "
            f"{error}. Its fields are {{first}}, {{second}}, {{metric}}, {{scope}} and "
            "{level}."
        ) from error
    return (
        text
        if "{scope}" in claim.sentence or "{level}" in claim.sentence
        else _with(where, text)
    )


def reason(
    claim: Claim,
    evidence: Evidence,
    outcome: Literal["supported", "refuted", "inconclusive"],
    p_values: tuple[float, float],
    family: int,
    confidence: float,
) -> str:
    """Say why the claim got its outcome: where the interval lies, and the p-value.

    Args:
        claim: What is claimed.
        evidence: What was found.
        outcome: What it was judged to be.
        p_values: Of the side that the outcome is about, before and after correction.
        family: Number of claims that the p-value was adjusted for.
        confidence: Of the interval.
    """
    if evidence.failure:
        return evidence.failure
    if evidence.exact:
        infinite = (
            ""
            if evidence.effect is not None
            else " The relative difference is infinite."
        )
        return (
            f"Exact: every seed gives the same values, so no test is needed.{infinite}"
        )
    if evidence.effect is None or evidence.interval is None:
        few = f"{evidence.seeds} seed{'' if evidence.seeds == 1 else 's'}"
        return f"{few} cannot show how much the result varies from seed to seed."
    interval = f"{100 * confidence:g} % interval"
    raw, p = p_values
    p_text = (
        "p "
        f"{_p_text(p)}{f' after correction for {family} claims' if family > 1 else ''}"
    )
    if family > 1 and p >= ALPHA > raw:
        p_text += f" ({_p_text(raw).removeprefix('= ')} before)"
    if outcome != "inconclusive":
        return (
            f"The whole {interval} lies "
            f"{_side(claim, evidence, outcome == 'supported')}, {p_text}."
        )
    if evidence.supports or evidence.refutes:
        place = _side(claim, evidence, evidence.supports)
        return f"The whole {interval} lies {place}, but {p_text} is not below 0.05."
    also = "" if p < ALPHA else f", and {p_text}"
    return f"The {interval} includes {_line(claim, evidence)}{also}."


def method(claim: Claim, evidence: Evidence, family: int, confidence: float) -> str:
    """Name the statistic, test, interval and correction, and what they cannot see.

    Args:
        claim: What is claimed.
        evidence: What was found.
        family: Number of claims that p-values are adjusted for.
        confidence: Of the interval.
    """
    if evidence.exact or evidence.failure or evidence.interval is None:
        return ""
    statistic, test, interval = _method(claim, evidence)
    parts = [
        f"{statistic}; {test}, one-sided; {100 * confidence:g} % interval: {interval}."
    ]
    if family > 1:
        parts.append(f"Holm's correction for {family} claims.")
    if (
        claim.scale != "ranks"
        and claim.kind in ("difference", "bound", "equality")
        and evidence.seeds < FEW_SEEDS
    ):
        missed = 100 * 0.9**evidence.seeds
        parts.append(
            f"{evidence.seeds} seeds miss what befalls one seed in ten {missed:.0f} % "
            "of the time, and what they miss is not in this mean."
        )
    return " ".join(parts)


def _method(claim: Claim, evidence: Evidence) -> tuple[str, str, str]:
    """Name the statistic, the test and the interval."""
    tau = (
        "Kendall's tau-b",
        "score interval with the spread of bootstrap and permutations",
    )
    if claim.kind == "trend":
        unit = (
            "values permuted within each seed"
            if claim.paired
            else "values permuted over trials"
        )
        return tau[0], unit, tau[1]
    if claim.kind == "correlation":
        unit = "whole levels" if claim.paired else "whole seeds and whole levels"
        return tau[0], f"{unit} exchanged", tau[1]
    if claim.kind == "equality":
        return (
            "Largest ratio of means less 1",
            "two one-sided permutation tests a pair",
            "bootstrap (BCa)",
        )
    mean = "geometric mean" if claim.scale == "log10" else "mean"
    one_sample = claim.paired or claim.kind == "bound"
    if claim.scale == "ranks":
        if one_sample:
            return "Share of seeds", "exact sign test", "Clopper and Pearson"
        return (
            "Cliff's delta",
            "permutation of Brunner and Munzel's statistic",
            "Newcombe's score interval",
        )
    if claim.kind == "bound":
        if evidence.share:
            return (
                "Share",
                "exact binomial test (of means of trials Gaffke's)",
                "Clopper and Pearson",
            )
        return (
            mean.capitalize(),
            "sign flips",
            "bootstrap (BCa), widened for skewed values",
        )
    statistic = f"Difference of {mean}s"
    interval = "bootstrap (BCa; Student's below five seeds)"
    if evidence.share:
        interval = (
            "Gaffke's limits"
            if claim.paired
            else "exact limits of both shares combined (Newcombe)"
        )
    test = (
        "sign flips of paired differences" if one_sample else "permutation of Welch's t"
    )
    return statistic, test, interval


def _generated(claim: Claim) -> str:
    metric = quantity(claim)
    if claim.kind == "difference":
        side = COMPARISONS[claim.sign]
        return f"{metric[0].upper()}{metric[1:]} is {side} {compared(claim)}"
    if claim.kind == "trend":
        return (
            f"{metric[0].upper()}{metric[1:]} {'rises' if claim.sign > 0 else 'falls'} "
            f"with {words(claim.by)}"
        )
    if claim.kind == "correlation":
        side = "rise together" if claim.sign > 0 else "oppose each other"
        return f"{metric[0].upper()}{metric[1:]} and {words(claim.other)} {side}"
    if claim.kind == "bound":
        return f"{metric[0].upper()}{metric[1:]} is {claimed_bound(claim)}"
    same = f"is the same within {100 * claim.margin:.3g} %"
    return f"{metric[0].upper()}{metric[1:]} {same} for every {words(claim.by)}"


def _with(where: str, text: str) -> str:
    return f"{text} ({where})" if where else text


def _line(claim: Claim, evidence: Evidence, *, touching: bool = False) -> str:
    """Write the threshold in the words of the effect."""
    if claim.kind == "equality":
        return f"the margin of {100 * claim.margin:.3g} %"
    if claim.kind == "bound" and claim.scale != "ranks":
        return _bound_line(claim)
    if not claim.smallest_effect:
        if claim.kind == "bound":
            return (
                f"the point where as many seeds lie below {number(claim.bound)} as "
                "above"
            )
        return (
            "zero"
            if claim.kind in ("trend", "correlation") or touching
            else "'no difference'"
        )
    return f"the smallest effect of interest, {threshold_text(claim)}"


def threshold_text(claim: Claim) -> str:
    """Write in short what the effect is held against.

    ``1.5 times lower``, ``tau 0.300``, ``0.0500``.
    """
    if claim.kind == "equality":
        return f"{100 * claim.margin:.3g} %"
    line = claim.sign * claim.smallest_effect + 0.0
    if claim.kind in ("trend", "correlation"):
        return f"tau {number(line)}"
    if claim.scale == "ranks":
        return share(claim, line)
    if claim.kind == "bound":
        return number(on_scale(claim, line))
    return amount(claim, line)


def _bound_line(claim: Claim) -> str:
    """Write the line of a bound.

    Where an effect must reach beyond the bound to be of interest, say how the line
    comes about.
    """
    if not claim.smallest_effect:
        return f"the bound of {number(claim.bound)}"
    line = number(on_scale(claim, claim.sign * claim.smallest_effect))
    if claim.scale == "log10":
        how = "times" if claim.sign > 0 else "divided by"
    else:
        how = "plus" if claim.sign > 0 else "less"
    least = f"the smallest effect of interest ({size(claim, claim.smallest_effect)})"
    return f"{line}, which is the bound of {number(claim.bound)} {how} {least}"


def _side(claim: Claim, evidence: Evidence, supporting: bool) -> str:
    """Say where the whole interval lies."""
    if claim.kind == "equality":
        return f"{'within' if supporting else 'beyond'} {_line(claim, evidence)}"
    if claim.kind == "bound" and claim.scale != "ranks":
        return (
            f"{SIDES[claim.sign if supporting else -claim.sign]} {_bound_line(claim)}"
        )
    if supporting:
        return (
            f"beyond {_line(claim, evidence)}"
            if claim.smallest_effect
            else "on the claimed side"
        )
    low, high = evidence.interval or (math.nan, math.nan)
    if not claim.smallest_effect or (low > 0 if claim.sign < 0 else high < 0):
        return "on the opposite side"
    return f"short of {_line(claim, evidence)}"


def _p_text(p: float) -> str:
    """Write a p-value with its sign; those of a permutation test are never 0.

    >>> _p_text(0.0548), _p_text(0.00001)
    ('= 0.055', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
