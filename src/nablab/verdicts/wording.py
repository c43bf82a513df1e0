"""Verdicts in plain words: the claim's sentence, its effect, and why it was judged so."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nablab.errors import UsageError
from nablab.experiment import Claim, Level
from nablab.verdicts.evidence import Evidence

COMPARISONS = {-1: "lower", 1: "higher"}


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
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"The sentence of the claim on '{claim.metric}' cannot be filled in: {error}. "
            "Its fields are {first}, {second}, {metric}, {scope} and {level}."
        ) from error
    return text if "{scope}" in claim.sentence or "{level}" in claim.sentence else _with(where, text)


def effect_text(claim: Claim, evidence: Evidence) -> str:
    """The effect with its interval, as a person would say it; empty if there is none."""
    if evidence.effect is None or evidence.interval is None:
        return ""
    effect, (low, high) = evidence.effect, evidence.interval
    if claim.kind == "equality":
        text = f"largest relative difference {100 * effect:.3g} %"
        return text if evidence.exact else f"{text} ({100 * low:.3g} to {100 * high:.3g} %)"
    if claim.kind == "bound":
        return _bound_text(claim, effect, low, high)
    if evidence.unit == "Kendall's tau":
        return f"Kendall's tau {number(effect)} ({number(low)} to {number(high)})"
    if claim.scale == "ranks":
        return _rank_text(effect, low, high)
    return _difference_text(claim, effect, low, high)


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


def words(name: str) -> str:
    """A name as words.

    >>> words("held_out_mse"), words("steps_to_threshold")
    ('held-out MSE', 'steps to threshold')
    """
    text = f" {name.replace('_', ' ')} ".replace(" held out ", " held-out ")
    return text.replace(" mse ", " MSE ").strip()


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
    return f"{metric[0].upper()}{metric[1:]} is the same within {100 * claim.margin:.3g} % for every {words(claim.by)}"


def _with(where: str, text: str) -> str:
    return f"{text} ({where})" if where else text


def _bound_text(claim: Claim, effect: float, low: float, high: float) -> str:
    if claim.scale == "ranks":
        return _rank_text(effect, low, high)
    if claim.scale == "log10":
        values = [claim.bound * 10**value for value in (effect, low, high)]
        kind = "geometric mean"
    else:
        values = [claim.bound + value for value in (effect, low, high)]
        kind = "mean"
    mean, low, high = map(number, values)
    return f"{kind} {mean} ({low} to {high}), against {number(claim.bound)}"


def _rank_text(effect: float, low: float, high: float) -> str:
    """Cliff's delta as the share of pairs in which the first is lower (or higher); ties count half."""
    sign = -1 if effect < 0 else 1
    share, one, two = (50 * (1 + sign * value) for value in (effect, low, high))
    one, two = sorted((one, two))
    return f"{COMPARISONS[sign]} in {share:.0f} % of pairs ({one:.0f} to {two:.0f} %)"


def _difference_text(claim: Claim, effect: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return f"{_amount(claim, effect)} ({_amount(claim, low)} to {_amount(claim, high)})"
    near, far = sorted((abs(low), abs(high)))
    return f"{_amount(claim, effect)} ({_size(claim, near)} to {_size(claim, far)})"


def _amount(claim: Claim, value: float) -> str:
    times = " times" if claim.scale == "log10" else ""
    return f"{_size(claim, abs(value))}{times} {COMPARISONS[-1 if value < 0 else 1]}"


def _size(claim: Claim, size: float) -> str:
    if claim.scale != "log10":
        return number(size)
    return f"{10**size:.1f}" if size < 2 else number(10 ** min(size, 300))
