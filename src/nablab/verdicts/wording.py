"""Verdicts in plain words: the claim's sentence, its effect, and why it was judged so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from nablab.errors import UsageError
from nablab.experiment import Claim, Level
from nablab.naming import words
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.resampling import ALPHA

FEW = 30
COMPARISONS = {-1: "lower", 1: "higher"}
SIDES = {-1: "below", 1: "above"}


def sentence(claim: Claim, scope: Mapping[str, Level]) -> str:
    """The claim in words, with its scope.

    A sentence of the claim's own may hold the fields first, second, metric, scope and level.

    Raises:
        UsageError: The claim's own sentence has another field.
    """
    level = next(iter(scope.values()), "")
    where = ", ".join(f"{words(factor)} {value}" for factor, value in scope.items())
    if not claim.sentence:
        return _with(where, _generated(claim))
    try:
        text = claim.sentence.format(
            first=claim.first, second=claim.second, metric=words(claim.metric), scope=where, level=level
        )
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"The sentence of the claim on '{claim.metric}' cannot be filled in: {error}. "
            "Its fields are {first}, {second}, {metric}, {scope} and {level}."
        ) from error
    return text if "{scope}" in claim.sentence or "{level}" in claim.sentence else _with(where, text)


def effect_text(claim: Claim, evidence: Evidence) -> str:
    """The quantity, its effect and interval, as a person would say it; empty if there is none."""
    if evidence.effect is None:
        return ""
    effect, limits = evidence.effect, evidence.interval or ()
    if claim.kind == "equality":
        text = f"largest relative difference {100 * effect:.3g} %"
        return text if evidence.exact else f"{text} ({' to '.join(f'{100 * v:.3g}' for v in limits)} %)"
    if evidence.unit == "Kendall's tau":
        other = claim.other or claim.by
        interval = " to ".join(number(limit) for limit in limits)
        return f"Kendall's tau of {words(claim.metric)} with {words(other)} {number(effect)} ({interval})"
    if claim.scale == "ranks":
        return f"{words(claim.metric)} {_rank_text(claim, effect, *limits)}"
    if claim.kind == "bound":
        return _bound_text(claim, effect, *limits)
    return f"{words(claim.metric)} {_difference_text(claim, effect, *limits)}"


def reason(
    claim: Claim,
    evidence: Evidence,
    outcome: Literal["supported", "refuted", "inconclusive"],
    p_values: tuple[float, float],
    family: int,
    confidence: float,
) -> str:
    """Why the claim got its outcome: where the interval lies, and the p-value.

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
        infinite = "" if evidence.effect is not None else " The relative difference is infinite."
        return f"Exact: every seed gives the same values, so no test is needed.{infinite}"
    if evidence.effect is None or evidence.interval is None:
        few = f"{evidence.seeds} seed{'' if evidence.seeds == 1 else 's'}"
        return f"{few} cannot show how much the result varies from seed to seed."
    interval = f"{100 * confidence:g} % interval"
    raw, p = p_values
    p_text = f"p {_p_text(p)}{f' after correction for {family} claims' if family > 1 else ''}"
    if family > 1 and p >= ALPHA > raw:
        p_text += f" ({_p_text(raw).removeprefix('= ')} before)"
    if outcome != "inconclusive":
        return f"The whole {interval} lies {_side(claim, evidence, outcome == 'supported')}, {p_text}."
    if evidence.supports or evidence.refutes:
        place = _side(claim, evidence, evidence.supports)
        return f"The whole {interval} lies {place}, but {p_text} is not below 0.05."
    also = "" if p < ALPHA else f", and {p_text}"
    return f"The {interval} includes {_line(claim, evidence)}{also}."


def method(claim: Claim, evidence: Evidence, family: int, confidence: float) -> str:
    """Which statistic, test, interval and correction made the verdict, and what they cannot see.

    Args:
        claim: What is claimed.
        evidence: What was found.
        family: Number of claims that p-values are adjusted for.
        confidence: Of the interval.
    """
    if evidence.exact or evidence.failure or evidence.interval is None:
        return ""
    statistic, test, interval = _method(claim, evidence)
    parts = [f"{statistic}; {test}, one-sided; {100 * confidence:g} % interval: {interval}."]
    if family > 1:
        parts.append(f"Holm's correction for {family} claims.")
    if claim.scale != "ranks" and claim.kind in ("difference", "bound", "equality") and evidence.seeds < FEW:
        missed = 100 * 0.9**evidence.seeds
        parts.append(
            f"{evidence.seeds} seeds miss what befalls one seed in ten {missed:.0f} % of the time, and "
            "what they miss is not in this mean."
        )
    return " ".join(parts)


def number(value: float) -> str:
    """Three significant digits.

    >>> number(0.01234), number(1234.5)
    ('0.0123', '1,230')
    """
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    if 1e-4 <= abs(value) < 1e6:
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
    return f"{value:.2e}"


def _method(claim: Claim, evidence: Evidence) -> tuple[str, str, str]:
    """Statistic, test and interval."""
    tau = "Kendall's tau-b", "score interval with the spread of bootstrap and permutations"
    if claim.kind == "trend":
        unit = "values permuted within each seed" if claim.paired else "values permuted over trials"
        return tau[0], unit, tau[1]
    if claim.kind == "correlation":
        unit = "whole levels" if claim.paired else "whole seeds and whole levels"
        return tau[0], f"{unit} exchanged", tau[1]
    if claim.kind == "equality":
        return "Largest ratio of means less 1", "two one-sided permutation tests a pair", "bootstrap (BCa)"
    mean = "geometric mean" if claim.scale == "log10" else "mean"
    one_sample = claim.paired or claim.kind == "bound"
    if claim.scale == "ranks":
        if one_sample:
            return "Share of seeds", "exact sign test", "Clopper and Pearson"
        return "Cliff's delta", "permutation of Brunner and Munzel's statistic", "Newcombe's score interval"
    if claim.kind == "bound":
        if evidence.share:
            return (
                "Share",
                "exact binomial test (of means of trials Gaffke's)",
                "Clopper and Pearson",
            )
        return mean.capitalize(), "sign flips", "bootstrap (BCa), widened for skewed values"
    statistic = f"Difference of {mean}s"
    interval = "bootstrap (BCa; Student's below five seeds)"
    if evidence.share:
        interval = "Gaffke's limits" if claim.paired else "exact limits of both shares combined (Newcombe)"
    test = "sign flips of paired differences" if one_sample else "permutation of Welch's t"
    return statistic, test, interval


def _generated(claim: Claim) -> str:
    metric = words(claim.metric)
    if claim.kind == "difference":
        side = COMPARISONS[claim.sign]
        return f"{metric[0].upper()}{metric[1:]} is {side} for {claim.first} than for {claim.second}"
    if claim.kind == "trend":
        return (
            f"{metric[0].upper()}{metric[1:]} {'rises' if claim.sign > 0 else 'falls'} with {words(claim.by)}"
        )
    if claim.kind == "correlation":
        side = "rise together" if claim.sign > 0 else "oppose each other"
        return f"{metric[0].upper()}{metric[1:]} and {words(claim.other)} {side}"
    if claim.kind == "bound":
        side = "at least" if claim.sign > 0 else "at most"
        return f"{metric[0].upper()}{metric[1:]} is {side} {number(claim.bound)}"
    same = f"is the same within {100 * claim.margin:.3g} %"
    return f"{metric[0].upper()}{metric[1:]} {same} for every {words(claim.by)}"


def _with(where: str, text: str) -> str:
    return f"{text} ({where})" if where else text


def _line(claim: Claim, evidence: Evidence, *, touching: bool = False) -> str:
    """The threshold in the words of the effect."""
    if claim.kind == "equality":
        return f"the margin of {100 * claim.margin:.3g} %"
    if claim.kind == "bound" and claim.scale != "ranks":
        return _bound_line(claim)
    if not claim.smallest_effect:
        if claim.kind == "bound":
            return f"the point where as many seeds lie below {number(claim.bound)} as above"
        return "zero" if claim.kind in ("trend", "correlation") or touching else "'no difference'"
    return f"the smallest effect of interest, {_threshold(claim, evidence)}"


def _threshold(claim: Claim, evidence: Evidence) -> str:
    if evidence.unit == "Kendall's tau":
        return f"tau {number(evidence.threshold)}"
    if claim.scale == "ranks":
        return _share(claim, evidence.threshold)
    return _amount(claim, evidence.threshold)


def _bound_line(claim: Claim) -> str:
    """The bound, moved by the smallest effect of interest."""
    if not claim.smallest_effect:
        return f"the bound of {number(claim.bound)}"
    shift = claim.sign * claim.smallest_effect
    moved = claim.bound * 10**shift if claim.scale == "log10" else claim.bound + shift
    return f"{number(moved)}, the bound of {number(claim.bound)} moved by the smallest effect of interest"


def _side(claim: Claim, evidence: Evidence, supporting: bool) -> str:
    """Where the whole interval lies, in words."""
    if claim.kind == "equality":
        return f"{'within' if supporting else 'beyond'} {_line(claim, evidence)}"
    if claim.kind == "bound" and claim.scale != "ranks":
        return f"{SIDES[claim.sign if supporting else -claim.sign]} {_bound_line(claim)}"
    if supporting:
        return f"beyond {_line(claim, evidence)}" if claim.smallest_effect else "on the claimed side"
    low, high = evidence.interval or (math.nan, math.nan)
    if not claim.smallest_effect or (low > 0 if claim.sign < 0 else high < 0):
        return "on the opposite side"
    return f"short of {_line(claim, evidence)}"


def _bound_text(claim: Claim, effect: float, *limits: float) -> str:
    """The mean beside its bound; no limits where the values do not vary."""
    if claim.scale == "log10":
        values = [claim.bound * 10 ** min(value, 300) for value in (effect, *limits)]
    else:
        values = [claim.bound + value for value in (effect, *limits)]
    mean, *ends = map(number, values)
    interval = f" ({' to '.join(ends)})" if ends else ""
    kind = "geometric mean" if claim.scale == "log10" else "mean"
    return f"{kind} {words(claim.metric)} {mean}{interval}, against {number(claim.bound)}"


def _rank_text(claim: Claim, effect: float, *limits: float) -> str:
    """Cliff's delta as the share of pairs in which the first is lower (or higher); ties count half."""
    one, two = sorted(_percent(effect, value) for value in limits)
    return f"{_share(claim, effect)} ({one:.0f} to {two:.0f} %)"


def _share(claim: Claim, delta: float) -> str:
    sign = -1 if delta < 0 else 1
    what = SIDES[sign] + f" {number(claim.bound)}" if claim.kind == "bound" else COMPARISONS[sign]
    whose = "seeds" if claim.paired or claim.kind == "bound" else "pairs"
    return f"{what} in {_percent(delta, delta):.0f} % of {whose}"


def _percent(effect: float, delta: float) -> float:
    """The share of pairs on the side of ``effect``."""
    return 50 * (1 + (-delta if effect < 0 else delta))


def _difference_text(claim: Claim, effect: float, *limits: float) -> str:
    if not limits:
        return _amount(claim, effect)
    low, high = limits
    if low <= 0 <= high:
        return f"{_amount(claim, effect)} ({_amount(claim, low)} to {_amount(claim, high)})"
    near, far = sorted((abs(low), abs(high)))
    return f"{_amount(claim, effect)} ({_size(claim, near)} to {_size(claim, far)})"


def _amount(claim: Claim, value: float) -> str:
    if value == 0:
        return "no difference"
    times = " times" if claim.scale == "log10" else ""
    return f"{_size(claim, abs(value))}{times} {COMPARISONS[-1 if value < 0 else 1]}"


def _size(claim: Claim, size: float) -> str:
    if claim.scale != "log10":
        return number(size)
    ratio = 10 ** min(size, 300)
    if ratio >= 100:
        return number(ratio)
    return f"{ratio:.1f}" if ratio >= 1.095 else f"{ratio:.2f}" if ratio >= 1.005 else f"{ratio:.3f}"


def _p_text(p: float) -> str:
    """With its sign; p-values of a permutation test are never 0.

    >>> _p_text(0.0548), _p_text(0.00001)
    ('= 0.055', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
