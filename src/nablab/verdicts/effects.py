"""Effects in words: the quantity, how far it moves, in which direction.

An effect comes with the limits between which it lies.

An effect is told in the terms of its claim, "held-out MSE 2.2 times lower for deep than
for shallow (1.5 to 3.1)", so that nobody has to know which of two numbers was
subtracted from which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nablab.contract import Claim, Level
from nablab.text.naming import words

if TYPE_CHECKING:
    from nablab.verdicts.evidence import Evidence

COMPARISONS = {-1: "lower", 1: "higher"}
SIDES = {-1: "below", 1: "above"}


def quantity(claim: Claim) -> str:
    """Name what the claim is about, in its own words or made from the metric's name."""
    return claim.quantity or words(claim.metric)


def effect_text(claim: Claim, evidence: Evidence) -> str:
    """Write the quantity, its effect and interval as a person would say it.

    Empty where there is no effect.
    """
    if evidence.effect is None:
        return ""
    limits = evidence.interval or ()
    if claim.kind == "equality":
        return _equality_text(claim, evidence, *limits)
    if claim.kind in ("trend", "correlation"):
        return _tendency_text(claim, evidence.effect, *limits)
    if claim.kind == "bound":
        return _bound_text(claim, evidence, *limits)
    if claim.scale == "ranks":
        one, two = sorted(percent(evidence.effect, value) for value in limits)
        side = COMPARISONS[-1 if evidence.effect < 0 else 1]
        share = (
            f"{percent(evidence.effect, evidence.effect):.0f} % of {_counted(claim)}"
        )
        return (
            f"{quantity(claim)} {side} {compared(claim)} in {share} ({one:.0f} to "
            f"{two:.0f} %)"
        )
    return _difference_text(claim, evidence.effect, *limits)


def compared(claim: Claim) -> str:
    """Say who is held against whom.

    >>> compared(Claim.less("error", "deep", "shallow", by="model"))
    'for deep than for shallow'
    >>> compared(Claim.greater("error", 0.5, 1.0, by="share"))
    'at share 0.5 than at share 1'
    """
    first, second = (_at(claim, level) for level in (claim.first, claim.second))
    return f"{first} than {second}"


def claimed_bound(claim: Claim) -> str:
    """Write the constant of a bound with its direction.

    >>> claimed_bound(Claim.at_most("error", 0.5))
    'at most 0.500'
    """
    return f"{'at least' if claim.sign > 0 else 'at most'} {number(claim.bound)}"


def amount(claim: Claim, value: float) -> str:
    """Write a difference with its direction: ``0.5 lower``, ``1.5 times higher``."""
    if value == 0:
        return "no difference"
    times = " times" if claim.scale == "log10" else ""
    return f"{size(claim, abs(value))}{times} {COMPARISONS[-1 if value < 0 else 1]}"


def size(claim: Claim, distance: float) -> str:
    """Write a distance in the unit of the claim's scale; of logarithms, as a factor."""
    if claim.scale != "log10":
        return number(distance)
    ratio = 10 ** min(distance, 300)
    if ratio >= 100:
        return number(ratio)
    return (
        f"{ratio:.1f}"
        if ratio >= 1.095
        else f"{ratio:.2f}"
        if ratio >= 1.005
        else f"{ratio:.3f}"
    )


def share(claim: Claim, delta: float) -> str:
    """Write Cliff's delta as the share of pairs on its side; ties count half."""
    sign = -1 if delta < 0 else 1
    side = (
        f"{SIDES[sign]} {number(claim.bound)}"
        if claim.kind == "bound"
        else COMPARISONS[sign]
    )
    return f"{side} in {percent(delta, delta):.0f} % of {_counted(claim)}"


def percent(effect: float, delta: float) -> float:
    """Convert a delta to the share of pairs, in percent, on the side of ``effect``."""
    return 50 * (1 + (-delta if effect < 0 else delta))


def number(value: float, digits: int = 3) -> str:
    """Write three significant digits, or as many as asked for.

    >>> number(0.01234), number(1234.5), number(0.99941, 4)
    ('0.0123', '1,230', '0.9994')
    """
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    if 1e-4 <= abs(value) < 1e6:
        rounded = float(f"{value:.{digits}g}")
        return (
            f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
        )
    return f"{value:.{digits - 1}e}"


def on_scale(claim: Claim, value: float) -> float:
    """Return the mean that lies ``value`` from the bound, on the claim's scale."""
    return (
        claim.bound * 10 ** min(value, 300)
        if claim.scale == "log10"
        else claim.bound + value
    )


def _at(claim: Claim, level: Level | None) -> str:
    """Write a level with the preposition it takes; a number needs its factor's name."""
    if isinstance(level, (int, float)) and not isinstance(level, bool):
        return f"at {words(claim.by)} {level:g}"
    return f"for {level}"


def _counted(claim: Claim) -> str:
    return "seeds" if claim.paired or claim.kind == "bound" else "pairs"


def _equality_text(claim: Claim, evidence: Evidence, *limits: float) -> str:
    effect = 100 * (evidence.effect or 0.0)
    apart = f"from one {words(claim.by)} to another"
    text = f"largest difference in {quantity(claim)} {apart} {effect:.3g} %"
    return (
        text
        if evidence.exact
        else f"{text} ({' to '.join(f'{100 * v:.3g}' for v in limits)} %)"
    )


def _tendency_text(claim: Claim, tau: float, *limits: float) -> str:
    """Describe the effect of a trend or a correlation.

    A direction is named only where the interval leaves no doubt about it.
    """
    other = words(claim.other or claim.by)
    low, high = limits or (tau, tau)
    if low <= 0 <= high:
        text = f"no clear tendency of {quantity(claim)} with {other}"
    else:
        text = f"{quantity(claim)} {'falling' if tau < 0 else 'rising'} with {other}"
    interval = f", {number(low)} to {number(high)}" if limits else ""
    return f"{text} (Kendall's tau {number(tau)}{interval})"


def _bound_text(claim: Claim, evidence: Evidence, *limits: float) -> str:
    """Write the mean beside its bound; no limits where the values do not vary."""
    effect = evidence.effect or 0.0
    if claim.scale == "ranks":
        one, two = sorted(percent(effect, value) for value in limits)
        return f"{quantity(claim)} {share(claim, effect)} ({one:.0f} to {two:.0f} %)"
    means = [on_scale(claim, value) for value in (effect, *limits)]
    digits = _digits(means, claim.bound)
    mean, *ends = (number(value, digits) for value in means)
    interval = f" ({' to '.join(ends)})" if ends else ""
    kind = (
        "geometric mean "
        if claim.scale == "log10"
        else ""
        if evidence.share
        else "mean "
    )
    return f"{kind}{quantity(claim)} {mean}{interval}; claimed: {claimed_bound(claim)}"


def _digits(values: Sequence[float], bound: float) -> int:
    """Count the digits it takes so that no value looks like the bound without being it.

    0.9994 is not 0.999.
    """
    others = [value for value in values if value != bound]
    return next(
        (
            n
            for n in (3, 4, 5)
            if number(bound, n) not in {number(v, n) for v in others}
        ),
        6,
    )


def _difference_text(claim: Claim, effect: float, *limits: float) -> str:
    if effect == 0:
        first, second = (_at(claim, level) for level in (claim.first, claim.second))
        text = f"no difference in {quantity(claim)} {first} and {second}"
    else:
        text = f"{quantity(claim)} {amount(claim, effect)} {compared(claim)}"
    if not limits:
        return text
    low, high = limits
    if low <= 0 <= high:
        return f"{text} ({amount(claim, low)} to {amount(claim, high)})"
    near, far = sorted((abs(low), abs(high)))
    return f"{text} ({size(claim, near)} to {size(claim, far)})"
