"""The networks that an experiment compares: by notation, and the user's own beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nablab.errors import UsageError
from nablab.models.dense_network import Activation
from nablab.models.factory import load_factory
from nablab.models.shaped import check_model, check_network, network
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import nn


class Learned(Protocol):
    """What networks must know of the data: a `nablab.data.Task` says it, or a `Form`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        ...

    @property
    def outputs(self) -> int:
        """Values per sample."""
        ...

    @property
    def train_samples(self) -> int:
        """Samples to train on."""
        ...


class Form(NamedTuple):
    """What networks must know of data that were changed on their way to them.

    Attributes:
        shape: Of one input.
        outputs: Values per sample.
        train_samples: Samples to train on.
    """

    shape: tuple[int, ...]
    outputs: int
    train_samples: int


@dataclass(frozen=True)
class Networks:
    """Networks by name, for inputs that a task decides.

    Attributes:
        specs: In the notation of `nablab.models.network`.
        own: The user's factory, as `load_factory` takes it, or None.
        activation: After every layer but the last, of those by notation.

    >>> Networks(("1-9-1",), own="mine.py:build").names
    ('1-9-1', 'yours')
    """

    specs: tuple[str, ...]
    own: str | None = None
    activation: Activation = "relu"

    @property
    def names(self) -> tuple[str, ...]:
        """What conditions call them, the user's own last."""
        return (*self.specs, YOURS) if self.own else self.specs

    def builder(self, name: str, task: Learned) -> Callable[[], nn.Module]:
        """Return a function that builds one fresh network.

        Args:
            name: One of `names`.
            task: Whose inputs it takes.
        """
        if name == YOURS and self.own is not None:
            return load_factory(self.own)
        shape, outputs = task.shape, task.outputs
        return lambda: network(
            name, shape=shape, outputs=outputs, activation=self.activation
        )

    def check(
        self,
        task: Learned,
        *,
        batch_sizes: Sequence[int | None] = (),
    ) -> None:
        """Refuse networks that do not take a task's inputs, or not its last batch.

        Args:
            task: What they are to learn.
            batch_sizes: Samples per step in the trainings to come; None for all.

        Raises:
            UsageError: There is none, or as `check_network` and `check_model`.
        """
        if not self.names:
            raise UsageError("There is no network to train: give at least one.")
        samples = task.train_samples
        for spec in self.specs:
            check_network(
                spec,
                shape=task.shape,
                outputs=task.outputs,
                samples=samples,
                batch_sizes=batch_sizes,
            )
        if self.own is not None:
            check_model(
                self.own,
                shape=task.shape,
                outputs=task.outputs,
                samples=samples,
                batch_sizes=batch_sizes,
            )
