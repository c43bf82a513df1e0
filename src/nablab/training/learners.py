"""Learners: whatever takes a step on a batch, with one network or several.

A learner says how one trial starts and what a step does. Which samples a step gets, the
schedule, the evaluations, checkpoints, stopping and the replicas are the loop's
business: a learner writes no code for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.training.arguments import check_builder
from nablab.training.engine import Loss
from nablab.training.moments import Moment

# what a data set gives for some indices: tensors in dictionaries, tuples and lists
Batch = Any
Values = Mapping[str, Tensor | tuple[Tensor, Tensor]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class State:
    """One trial's networks and optimizers: all that a checkpoint keeps of it.

    Attributes:
        net: The network; several are the children of one `torch.nn.ModuleDict`.
        optimizers: By a name of the learner's choice.
    """

    net: nn.Module
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)


class Learner:
    """Anything that learns from batches.

    Derive from it and define `start`, `step` and `evaluate`.

    Attributes:
        batches_per_step: How many batches `step` gets: a GAN with five critic steps
            takes six.
    """

    batches_per_step: int = 1

    def start(self, optimizer: MakeOptimizer) -> State:
        """Make the networks of one trial.

        Called as if after ``torch.manual_seed(seed)``.

        Args:
            optimizer: Makes the recipe's optimizer for parameters, with this trial's
                numbers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define start()")

    def step(
        self, state: State, batches: tuple[Batch, ...], moment: Moment
    ) -> Mapping[str, Tensor]:
        """Take one step in place, networks in training mode.

        Learning rates are the schedule's already. Draw random numbers from ``moment``.

        Args:
            state: What `start` made for this trial.
            batches: As many as `batches_per_step` says.
            moment: The step, the trial's numbers and its random numbers.

        Returns:
            Scalars by name, the same names at every step; the first one is the loss
            that progress shows. A value that is not finite ends the trial as diverged.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def evaluate(self, state: State, batch: Batch, moment: Moment) -> Values:
        """Measure a batch of an evaluated set, in evaluation mode, without gradients.

        Args:
            state: What `start` made for this trial.
            batch: Samples of the evaluated set.
            moment: The trial's numbers and its random numbers.

        Returns:
            By name, the mean over the batch's samples, or a pair (sum, count) where the
            mean over a set is not that over its samples, such as a loss per token.
            Evaluated as ``"<set>_<name>"``.
        """
        return {}

    def outputs(self, state: State, batch: Batch, moment: Moment) -> Any:
        """Compute what the recipe's metrics score.

        The networks are in evaluation mode, without gradients.

        Args:
            state: What `start` made for this trial.
            batch: Samples of the evaluated set.
            moment: The trial's numbers and its random numbers.
        """
        raise UsageError(
            f"{type(self).__name__} does not define its outputs, so the recipe's "
            "metrics have nothing to score. Define outputs(state, batch, moment)."
        )


@dataclass(frozen=True)
class Minimize(Learner):
    """One network, one optimizer and any loss.

    Autoencoders, variational ones, sequence models, penalties.

    Where `torch.func.vmap` can run the loss, all trials of a condition are computed as
    one batch, with one number of ``moment.hyper`` for each. That needs random numbers
    from ``moment.normal`` and ``moment.uniform``, batches of one shape, and a network
    without buffers.

    Attributes:
        build: Makes one untrained network.
        loss: ``loss(net, batch, moment)`` gives scalar means over the batch by name;
            ``"loss"`` is minimized, the others become curves. It is evaluated in
            evaluation mode on held-out sets.
        clip_norm: The largest Euclidean norm of a gradient; longer ones are scaled to
            it.
        read: ``read(net, batch)`` gives what metrics score; by default
            ``net(batch["x"])``.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch, Moment], Mapping[str, Tensor]]
    clip_norm: float | None = None
    read: Callable[[nn.Module, Batch], Any] | None = None

    def __post_init__(self) -> None:
        check_builder(self.build)

    def start(self, optimizer: MakeOptimizer) -> State:
        """See `Learner.start`."""
        net = self.build()
        return State(net, {"": optimizer(net.parameters())})

    def step(
        self, state: State, batches: tuple[Batch, ...], moment: Moment
    ) -> Mapping[str, Tensor]:
        """See `Learner.step`."""
        optimizer = state.optimizers[""]
        optimizer.zero_grad()
        values = self.named_losses(state.net, batches[0], moment)
        # A loss that is not finite is reported, and would only spoil the weights.
        if math.isfinite(values["loss"].item()):
            values["loss"].backward()  # type: ignore[no-untyped-call]
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(state.net.parameters(), self.clip_norm)
            optimizer.step()
        return {name: value.detach() for name, value in values.items()}

    def evaluate(self, state: State, batch: Batch, moment: Moment) -> Values:
        """See `Learner.evaluate`."""
        return self.named_losses(state.net, batch, moment)

    def outputs(self, state: State, batch: Batch, moment: Moment) -> Any:
        """See `Learner.outputs`."""
        return (
            state.net(batch["x"]) if self.read is None else self.read(state.net, batch)
        )

    def named_losses(
        self, net: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Compute the loss and what stands beside it, the loss first.

        Raises:
            UsageError: The function gives no mapping with the entry ``"loss"``, or no
                scalars.
        """
        found = self.loss(net, batch, moment)
        if not isinstance(found, Mapping) or "loss" not in found:
            raise UsageError(
                "The loss of Minimize must give scalars by name, with 'loss' among "
                "them; it gave "
                f"{sorted(found) if isinstance(found, Mapping) else type(found).__name__}."
            )
        bad = {name: tuple(value.shape) for name, value in found.items() if value.ndim}
        if bad:
            raise UsageError(
                f"The loss of Minimize must give scalars; these have axes: {bad}."
            )
        return {
            "loss": found["loss"],
            **{name: v for name, v in found.items() if name != "loss"},
        }


@dataclass(frozen=True)
class Supervised:
    """A network and a loss of (output, target).

    The case that the compiled engines know.

    Attributes:
        build: Makes one untrained network.
        loss: ``"mse"``, ``"cross_entropy"`` (integer labels), `CrossEntropy` (the same
            with label smoothing) or a function (output, target) -> scalar tensor.
    """

    build: Callable[[], nn.Module]
    loss: Loss = "mse"

    def __post_init__(self) -> None:
        check_builder(self.build)
