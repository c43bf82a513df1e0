"""Where an effect lies, as positions on one axis.

What a drawing of a verdict needs to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nablab.contract import Claim
from nablab.verdicts.effects import number
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.wording import threshold_text


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The axis on which an effect, its interval and the line that decides can be drawn.

    All positions are in the unit of the verdict's effect.

    Attributes:
        line: The line that decides: the smallest effect of interest with its sign, the
            bound, or the margin.
        side: On which side of the line the claim is true: 1 above, -1 below.
        line_text: The line in words, such as ``1.5 times lower``.
        zero_text: What an effect of 0 means in words, such as ``equal``, or the bound.
        published: What somebody else reported, where it can stand on this axis.
    """

    line: float
    side: Literal[-1, 1]
    line_text: str
    zero_text: str
    published: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Axis:
        """Read an axis that ``dataclasses.asdict`` wrote."""
        return cls(**content)


def axis_of(claim: Claim, evidence: Evidence) -> Axis | None:
    """Return the axis of a claim's effect, or None where nothing was measured."""
    if evidence.effect is None:
        return None
    return Axis(
        # Adding zero turns -0.0 into 0.0.
        line=claim.margin
        if claim.kind == "equality"
        else claim.sign * claim.smallest_effect + 0.0,
        side=-1 if claim.kind == "equality" else claim.sign,
        line_text=threshold_text(claim),
        zero_text=_zero_text(claim),
        published=_published(claim),
    )


def _zero_text(claim: Claim) -> str:
    if claim.kind == "bound":
        return number(claim.bound)
    return "0" if claim.kind in ("trend", "correlation") else "equal"


def _published(claim: Claim) -> float | None:
    """Place the published value on the axis of the effect.

    A metric's level has a place only beside its bound.
    """
    if claim.published is None:
        return None
    value = claim.published.value
    if claim.published.of == "effect":
        return value
    if claim.kind != "bound" or claim.scale == "ranks":
        return None
    if claim.scale == "log10":
        return math.log10(value / claim.bound) if value > 0 else None
    return value - claim.bound
