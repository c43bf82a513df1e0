"""The contract of nablab: what an experiment, a condition, a record and a claim are.

An experiment is one file in ``nablab/experiments``: a frozen dataclass that derives from
`Experiment`. Its docstring is its page, its fields are its configuration. This module imports
neither torch nor numpy, so that listing the experiments costs nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from nablab.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from nablab.plots import Figure
    from nablab.training import Learner, Recipe, Supervised, Training

Level = str | int | float | bool
Scalar = float | int | bool


class Condition(Mapping[str, Level]):
    """One combination of factor levels, such as ``model=deep, target=sinc``.

    A read-only mapping from factor to level, ordered as given, hashable and equal by content.

    >>> condition = Condition(model="deep", target="sinc")
    >>> condition["model"], str(condition)
    ('deep', 'model=deep, target=sinc')
    """

    __slots__ = ("_levels",)

    def __init__(self, **levels: Level) -> None:
        self._levels = levels

    def __getitem__(self, factor: str) -> Level:
        return self._levels[factor]

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __eq__(self, other: object) -> bool:
        # Of thousands of trials each is held against each condition: the mapping's own way takes seconds.
        return self._levels == (other._levels if isinstance(other, Condition) else other)

    def __hash__(self) -> int:
        return hash(frozenset(self._levels.items()))

    def __str__(self) -> str:
        return ", ".join(f"{factor}={level}" for factor, level in self._levels.items())

    def __repr__(self) -> str:
        return f"Condition({', '.join(f'{k}={v!r}' for k, v in self._levels.items())})"

    @property
    def slug(self) -> str:
        """A short name that is safe in a file name; not unique."""
        return re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(str(v) for v in self._levels.values()))[:40].strip("-")

    def matches(self, where: Mapping[str, Level]) -> bool:
        """Whether every factor in ``where`` stands at the given level here."""
        return all(factor in self and self[factor] == level for factor, level in where.items())


class Trial(NamedTuple):
    """One condition with one seed: the unit of storage and resumption.

    Attributes:
        condition: The factor levels.
        seed: Counted from 0.
    """

    condition: Condition
    seed: int


class Trials(Sequence[Trial]):
    """What one call of `Experiment.run` does: trials that may train in one batch.

    They differ by seed and by the factors in `Experiment.batch_over`, and by nothing else.

    Args:
        conditions: The conditions, which agree in all factors but those.
        seeds: The seeds of each condition.

    Attributes:
        condition: The levels that all trials share.
        conditions: The conditions.
        seeds: The seeds of each condition.

    >>> trials = Trials([Condition(network="small", beta=1.0), Condition(network="small", beta=4.0)], [0, 1])
    >>> str(trials.condition), trials.each("beta"), trials[2]
    ('network=small', (1.0, 1.0, 4.0, 4.0), Trial(condition=Condition(network='small', beta=4.0), seed=0))
    """

    def __init__(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> None:
        self.conditions, self.seeds = tuple(conditions), tuple(seeds)
        self.condition = shared_levels(self.conditions)
        self._trials = [Trial(condition, seed) for condition in conditions for seed in seeds]

    def __getitem__(self, index: Any) -> Any:
        return self._trials[index]

    def __len__(self) -> int:
        return len(self._trials)

    def each(self, factor: str) -> tuple[Any, ...]:
        """The level of a factor in each trial, which is what a number per trial takes."""
        return tuple(trial.condition[factor] for trial in self)


def shared_levels(conditions: Sequence[Condition]) -> Condition:
    """The factors, with their levels, in which conditions agree."""
    first = conditions[0]
    same = {
        factor: level
        for factor, level in first.items()
        if all(factor in other and other[factor] == level for other in conditions[1:])
    }
    return Condition(**same)


def text_of(conditions: Sequence[Condition]) -> str:
    """Conditions that train in one batch, in words: what they share, and the levels of the rest.

    >>> text_of([Condition(network="small", beta=1), Condition(network="small", beta=4)])
    'network=small, beta=1/4'
    """
    return ", ".join(f"{factor}={levels}" for factor, levels in levels_of(conditions).items())


def levels_of(conditions: Sequence[Condition]) -> dict[str, str]:
    """The levels of each factor as a text, several of them apart by slashes."""
    levels: dict[str, dict[str, None]] = {}
    for condition in conditions:
        for factor, level in condition.items():
            levels.setdefault(factor, {})[str(level)] = None
    return {factor: "/".join(found) for factor, found in levels.items()}


def grouped(conditions: Sequence[Condition], batch_over: Sequence[str]) -> list[tuple[Condition, ...]]:
    """The conditions in groups that differ by these factors alone, in the order of their first ones."""
    groups: dict[tuple[tuple[str, Level], ...], list[Condition]] = {}
    for condition in conditions:
        key = tuple((factor, level) for factor, level in condition.items() if factor not in batch_over)
        groups.setdefault(key, []).append(condition)
    return [tuple(group) for group in groups.values()]


class Curve(NamedTuple):
    """A quantity against training steps: two arrays of one length."""

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Record:
    """What one trial (one condition with one seed) left behind.

    Attributes:
        condition: The factor levels of the trial.
        seed: The trial's seed, counted from 0.
        scalars: One number per metric; NaN where it does not exist, infinity where a
            threshold was never reached.
        notes: Short texts, such as why training stopped.
        curves: Quantities against steps; read from the store when first asked for.
        arrays: Further arrays, such as predictions; read when first asked for.
        weights: Kept tensors by name, then by their names in the network; read when first asked for.
        weights_left_out: Bytes of the weights that were too large to be kept, by name.
    """

    condition: Condition
    seed: int
    scalars: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    weights_left_out: Mapping[str, int] = field(default_factory=dict)


class Records(Sequence[Record]):
    """The records of a run, ordered by condition as the experiment lists them, then by seed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def where(self, **levels: Level) -> Records:
        """The records whose condition has all these levels."""
        return Records(record for record in self if record.condition.matches(levels))

    def levels(self, factor: str) -> list[Level]:
        """The levels of a factor, in the order in which they first occur."""
        return list(dict.fromkeys(r.condition[factor] for r in self if factor in r.condition))

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, in the order in which they first occur."""
        return list(dict.fromkeys(record.condition for record in self))

    @property
    def metrics(self) -> list[str]:
        """The names of all scalars, in the order in which they first occur."""
        return list(dict.fromkeys(metric for record in self for metric in record.scalars))

    def values(self, metric: str) -> list[float]:
        """One value per record that has the metric."""
        return [record.scalars[metric] for record in self if metric in record.scalars]


@dataclass(frozen=True)
class Published:
    """A value that somebody else reported, to be printed beside the measured one.

    Attributes:
        value: The reported value of the claim's effect or metric.
        source: Where it was reported, in a few words.
        of: Whether ``value`` is the ``"effect"`` of the claim or the mean of its metric for ``first``.
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
        value: What was reported: a number in the metric's unit, or a text where it is none, such as a range.
        setting: Data, network, training: what a reader must know to compare.
        seeds: How many seeds it rests on; None where that was not said.
        source: Where it stands, if ``who`` does not tell.
        metric: The recorded scalar that is the same quantity, or empty.
        where: The factor levels that the value belongs to.
        fields: The settings under which a value measured here is comparable, such as the data set.
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
    """What a claim means for its experiment's question, as parts of a sentence that can be read aloud.

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
    """One testable sentence over records, with its statistic and smallest effect of interest.

    Use the constructors: `less`, `greater`, `rises`, `falls`, `correlates`, `at_most`, `at_least`, `equal`.

    Attributes:
        kind: The statistic. ``difference``: first minus second level of a factor; ``trend``:
            Kendall's tau of the metric along a numeric factor; ``correlation``: Kendall's tau of two
            metrics; ``bound``: metric against a constant; ``equality``: two or more levels within a margin.
        metric: The scalar that is compared.
        sign: -1 if the claim says that the effect is negative, +1 if it says positive.
        by: The factor whose levels are compared (difference, trend, equality).
        first: The level that the claim is about (difference).
        second: The level that it is compared with (difference).
        other: The second metric (correlation).
        bound: The constant (bound).
        margin: The largest relative difference that counts as equal (equality).
        within: One verdict for every level of this factor, instead of one for all.
        where: Only records with these levels.
        paired: Compare the same seed with the same seed. Only where trials of one seed share
            something that matters (weights, labels, order of batches).
        exact: The metric is a property of the condition and not of the seed, such as a number of
            parameters: equal values need no test (equality).
        scale: ``linear`` differences; ``log10`` for quantities that span decades (an effect of -1 is
            ten times less); ``ranks``: Cliff's delta, from -1 to 1, for values that may be infinite.
        smallest_effect: The smallest effect of interest, not negative, in units of ``scale``.
        sentence: The claim in words; made from the parts if empty.
        published: What somebody else reported.
        quantity: What the metric is in words, where its name does not tell a stranger.
        answer: What follows for the experiment's question; None for a claim that its answer leaves out.
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
    def less(cls, metric: str, first: Level, second: Level, *, by: str, **options: Any) -> Claim:
        """``metric`` is lower at level ``first`` of factor ``by`` than at level ``second``."""
        return cls(kind="difference", metric=metric, sign=-1, by=by, first=first, second=second, **options)

    @classmethod
    def greater(cls, metric: str, first: Level, second: Level, *, by: str, **options: Any) -> Claim:
        """``metric`` is higher at level ``first`` of factor ``by`` than at level ``second``."""
        return cls(kind="difference", metric=metric, sign=1, by=by, first=first, second=second, **options)

    @classmethod
    def rises(cls, metric: str, *, by: str, **options: Any) -> Claim:
        """``metric`` rises with the numeric factor ``by`` (Kendall's tau)."""
        return cls(kind="trend", metric=metric, sign=1, by=by, **options)

    @classmethod
    def falls(cls, metric: str, *, by: str, **options: Any) -> Claim:
        """``metric`` falls as the numeric factor ``by`` rises (Kendall's tau)."""
        return cls(kind="trend", metric=metric, sign=-1, by=by, **options)

    @classmethod
    def correlates(cls, metric: str, other: str, *, sign: Literal[-1, 1] = 1, **options: Any) -> Claim:
        """``metric`` and ``other`` rise together (sign 1) or oppose each other (sign -1)."""
        return cls(kind="correlation", metric=metric, other=other, sign=sign, **options)

    @classmethod
    def at_most(cls, metric: str, bound: float, **options: Any) -> Claim:
        """The mean of ``metric`` is at most ``bound``."""
        return cls(kind="bound", metric=metric, sign=-1, bound=bound, **options)

    @classmethod
    def at_least(cls, metric: str, bound: float, **options: Any) -> Claim:
        """The mean of ``metric`` is at least ``bound``."""
        return cls(kind="bound", metric=metric, sign=1, bound=bound, **options)

    @classmethod
    def equal(cls, metric: str, *, by: str, margin: float, **options: Any) -> Claim:
        """``metric`` differs by at most ``margin`` (relative) between any two levels of ``by``."""
        return cls(kind="equality", metric=metric, by=by, margin=margin, **options)


class Seeds(Protocol):
    """The part of a lab from which all randomness comes."""

    def seed(self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None) -> int:
        """A 63-bit integer from hash(experiment, factors, seed, purpose).

        Args:
            trial: The trial.
            purpose: What the randomness is for: ``"weights"``, ``"labels"``.
            by: The factors that count. None for all: nothing is shared between conditions. With ``()``
                conditions share the randomness of a seed, for a paired comparison.
        """
        ...

    def shared_seed(self, purpose: str) -> int:
        """The same for all trials of the experiment: a split of the data, one common start."""
        ...

    def rng(self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None) -> np.random.Generator:
        """NumPy's generator that starts from `seed` with the same arguments."""
        ...


class Lab(Seeds, Protocol):
    """What an experiment sees of the laboratory: no store, no device, no executor, no screen."""

    def train(
        self, learner: Learner | Supervised, data: Any, recipe: Recipe, *, seeds: Sequence[int]
    ) -> Training:
        """`nablab.training.train` on the lab's device, with its progress, checkpoints and stop key.

        ``seeds`` are integers from `seed`, one per trial. They say whose weights a training leaves: those are
        kept with the trial, up to a size that the run sets, as ``final`` and ``best``; of the trial's second
        network as ``final-2`` and ``best-2``, and so on.
        """
        ...

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """Count the steps of a loop of the experiment's own, whatever it computes with.

        Between two steps the laboratory shows the progress, saves the state about every 30 seconds, and
        looks whether the user asked to stop; it then saves, and the same command goes on from there. A dry
        run takes a few steps and reckons the rest. Loops may follow one another, and may lie in one another.

        A loop that is taken up again, and one that ended before, finds its ``state`` as it was, and what
        its body kept with `record`, `curve`, `log` and `array`. Everything else that the body changes and
        somebody reads later must be in ``state``; what a step needs it takes from its number.

        Args:
            total: The steps; the last one is ``total - 1``. The body may ``break``.
            state: What the body changes: an object with ``state_dict()`` and ``load_state_dict(state)`` (a
                network, an optimizer), a dataclass that is not frozen, a generator of random numbers; or a
                mapping of names to such objects, ``{}`` if there is nothing. What they give is made of
                mappings, lists, tuples, arrays, tensors, numbers, strings, truth values and None. Without
                a state the loop is shown and stops all the same, and starts over when it is taken up.
            name: What messages call the loop.

        Yields:
            0 to ``total - 1``; from where it was left if it is taken up again.

        Raises:
            UsageError: ``state`` holds something that cannot be saved; the text names the entry.
            Interrupted: The user asked to stop; the loop was saved.
        """
        ...

    def budget(self, amount: int) -> int:
        """The amount of work to hand to a library's own loop, such as scikit-learn's ``max_iter``.

        In a run it is ``amount``, in a dry run a small share: the time from this call until something is
        kept or another loop begins is then taken as many times. So call it just before the library's work,
        and `record` what came out just after it.

        Args:
            amount: The whole amount, a whole number of 1 or more.
        """
        ...

    def record(self, trial: Trial, **values: Scalar | str) -> None:
        """Keep numbers (metrics) and short texts (notes) of a trial."""
        ...

    def curve(self, trial: Trial, name: str, steps: Any, values: Any) -> None:
        """Keep a quantity against training steps."""
        ...

    def log(self, trial: Trial, step: int, **values: float) -> None:
        """Keep one point of a curve, or of several by name; for loops that find their curves step by step.

        The steps of a curve count up from 0 or any later number. A loop that is resumed by `steps` finds
        the points that it logged before, so that the curve has no gap and no point twice.

        Raises:
            UsageError: The curve has a point of this or a later step.
        """
        ...

    def array(self, trial: Trial, name: str, values: Any) -> None:
        """Keep an array; numeric, no Python objects."""
        ...

    def weights(self, trial: Trial, name: str, tensors: Mapping[str, Any] | nn.Module) -> None:
        """Keep weights with a trial, whatever their size; ``run.weights(condition, seed, name)`` gives them.

        What `train` leaves is kept without this.

        Args:
            trial: The trial.
            name: Small letters, digits, ``-`` and ``_``. Weights of an earlier call of this name give way.
            tensors: Tensors or arrays by name, or a module, whose ``state_dict()`` is taken. They are copied.

        Raises:
            UsageError: The name or a tensor cannot be kept.
        """
        ...

    def note(self, text: str) -> None:
        """Say something to the user once: an automatic choice, a caveat. It stays in the report."""
        ...


@dataclass(frozen=True)
class Experiment:
    """One question, one file. Subclasses are frozen dataclasses; the docstring is their page.

    Class attributes that a subclass sets:
        name: The name on the command line, in kebab case; made from the class name if not set.
        batch_over: Factors whose levels may train in one batch; the trials of one call of `run` then differ
            by them, too.
        version: Raise it when a change of the code changes the results.
        presets: Field overrides by name; every experiment has ``quick``, ``standard`` and ``paper``.
            The key ``seeds`` sets the number of seeds of that preset.
        claims: What is tested, the most important first.
        reported: What others reported, a row each.
        undecided: By preset: why some of its claims cannot be decided with its number of seeds.
        exercises: Questions for a student, each one sentence or two.
        references: Papers and courses, each one line.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    batch_over: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {}, "standard": {}, "paper": {}}
    claims: ClassVar[tuple[Claim, ...]] = ()
    reported: ClassVar[tuple[Reported, ...]] = ()
    undecided: ClassVar[Mapping[str, str]] = {}
    exercises: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def question(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0]

    def validate(self) -> None:
        """Raise `nablab.errors.UsageError` for field values that make no sense together."""

    def conditions(self) -> list[Condition]:
        """The conditions to run, in the order in which reports show them."""
        raise NotImplementedError(f"{type(self).__name__} must define conditions()")

    def groups(self) -> list[tuple[Condition, ...]]:
        """The conditions in groups that may train in one batch: the units of work."""
        return grouped(self.conditions(), self.batch_over)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Run these trials and keep the outcome of each with ``lab.record``."""
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    def network_of(self, condition: Condition) -> nn.Module:
        """Build a fresh network of a condition, for `nablab.runs.Run.model` to put kept weights into.

        Optional. It has the names and shapes of what ``lab.train`` was given, whatever its own weights are.

        Raises:
            UsageError: The experiment does not define it, or trains no network in this condition.
        """
        raise UsageError(
            f"{self.name} does not say how its networks are built: give {type(self).__name__} a method "
            "network_of(condition) that returns one. Run.weights gives the tensors without it."
        )

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Give the loss and the samples that the network of a trial was trained on, for ``measure --run``.

        Optional.

        Args:
            trial: The trial.
            lab: Gives the seeds that `run` was given.

        Returns:
            A loss as instruments take it, and inputs, prepared as the network takes them, with targets.

        Raises:
            UsageError: The experiment does not define it.
        """
        raise UsageError(
            f"{self.name} does not say what its networks were trained on: give --data, or give "
            f"{type(self).__name__} a method objective(trial, lab)."
        )

    def figures(self, records: Records) -> dict[str, Figure]:
        """The figures of the report, by name, in order. Records may be incomplete."""
        return {}

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Trivial baselines and ceilings: metric, then name of the baseline, then value."""
        return {}

    def sources(self) -> Mapping[str, str]:
        """Hashes of a user's files that the results depend on, by name; part of the run's identity."""
        return {}

    def data_sets(self) -> tuple[str, ...]:
        """The data sets that the run reads, by name or path, as the settings write them (``mnist@10000``).

        They are fetched before the first trial, and the report's title names them.
        """
        return ()

    def active_claims(self) -> tuple[Claim, ...]:
        """The claims that this configuration can test; all of them unless overridden."""
        return self.claims

    def configuration(self) -> dict[str, Any]:
        """The resolved fields, as plain JSON types."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into dicts and lists that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value
