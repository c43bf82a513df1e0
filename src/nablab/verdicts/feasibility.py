"""Which claims a number of seeds cannot decide, whatever they give.

Known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from nablab.contract import Claim, Condition, Level
from nablab.statistics.small_samples import ALPHA
from nablab.verdicts.floors import clearest_limit, floor_of
from nablab.verdicts.wording import sentence

MOST_SEEDS = 1_000
"""Beyond it the advice is to think again, not to buy seeds."""


@dataclass(frozen=True)
class Undecidable:
    """A claim that a number of seeds cannot decide, however clear their results are.

    Attributes:
        claim: The claim in words.
        seeds: The fewest seeds that could decide it; None if no number of them can.
    """

    claim: str
    seeds: int | None


def undecidable(
    claims: Sequence[Claim],
    conditions: Sequence[Condition],
    seeds: int,
    *,
    confidence: float = 0.95,
) -> list[Undecidable]:
    """List the claims that this number of seeds cannot decide, in their order.

    As in `judge`, p-values are held against 0.05 over the number of claims that are
    tested. Holm's correction eases as other claims are decided, so a claim named here
    may still come through beside others that are clear; nobody should plan on it.

    Args:
        claims: The claims of a configuration.
        conditions: Its conditions.
        seeds: Number of seeds of each condition.
        confidence: Of the intervals, two-sided.
    """
    cases = [case for claim in claims for case in _cases(claim, conditions)]
    level = ALPHA / max(1, len(cases))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    found = []
    for claim, scope, chosen in cases:
        decides = _decider(claim, chosen, level, z)
        if not decides(seeds):
            # More seeds never make it harder, so where the most do not suffice no
            # number does.
            more = range(seeds + 1, MOST_SEEDS) if decides(MOST_SEEDS) else ()
            fewest = next((number for number in more if decides(number)), None)
            found.append(Undecidable(sentence(claim, scope), fewest))
    return found


def _cases(
    claim: Claim, conditions: Sequence[Condition]
) -> Iterator[tuple[Claim, Mapping[str, Level], Sequence[Condition]]]:
    """Yield the tests that a claim makes over these conditions.

    There is none, one, or one per level of ``within``.
    """
    chosen = [condition for condition in conditions if condition.matches(claim.where)]
    scopes: list[dict[str, Level]] = [{}]
    if claim.within:
        levels = dict.fromkeys(c[claim.within] for c in chosen if claim.within in c)
        scopes = [{claim.within: level} for level in levels]
    for scope in scopes:
        own = [condition for condition in chosen if condition.matches(scope)]
        if _occurs(claim, own):
            yield claim, scope, own


def _occurs(claim: Claim, conditions: Sequence[Condition]) -> bool:
    """Tell whether there is anything to test; exact quantities need no test."""
    levels = {condition[claim.by] for condition in conditions if claim.by in condition}
    if claim.kind == "difference":
        return {claim.first, claim.second} <= levels
    if claim.kind in ("trend", "equality"):
        return len(levels) > 1 and not claim.exact
    return bool(conditions)


def _decider(
    claim: Claim, conditions: Sequence[Condition], level: float, z: float
) -> Callable[[int], bool]:
    """Return a test of whether the clearest results of n seeds would decide."""
    floor = floor_of(claim, conditions)
    levels = {condition[claim.by] for condition in conditions if claim.by in condition}

    def trials(seeds: int) -> int:
        """Count the trials of a trend (one per level and seed) or of a correlation."""
        if claim.kind == "trend":
            return seeds * len(levels)
        # Exchanged conditions are the units of a paired correlation, however many seeds
        # there are.
        return len(conditions) if claim.paired else seeds * len(conditions)

    def decides(seeds: int) -> bool:
        if seeds < 2 or floor(seeds) >= level:
            return False
        return clearest_limit(claim, seeds, trials(seeds), z) > claim.smallest_effect

    return decides
