"""`Minimize` for all trials at once.

`torch.func.vmap` of its loss over stacked weights.

Each trial has its own batch, its own numbers and its own randomness. What a loss draws
is drawn before, for every trial from a generator of its own and in the order in which
the loss asks, so a trial's random numbers are those that it gets alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

from nablab.errors import UsageError
from nablab.training.datasets import Dataset, in_order
from nablab.training.engine import FloatArray, Unsupported
from nablab.training.learners import Learner, Minimize, State
from nablab.training.metric import Metric
from nablab.training.moments import Drawn, Moment
from nablab.training.one_by_one import EVALUATED_AT_ONCE, Means
from nablab.training.optimizers import Specification
from nablab.training.randomness import preserved
from nablab.training.samplers import Sampler
from nablab.training.seeding import derive
from nablab.training.stacked_weights import StackedWeights

SHARED_GENERATOR = (
    "the loss draws from moment.generator; moment.normal and "
    "moment.uniform could be batched"
)
Draw = tuple[str, tuple[int, ...]]  # "normal" or "uniform", and a shape


class BatchedMinimizeEngine:
    """K networks and any loss as one; see `nablab.training.engine.Engine`.

    Args:
        learner: A `Minimize`.
        states: Fresh, one per trial; only the networks' weights are read.
        optimizer: Specification.
        data: What is trained on.
        sampler: Which samples stand in which batch.
        steps: The budget.
        seeds: One per trial.
        hyper: The numbers of each trial.
        batch_size: Samples of an evaluation's batch; None for the default.

    Raises:
        Unsupported: Another learner, batches of unequal shapes, a network with buffers
            or dropout, or a loss that `vmap` cannot run, or that draws from a generator
            itself.
    """

    name = "batched"

    def __init__(
        self,
        learner: Learner,
        states: Sequence[State],
        data: Dataset,
        *,
        optimizer: Specification,
        sampler: Sampler,
        steps: int,
        seeds: Sequence[int],
        hyper: Sequence[Mapping[str, float]],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(learner, Minimize):
            raise Unsupported(f"{type(learner).__name__} takes its own steps")
        if not data.even:
            raise Unsupported("batches of equally many samples differ in shape")
        self.replicas = len(states)
        self.measures: tuple[str, ...] = ()
        self._learner, self._data, self._sampler, self._steps = (
            learner,
            data,
            sampler,
            steps,
        )
        self._seeds, self._device, self._size = (
            tuple(seeds),
            device,
            batch_size or EVALUATED_AT_ONCE,
        )
        self._module = _Loss(states[0].net, learner)
        self._stacked = StackedWeights([state.net for state in states], optimizer)
        names = list(hyper[0]) if hyper else []
        self._hyper = {
            name: torch.tensor([own[name] for own in hyper], device=device)
            for name in names
        }
        self._generators = [torch.Generator() for _ in seeds]
        self._together = vmap(
            grad_and_value(self._one, has_aux=True), randomness="error"
        )
        # the step that is computed
        self._now: tuple[int, float, Sequence[Draw]] = (0, 1.0, ())
        # what the loss asks for, by the shapes of a batch
        self._draws: dict[str, list[Draw]] = {}
        self._rehearse()

    # Training

    @torch.no_grad()
    def advance(self, rates: FloatArray, batches: Tensor | None = None) -> FloatArray:
        """Take ``len(rates)`` steps; see `Engine.advance`.

        The sampler says which samples they see.

        Returns:
            float64 (steps, K, measures).
        """
        rows = []
        self._module.train()
        with preserved(self._device):
            for rate in rates.tolist():
                gradients, values = self._gradients(self._stacked.count, rate)
                row = torch.where(self._stacked.active[:, None], values, torch.nan)
                rows.append(row)
                self._stacked.step(gradients, values.sum(1), rate)
        return torch.stack(rows).double().cpu().numpy()

    def _gradients(self, step: int, rate: float) -> tuple[Tensor, Tensor]:
        """Compute clipped gradients (K, P) and values (K, measures) of a step."""
        batch = self._batch(step)
        for generator, seed in zip(self._generators, self._seeds, strict=True):
            generator.manual_seed(derive(seed, "step", step))
        draws = self._draws_for(batch)
        drawn = self._drawn(draws)
        self._now = step, rate, draws
        gradients, (_, values) = self._together(
            self._stacked.weights, batch, self._hyper, drawn
        )
        self.measures = tuple(values)
        if self._learner.clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_
            norms = gradients.norm(dim=1, keepdim=True)
            gradients = gradients * (self._learner.clip_norm / (norms + 1e-6)).clamp(
                max=1.0
            )
        return gradients, torch.stack(list(values.values()), dim=1)

    def _one(
        self, weights: Tensor, batch: Any, hyper: Any, drawn: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one trial, and all values."""
        step, rate, draws = self._now
        values = self._values(
            weights, batch, Moment(step, self._steps, rate, hyper, Given(draws, drawn))
        )
        return values["loss"], values

    def _batch(self, step: int) -> Any:
        """Stack the batches of all trials: tensors (K, n, ...)."""
        chosen = [
            self._sampler.indices(seed, step).to(self._device) for seed in self._seeds
        ]
        parts = [pytree.tree_flatten(self._data.batch(indices)) for indices in chosen]
        leaves = [
            torch.stack(same)
            for same in zip(*(leaves for leaves, _ in parts), strict=True)
        ]
        return pytree.tree_unflatten(leaves, parts[0][1])

    def _values(self, weights: Tensor, batch: Any, moment: Moment) -> dict[str, Tensor]:
        tensors = {
            f"net.{name}": part for name, part in self._stacked.by_name(weights).items()
        }
        found: dict[str, Tensor] = functional_call(
            self._module, tensors, (batch, moment)
        )
        return found

    # Randomness

    def _draws_for(self, batch: Any) -> list[Draw]:
        """Return the random numbers that the loss asks for on batches like this one."""
        key = str([tuple(leaf.shape) for leaf in pytree.tree_leaves(batch)])
        if key not in self._draws:
            self._draws[key] = self._asked_for(batch)
        return self._draws[key]

    def _drawn(self, draws: Sequence[Draw]) -> list[Tensor]:
        """Draw these random numbers for every trial: tensors (K, ...)."""
        sources = [Drawn(generator, self._device) for generator in self._generators]
        return [
            torch.stack([getattr(source, kind)(shape) for source in sources])
            for kind, shape in draws
        ]

    def _asked_for(self, batch: Any) -> list[Draw]:
        """Run the loss of the first trial alone and note what it draws."""
        noting = Noting(self._device)
        own = pytree.tree_map(lambda leaf: leaf[0], batch)
        hyper = {name: values[0] for name, values in self._hyper.items()}
        self._values(
            self._stacked.weights[0], own, Moment(0, self._steps, 1.0, hyper, noting)
        )
        return noting.draws

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self, name: str, sets: Sequence[Dataset], metrics: Mapping[str, Metric]
    ) -> dict[str, FloatArray]:
        """Compute the scores (K,), by name, of one set for each trial.

        The random numbers are the same at each evaluation.
        """
        self._module.eval()
        means = [Means() for _ in sets]
        scores = [{key: metric.new() for key, metric in metrics.items()} for _ in sets]
        with preserved(self._device):
            for replica, data in enumerate(sets):
                for part, indices in enumerate(
                    in_order(len(data), self._size, self._device)
                ):
                    batch = data.batch(indices)
                    values = self._evaluated(
                        replica,
                        batch,
                        derive(self._seeds[replica], "evaluation", name, part),
                    )
                    means[replica].add(values, len(indices))
                    if metrics:
                        outputs = self._outputs(replica, batch)
                        for score in scores[replica].values():
                            score.add(outputs, batch)
        rows = [
            mean.values() | {key: float(score.value()) for key, score in own.items()}
            for mean, own in zip(means, scores, strict=True)
        ]
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def _evaluated(self, replica: int, batch: Any, seed: int) -> dict[str, Tensor]:
        source = Drawn(self._generators[replica].manual_seed(seed), self._device)
        hyper = {name: values[replica] for name, values in self._hyper.items()}
        moment = Moment(self._stacked.count, self._steps, 1.0, hyper, source)
        return self._values(self._stacked.weights[replica], batch, moment)

    def _outputs(self, replica: int, batch: Any) -> Any:
        tensors = self._stacked.by_name(self._stacked.weights[replica])
        reading = _Reading(self._module.net, self._learner)
        return functional_call(
            reading, {f"net.{name}": part for name, part in tensors.items()}, (batch,)
        )

    # The rest of the contract

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._stacked.freeze(replicas)

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        return self._stacked.parameters()

    def predict(self, x: Tensor) -> Tensor:
        """Refuse: a learner's outputs are of batches, not of one tensor.

        See `evaluate`.
        """
        raise TypeError(
            "a learner has no predictions of a tensor; evaluate it on a data set"
        )

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        return self._stacked.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self._stacked.load_state(state)

    @torch.no_grad()
    def _rehearse(self) -> None:
        """Compute one gradient, to learn what `vmap` refuses before training."""
        self._module.train()
        with warnings.catch_warnings(), preserved(self._device):
            # Operations without a batching rule run in a hidden loop and only warn that
            # they are slow.
            warnings.filterwarnings("error", message=".*batching rule.*")
            try:
                gradients, _ = self._gradients(0, 1.0)
            except (RuntimeError, NotImplementedError, UserWarning) as error:
                reason = str(error).strip().split("\n")[0]
                raise Unsupported(
                    f"torch.func.vmap cannot run the network or its loss: {reason}"
                ) from error
        if gradients.shape != self._stacked.weights.shape:
            raise Unsupported("the gradients do not have the shape of the weights")


class Noting:
    """Stands for a generator, and notes what is asked of it; gives zeros on a device."""

    def __init__(self, device: torch.device) -> None:
        self.draws: list[Draw] = []
        self._device = device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """See `nablab.training.moments.Source`."""
        return self._note("normal", shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """See `nablab.training.moments.Source`."""
        return self._note("uniform", shape)

    def _note(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        self.draws.append((kind, tuple(shape)))
        return torch.zeros(shape, device=self._device)

    @property
    def generator(self) -> torch.Generator:
        """Refuse: trials that are computed at once cannot share a generator."""
        raise Unsupported(SHARED_GENERATOR)


class Given:
    """Hands out what was drawn before, in the order in which it is asked for.

    Args:
        draws: What is expected to be asked for.
        drawn: It.
    """

    def __init__(self, draws: Sequence[Draw], drawn: Sequence[Tensor]) -> None:
        self._remaining = list(zip(draws, drawn, strict=True))

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """See `nablab.training.moments.Source`."""
        return self._next("normal", shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """See `nablab.training.moments.Source`."""
        return self._next("uniform", shape)

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        if not self._remaining or self._remaining[0][0] != (kind, tuple(shape)):
            raise UsageError(
                "The loss draws other random numbers at this step than at the first "
                "one, so the trials cannot be computed at once. Draw the same at every "
                "step, or train with replicas='sequential'."
            )
        return self._remaining.pop(0)[1]

    @property
    def generator(self) -> torch.Generator:
        """Refuse; see `Noting`."""
        raise Unsupported(SHARED_GENERATOR)


class _Loss(nn.Module):
    """A network and its loss as one module.

    So tensors can stand in for the weights.
    """

    def __init__(self, net: nn.Module, learner: Minimize) -> None:
        super().__init__()
        self.net = net
        self._learner = learner

    def forward(self, batch: Any, moment: Moment) -> dict[str, Tensor]:
        """Compute the named losses."""
        return self._learner.named_losses(self.net, batch, moment)


class _Reading(nn.Module):
    """A network and what metrics read of it."""

    def __init__(self, net: nn.Module, learner: Minimize) -> None:
        super().__init__()
        self.net = net
        self._learner = learner

    def forward(self, batch: Any) -> Any:
        """Compute the outputs for metrics."""
        return self._learner.outputs(State(self.net), batch, Moment(0, 0))
