"""What an experiment sees of the laboratory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nablab.contract.conditions import Trial
from nablab.contract.needs import Needs
from nablab.contract.records import Scalar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from nablab.training import Learner, Recipe, Supervised, Training

Item = TypeVar("Item")


class Seeds(Protocol):
    """The part of a lab from which all randomness comes."""

    def seed(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> int:
        """Derive a 63-bit integer from hash(experiment, factors, seed, purpose).

        Args:
            trial: The trial.
            purpose: What the randomness is for: ``"weights"``, ``"labels"``.
            by: The factors that count. With None all do: nothing is shared between
                conditions. With ``()`` conditions share the randomness of a seed, for a
                paired comparison.
        """
        ...

    def shared_seed(self, purpose: str) -> int:
        """Derive a seed that is the same for all trials of the experiment.

        It is for a split of the data, or for one common start.
        """
        ...

    def rng(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> np.random.Generator:
        """Make a NumPy generator that starts from `seed` with the same arguments."""
        ...


class Lab(Seeds, Protocol):
    """What an experiment sees of the laboratory.

    It sees no store, no device, no executor and no screen.
    """

    def train(
        self,
        learner: Learner | Supervised,
        data: Any,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
        starts: Sequence[int] | None = None,
    ) -> Training:
        """Train on the lab's device, as `nablab.training.train` does.

        The lab adds its progress, checkpoints and stop key.

        ``seeds`` are integers from `seed`, one per trial. They say whose weights a
        training leaves: those are kept with the trial, up to a size that the run sets,
        as ``final`` and ``best``; of the trial's second network as ``final-2`` and
        ``best-2``, and so on. ``starts`` are the seeds of the first weights, where
        these differ from ``seeds``.
        """
        ...

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """Count the steps of a loop of the experiment's own, whatever it computes with.

        Between two steps the laboratory shows the progress, saves the state about every
        30 seconds, and looks whether the user asked to stop; it then saves, and the
        same command goes on from there. A dry run takes a few steps and estimates the
        rest. Loops may follow one another, and may be nested.

        A loop that is taken up again, and one that ended before, finds its ``state`` as
        it was, and what its body kept with `record`, `curve`, `log` and `array`.
        Everything else that the body changes and somebody reads later must be in
        ``state``; whatever else a step needs must follow from its number.

        Args:
            total: The steps; the last one is ``total - 1``. The body may ``break``.
            state: What the body changes: an object with ``state_dict()`` and
                ``load_state_dict(state)`` (a network, an optimizer), a dataclass that
                is not frozen, a generator of random numbers; or a mapping of names to
                such objects, ``{}`` if there is nothing. What they give is made of
                mappings, lists, tuples, arrays, tensors, numbers, strings, truth values
                and None. Without a state the loop is shown and stops all the same, and
                starts over when it is taken up.
            name: What messages call the loop.

        Yields:
            The steps 0 to ``total - 1``; the remaining ones if the loop is taken up
            again.

        Raises:
            UsageError: ``state`` holds something that cannot be saved; the text names
                the entry.
            Interrupted: The user asked to stop; the loop was saved.
        """
        ...

    def each(self, items: Iterable[Item], *, name: str = "") -> Iterator[Item]:
        """Go through items that each take a while, such as trained networks to measure.

        It is a loop of `steps` with nothing to save: between two items the laboratory
        shows, stops and saves what was kept, and goes on from there when it is taken
        up. A dry run takes the first item or two. What the body does with one item must
        not depend on what it did with another.

        Args:
            items: What to go through; all are made before the first is given.
            name: What messages call the loop.

        Yields:
            Each item; those that are left if the loop is taken up again.

        Raises:
            Interrupted: The user asked to stop; what is done was saved.
        """
        ...

    def budget(self, amount: int) -> int:
        """Return the amount of work to hand to a library's own loop.

        It is for options such as scikit-learn's ``max_iter``. In a run it is
        ``amount``. In a dry run it is a small share, and the time from this call until
        something is kept or another loop begins is scaled up to the whole amount. So
        call it just before the library's work, and `record` what came out just after
        it.

        Args:
            amount: The whole amount, a whole number of 1 or more.

        Returns:
            ``amount``, or in a dry run a share of it, 1 or more.
        """
        ...

    def record(self, trial: Trial, **values: Scalar | str) -> None:
        """Keep numbers (metrics) and short texts (notes) of a trial."""
        ...

    def curve(self, trial: Trial, name: str, steps: Any, values: Any) -> None:
        """Keep a quantity against training steps."""
        ...

    def log(self, trial: Trial, step: int, **values: float) -> None:
        """Keep one point of a curve, or of several by name.

        It is for loops that find their curves step by step.

        The steps of a curve count up from 0 or any later number. A loop that is resumed
        by `steps` finds the points that it logged before, so that the curve has no gap
        and no point twice.

        Raises:
            UsageError: The curve has a point of this or a later step.
        """
        ...

    def array(self, trial: Trial, name: str, values: Any) -> None:
        """Keep an array of numbers; it cannot hold Python objects."""
        ...

    def weights(
        self, trial: Trial, name: str, tensors: Mapping[str, Any] | nn.Module
    ) -> None:
        """Keep weights with a trial, whatever their size.

        ``run.weights(condition, seed, name)`` gives them.

        What `train` leaves is kept without this.

        Args:
            trial: The trial.
            name: Lowercase letters, digits, ``-`` and ``_``. Weights of an earlier call
                with this name are replaced.
            tensors: Tensors or arrays by name, or a module, whose ``state_dict()`` is
                taken. They are copied.

        Raises:
            UsageError: The name or a tensor cannot be kept.
        """
        ...

    def weights_of(self, needed: Needs, trial: Trial) -> Mapping[str, Tensor]:
        """Give the weights that another experiment left, for the trial with this seed.

        Which run they come from was settled before the run began; its id is part of
        this run's identity, and a note in the report names it.

        Args:
            needed: One of the experiment's `Experiment.needs`.
            trial: The trial that takes them.

        Returns:
            Copies of the tensors, on the CPU, by their names in the other experiment's
            network.

        Raises:
            UsageError: `Experiment.needs` does not list it, or the run is gone.
        """
        ...

    def note(self, *texts: str) -> None:
        """Say something to the user once: an automatic choice, a caveat.

        It stays in the report.
        """
        ...
