"""What an experiment is: one question, one file, a frozen dataclass."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nablab.contract.claims import Claim, Reported, is_testable, on_own_network
from nablab.contract.conditions import Condition, Trial, Trials, grouped
from nablab.contract.figure import Figure
from nablab.contract.laboratory import Lab, Seeds
from nablab.contract.needs import Needs
from nablab.contract.records import Records
from nablab.errors import UsageError
from nablab.settings.kinds import data_sets_of, sources_of
from nablab.text.docstrings import summary

if TYPE_CHECKING:
    from torch import Tensor, nn


TOPICS = (
    "from scratch",
    "optimization",
    "generalization",
    "images",
    "codes",
    "text",
    "generation",
)
"""The topics of nablab's own experiments, in the order of lists."""


@dataclass(frozen=True)
class Experiment:
    """One question, one file.

    Subclasses are frozen dataclasses; the docstring is their page.

    Class attributes that a subclass sets:
        name: The name on the command line, in kebab case; made from the class name if
            not set.
        topic: Where lists show it: one of `TOPICS`, or a word of your own.
        batch_over: Factors whose levels may train in one batch; the trials of one call
            of `run` then differ by them, too.
        needs: Weights that it takes from other experiments with `Lab.weights_of`.
        version: Raise it when a change of the code changes the results.
        presets: Field overrides by name; every experiment has ``quick``, ``standard``
            and ``paper``. The key ``seeds`` sets the number of seeds of that preset.
        claims: What is tested, the most important first.
        reported: What others reported, a row each.
        undecided: By preset: why some of its claims cannot be decided with its number
            of seeds.
        exercises: Questions for a student, each one sentence or two.
        references: Papers and courses, each one line.
    """

    name: ClassVar[str] = ""
    topic: ClassVar[str] = "other"
    version: ClassVar[int] = 1
    batch_over: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[Needs, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {},
        "standard": {},
        "paper": {},
    }
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
        """Return the first paragraph of the docstring."""
        return summary(cls.__doc__)

    def validate(self) -> None:
        """Refuse field values that make no sense together.

        Raises:
            UsageError: Some of them contradict each other; the text says which.
        """

    def conditions(self) -> list[Condition]:
        """Return the conditions to run, in the order in which reports show them."""
        raise NotImplementedError(f"{type(self).__name__} must define conditions()")

    def groups(self) -> list[tuple[Condition, ...]]:
        """Put conditions that may train in one batch into groups: the units of work."""
        return grouped(self.conditions(), self.batch_over)

    def run(self, trials: Trials, lab: Lab) -> None:
        """Run these trials and keep the outcome of each with ``lab.record``."""
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    def network_of(self, condition: Condition) -> nn.Module:
        """Build a fresh network of a condition.

        `nablab.runs.Run.model` puts kept weights into it. An experiment need not define
        this. The network has the names and shapes of what ``lab.train`` was given,
        whatever its own weights are.

        Raises:
            UsageError: The experiment does not define it, or trains no network in this
                condition.
        """
        raise UsageError(
            f"{self.name} does not say how its networks are built: give "
            f"{type(self).__name__} a method network_of(condition) that returns one. "
            "Run.weights gives the tensors without it."
        )

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Return the loss and the samples that the network of a trial was trained on.

        ``measure --run`` asks for them. An experiment need not define this.

        Args:
            trial: The trial.
            lab: What gives the seeds that `run` was given.

        Returns:
            A loss as instruments take it, and inputs, prepared as the network takes
            them, with targets.

        Raises:
            UsageError: The experiment does not define it.
        """
        raise UsageError(
            f"{self.name} does not say what its networks were trained on: give --data, "
            f"or give {type(self).__name__} a method objective(trial, lab)."
        )

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw the figures of the report, by name, in order.

        An experiment that does not define it gets plain ones: each curve against steps,
        and dots over the seeds for each number that a claim is about.

        Args:
            records: The trials; they may be incomplete.
        """
        return {}

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Give trivial baselines and ceilings.

        Each metric has values by the name of the baseline.
        """
        return {}

    def sources(self) -> Mapping[str, str]:
        """Hash the user's files that the results depend on; return the hashes by name.

        They are part of the run's identity.
        """
        return sources_of(self)

    def data_sets(self) -> tuple[str, ...]:
        """Name the data sets that the run reads.

        They are given by name or path, as the settings write them (``mnist@10000``).
        They are fetched before the first trial, and the report's title names them.
        """
        return data_sets_of(self)

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the claims whose levels this configuration runs.

        A claim that one network is better than another is made of the user's own
        network, too.
        """
        conditions = self.conditions()
        claims = [claim for claim in self.claims if is_testable(claim, conditions)]
        return (*claims, *on_own_network(claims, conditions))

    def active_needs(self) -> tuple[Needs, ...]:
        """Return those of the `needs` that this configuration takes; all of them here."""
        return self.needs

    def configuration(self) -> dict[str, Any]:
        """Return the resolved fields, as plain JSON types."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into dicts and lists that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value
