"""What an experiment claims, what follows from it, and what others reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nablab.contract.conditions import Condition, Level
from nablab.settings.kinds import YOURS
from nablab.text.naming import sentence, words


@dataclass(frozen=True)
class Published:
    """A value that somebody else reported, to be printed beside the measured one.

    Attributes:
        value: The reported value of the claim's effect or metric.
        source: Where it was reported, in a few words.
        of: Whether ``value`` is the ``"effect"`` of the claim or the mean of its metric
            for ``first``.
    """

    value: float
    source: str
    of: Literal["effect", "metric"] = "effect"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A result that somebody else reported, for the table beside what is measured here.

    Attributes:
        who: Who reported it, in a few words, such as a paper's authors or "course A".
        quantity: What was measured, in words.
        value: What was reported: a number in the metric's unit, or a text where it is
            none, such as a range.
        setting: Data, network, training: what a reader must know to compare.
        seeds: How many seeds it rests on; None where that was not said.
        source: Where it stands, if ``who`` does not tell.
        metric: The recorded scalar that is the same quantity, or empty.
        where: The factor levels that the value belongs to.
        fields: The settings under which a value measured here is comparable, such as
            the data set.
    """

    who: str
    quantity: str
    value: float | str
    setting: str = ""
    seeds: int | None = None
    source: str = ""
    metric: str = ""
    where: Mapping[str, Level] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a claim means for its experiment's question, as parts of one sentence.

    The sentence can be read aloud.

    Attributes:
        supported: What follows if the claim is supported.
        refuted: What follows if it is refuted.
        open: What stays open if it is inconclusive, a phrase with "whether".
    """

    supported: str
    refuted: str
    open: str


Kind = Literal["difference", "trend", "correlation", "bound", "equality"]
Scale = Literal["linear", "log10", "ranks"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable sentence over records, with its statistic.

    It names the smallest effect of interest.

    Use the constructors: `less`, `greater`, `rises`, `falls`, `correlates`, `at_most`,
    `at_least`, `equal`.

    Attributes:
        kind: The statistic. ``difference``: first minus second level of a factor;
            ``trend``: Kendall's tau of the metric along a numeric factor;
            ``correlation``: Kendall's tau of two metrics; ``bound``: metric against a
            constant; ``equality``: two or more levels within a margin.
        metric: The scalar that is compared.
        sign: -1 if the claim says that the effect is negative, +1 if it says positive.
        by: The factor whose levels are compared (difference, trend, equality).
        first: The level that the claim is about (difference).
        second: The level that it is compared with (difference).
        other: The second metric (correlation).
        bound: The constant (bound).
        margin: The largest relative difference that counts as equal (equality).
        within: One verdict for every level of this factor, instead of one for all.
        where: Only records with these levels count.
        paired: Compare the same seed with the same seed. This is right only where
            trials of one seed share something that matters (weights, labels, order of
            batches).
        exact: The metric is a property of the condition and not of the seed, such as a
            number of parameters: equal values need no test (equality).
        scale: ``linear`` differences; ``log10`` for quantities that span decades (an
            effect of -1 is ten times less); ``ranks``: Cliff's delta, from -1 to 1, for
            values that may be infinite.
        smallest_effect: The smallest effect of interest, not negative, in units of
            ``scale``.
        sentence: The claim in words; made from the parts if empty.
        published: What somebody else reported.
        quantity: What the metric is in words, where its name does not tell a stranger.
        answer: What follows for the experiment's question; None for a claim that its
            answer leaves out.
    """

    kind: Kind
    metric: str
    sign: Literal[-1, 1] = 1
    by: str = ""
    first: Level | None = None
    second: Level | None = None
    other: str = ""
    bound: float = 0.0
    margin: float = 0.0
    within: str = ""
    where: Mapping[str, Level] = field(default_factory=dict)
    paired: bool = False
    exact: bool = False
    scale: Scale = "linear"
    smallest_effect: float = 0.0
    sentence: str = ""
    published: Published | None = None
    quantity: str = ""
    answer: Answer | None = None

    @classmethod
    def less(
        cls, metric: str, first: Level, second: Level, *, by: str, **options: Any
    ) -> Claim:
        """Claim that ``metric`` is lower at ``first`` than at ``second``.

        Both are levels of the factor ``by``.
        """
        return cls(
            kind="difference",
            metric=metric,
            sign=-1,
            by=by,
            first=first,
            second=second,
            **options,
        )

    @classmethod
    def greater(
        cls, metric: str, first: Level, second: Level, *, by: str, **options: Any
    ) -> Claim:
        """Claim that ``metric`` is higher at ``first`` than at ``second``.

        Both are levels of the factor ``by``.
        """
        return cls(
            kind="difference",
            metric=metric,
            sign=1,
            by=by,
            first=first,
            second=second,
            **options,
        )

    @classmethod
    def rises(cls, metric: str, *, by: str, **options: Any) -> Claim:
        """Claim that ``metric`` rises with ``by``, a numeric factor.

        The statistic is Kendall's tau.
        """
        return cls(kind="trend", metric=metric, sign=1, by=by, **options)

    @classmethod
    def falls(cls, metric: str, *, by: str, **options: Any) -> Claim:
        """Claim that ``metric`` falls as ``by``, a numeric factor, rises.

        The statistic is Kendall's tau.
        """
        return cls(kind="trend", metric=metric, sign=-1, by=by, **options)

    @classmethod
    def correlates(
        cls, metric: str, other: str, *, sign: Literal[-1, 1] = 1, **options: Any
    ) -> Claim:
        """Claim that two metrics rise together or oppose each other.

        They rise together if ``sign`` is 1, and oppose each other if it is -1.
        """
        return cls(kind="correlation", metric=metric, other=other, sign=sign, **options)

    @classmethod
    def at_most(cls, metric: str, bound: float, **options: Any) -> Claim:
        """Claim that the mean of ``metric`` is at most ``bound``."""
        return cls(kind="bound", metric=metric, sign=-1, bound=bound, **options)

    @classmethod
    def at_least(cls, metric: str, bound: float, **options: Any) -> Claim:
        """Claim that the mean of ``metric`` is at least ``bound``."""
        return cls(kind="bound", metric=metric, sign=1, bound=bound, **options)

    @classmethod
    def equal(cls, metric: str, *, by: str, margin: float, **options: Any) -> Claim:
        """Claim that ``metric`` is equal at all levels of ``by``.

        Between any two of them it differs by at most ``margin`` (relative).
        """
        return cls(kind="equality", metric=metric, by=by, margin=margin, **options)


def is_testable(claim: Claim, conditions: Sequence[Condition]) -> bool:
    """Tell whether these conditions have the levels that a claim is about.

    >>> claim = Claim.less("error", "deep", "shallow", by="model")
    >>> is_testable(claim, [Condition(model="deep"), Condition(model="wide")])
    False
    """
    fitting = [condition for condition in conditions if condition.matches(claim.where)]
    levels = {condition.get(claim.by) for condition in fitting}
    return bool(fitting) and {claim.first, claim.second} <= {*levels, None}


def on_own_network(
    claims: Sequence[Claim], conditions: Sequence[Condition]
) -> list[Claim]:
    """Make the same comparisons with the user's network in place of the first level.

    A claim that one network is better than another is made of the user's own, too, so
    that it gets a verdict beside the others.

    >>> claim = Claim.less("error", "deep", "shallow", by="model")
    >>> networks = [Condition(model=name) for name in ("deep", "shallow", "yours")]
    >>> [(own.first, own.second) for own in on_own_network([claim], networks)]
    [('yours', 'shallow')]
    """
    own: dict[Any, Claim] = {}
    for claim in claims:
        levels = {condition.get(claim.by) for condition in conditions}
        if claim.kind != "difference" or YOURS not in levels or claim.first == YOURS:
            continue
        where = tuple(claim.where.items())
        key = (claim.metric, claim.second, where, claim.within)
        said = _sentence_on_own(claim)
        own.setdefault(
            key, replace(claim, first=YOURS, sentence=said, published=None, answer=None)
        )
    return list(own.values())


def _sentence_on_own(claim: Claim) -> str:
    """Say that the user's network is better, and under which levels."""
    side = "lower" if claim.sign < 0 else "higher"
    levels = ", ".join(f"{words(name)} {level}" for name, level in claim.where.items())
    text = f"{claim.quantity or words(claim.metric)} is {side} for {YOURS} than for "
    return sentence(f"{text}{claim.second}{f' ({levels})' if levels else ''}")
