"""The answer to an experiment's question, made from its verdicts.

It is one or two sentences.

What was decided comes first, what stays open second, with the reason. Every word stands
in a claim: nothing here knows an experiment, and the same verdicts give the same
sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nablab.contract import Level
from nablab.text.naming import sentence, words

if TYPE_CHECKING:
    from nablab.verdicts.judging import Outcome, Verdict

CLAIMS_NAMED = 2
"""How many claims of one outcome are named where no claim speaks of the question."""


def answer(verdicts: Sequence[Verdict]) -> str:
    """Answer the question in one or two sentences.

    The answer is made of the claims that say what they mean for the question; where
    none does, of the first claims.

    Args:
        verdicts: Those of all claims, in their order.

    Returns:
        One or two sentences; empty without a verdict.
    """
    speaking = [verdict for verdict in verdicts if verdict.answer]
    if not speaking:
        return _from_claims(verdicts)
    decided = _parts(speaking, "supported", "refuted")
    undecided = _parts(speaking, "inconclusive")
    sentences = [f"{sentence(_joined(decided))}."] if decided else []
    if undecided:
        begin = "It stays open" if decided else "These seeds do not tell"
        sentences.append(f"{begin} {_joined(undecided)}.")
    return " ".join(sentences)


def shared_scope(verdicts: Sequence[Verdict]) -> dict[str, Level]:
    """Return the scope of the claims if all share one, so that it is said only once."""
    scopes = [dict(verdict.scope) for verdict in verdicts]
    return (
        scopes[0]
        if len(scopes) > 1 and all(scope == scopes[0] for scope in scopes)
        else {}
    )


def _parts(verdicts: Sequence[Verdict], *outcomes: Outcome) -> list[str]:
    """List the phrases of these outcomes in the order of the claims.

    Equal phrases appear once, with all their scopes.
    """
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome in outcomes:
            groups.setdefault(verdict.answer, []).append(verdict)
    levels = {factor: _levels(verdicts, factor) for factor in _factors(verdicts)}
    ambiguous = {factor: found for factor, found in levels.items() if len(found) > 1}
    return [f"{phrase}{_remark(group, ambiguous)}" for phrase, group in groups.items()]


def _remark(group: Sequence[Verdict], ambiguous: Mapping[str, Sequence[Level]]) -> str:
    """Say in brackets for which levels this holds, and what it takes to know more.

    Args:
        group: The verdicts that say the same.
        ambiguous: The factors that have several levels, with all of them.
    """
    kinds: dict[str, list[Verdict]] = {}
    for verdict in group:
        # Numbers of seeds differ from level to level, and the largest serves for all.
        kinds.setdefault("" if verdict.seeds_needed else verdict.advice, []).append(
            verdict
        )
    parts = [
        part
        for alike in kinds.values()
        if (part := _scope_and_advice(alike, ambiguous))
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _scope_and_advice(
    alike: Sequence[Verdict], ambiguous: Mapping[str, Sequence[Level]]
) -> str:
    scopes = []
    for factor in _factors(alike):
        if factor in ambiguous:
            levels = _levels(alike, factor)
            every = len(levels) == len(ambiguous[factor])
            named = f"{words(factor)} {_listed([str(level) for level in levels])}"
            scopes.append(f"every {words(factor)}" if every else named)
    advice = [max(alike, key=lambda verdict: verdict.seeds_needed or 0).advice]
    return ": ".join(part for part in (", ".join(scopes), *advice) if part)


def _from_claims(verdicts: Sequence[Verdict]) -> str:
    headings: Mapping[Outcome, str] = {
        "supported": "Supported",
        "refuted": "Refuted",
        "inconclusive": "Open",
    }
    shared = shared_scope(verdicts)
    sentences = []
    for outcome, word in headings.items():
        claims = [
            bare_claim(verdict, shared)
            for verdict in verdicts
            if verdict.outcome == outcome
        ]
        if claims:
            rest = len(claims) - CLAIMS_NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            sentences.append(f"{word}: {'; '.join(claims[:CLAIMS_NAMED])}{more}.")
    return " ".join(sentences)


def bare_claim(verdict: Verdict, shared: Mapping[str, Level]) -> str:
    """Write the claim without its period and without the scope that all share."""
    claim = verdict.claim.rstrip(".")
    unnamed = [f"{words(factor)} {level}" for factor, level in verdict.scope.items()]
    suffix = f" ({', '.join(unnamed)})"
    if shared:
        return claim.removesuffix(suffix)
    named = all(str(level) in claim for level in verdict.scope.values())
    return claim if named or not unnamed else f"{claim}{suffix}"


def _factors(verdicts: Sequence[Verdict]) -> list[str]:
    return list(
        dict.fromkeys(factor for verdict in verdicts for factor in verdict.scope)
    )


def _levels(verdicts: Sequence[Verdict], factor: str) -> list[Level]:
    return list(dict.fromkeys(v.scope[factor] for v in verdicts if factor in v.scope))


def _joined(phrases: Sequence[str]) -> str:
    """Join phrases to one sentence; some hold commas of their own.

    >>> _joined(["one falls", "two rises", "three, too, is open"])
    'one falls; two rises; and three, too, is open'
    """
    *most, last = phrases
    return f"{'; '.join(most)}; and {last}" if most else last


def _listed(names: Sequence[str]) -> str:
    """List words with commas and an "and" before the last.

    >>> _listed(["sinc", "sawtooth", "sign_sin"])
    'sinc, sawtooth and sign_sin'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
