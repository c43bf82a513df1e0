"""Any learner, one trial after the other.

Serves everything, and is the truth for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.seeding import Stream
from nablab.training import snapshots
from nablab.training.checkpoints import prefixed, under
from nablab.training.datasets import Dataset, in_order
from nablab.training.engine import FloatArray
from nablab.training.learners import Learner, State
from nablab.training.metric import Metric
from nablab.training.moments import Drawn, Moment
from nablab.training.randomness import preserved, reseed
from nablab.training.samplers import Sampler
from nablab.training.seeding import derive

# What sets the seed of PyTorch's own generators, for dropout, apart from that of the
# moment.
FORWARD = 1
EVALUATED_AT_ONCE = 256  # samples, where the recipe has no batch size


class OneByOneEngine:
    """K states of one learner, trained one after the other.

    See `nablab.training.engine.Engine`.

    Args:
        learner: Takes the steps.
        states: Fresh, one per trial.
        data: What is trained on.
        sampler: Which samples stand in which batch.
        steps: The budget, for whoever wants to know at a step.
        seeds: One per trial, for the order of samples and all that a step draws.
        hyper: The numbers of each trial.
        batch_size: Samples of an evaluation's batch; None for the default.
    """

    name = "sequential"

    def __init__(
        self,
        learner: Learner,
        states: Sequence[State],
        data: Dataset,
        *,
        sampler: Sampler,
        steps: int,
        seeds: Sequence[int],
        hyper: Sequence[Mapping[str, float]],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        self.replicas = len(states)
        self.measures: tuple[str, ...] = ()
        self._learner, self._states, self._data, self._sampler = (
            learner,
            list(states),
            data,
            sampler,
        )
        self._steps, self._seeds, self._hyper, self._device = (
            steps,
            tuple(seeds),
            list(hyper),
            device,
        )
        self._size = batch_size or EVALUATED_AT_ONCE
        self._active = np.ones(self.replicas, dtype=bool)
        self._taken = 0
        self._first_rates = [
            {
                name: [group["lr"] for group in optimizer.param_groups]
                for name, optimizer in s.optimizers.items()
            }
            for s in states
        ]
        self._generator = torch.Generator()

    def advance(self, rates: FloatArray, batches: Tensor | None = None) -> FloatArray:
        """Take ``len(rates)`` steps; see `Engine.advance`.

        The sampler says which samples they see.

        Returns:
            float64 (steps, K, measures).
        """
        found: dict[int, list[float]] = {}
        with preserved(self._device):
            for replica in np.flatnonzero(self._active).tolist():
                found[replica] = self._advance_one(replica, rates)
        self._taken += len(rates)
        measures = max(1, len(self.measures))
        values = np.full((len(rates), self.replicas, measures), np.nan)
        for replica, flat in found.items():
            rows = np.array(flat).reshape(-1, measures)
            values[: len(rows), replica] = rows
        return values

    def _advance_one(self, replica: int, rates: FloatArray) -> list[float]:
        """Take steps with one state; the measures of one step after another."""
        state, seed = self._states[replica], self._seeds[replica]
        stream = Stream(seed, "step")
        state.net.train()
        # Flat: a list for each step would have Python's collector walk through all
        # objects again and again.
        found: list[float] = []
        set_rate = None
        for offset, rate in enumerate(rates.tolist()):
            step = self._taken + offset
            if rate != set_rate:
                self._set_rates(replica, rate)
                set_rate = rate
            drawn = stream.seed(step)
            reseed(drawn ^ FORWARD, self._device)
            moment = self._moment(replica, step, rate, drawn)
            values = self._learner.step(state, self._batches(seed, step), moment)
            row = self._row(values)
            found += row
            if not all(map(math.isfinite, row)):
                self._active[replica] = False
                break
        return found

    def _batches(self, seed: int, step: int) -> tuple[Any, ...]:
        count = self._learner.batches_per_step
        if count == 1:
            indices = self._sampler.indices(seed, step)
            return (self._data.batch(indices.to(self._device)),)
        chosen = (
            self._sampler.indices(seed, step * count + part) for part in range(count)
        )
        return tuple(self._data.batch(indices.to(self._device)) for indices in chosen)

    def _moment(self, replica: int, step: int, rate: float, seed: int) -> Moment:
        source = Drawn(self._generator, self._device, seed)
        return Moment(step, self._steps, rate, self._hyper[replica], source)

    def _set_rates(self, replica: int, rate: float) -> None:
        first = self._first_rates[replica]
        for name, optimizer in self._states[replica].optimizers.items():
            for group, learning_rate in zip(
                optimizer.param_groups, first[name], strict=True
            ):
                group["lr"] = learning_rate * rate

    def _row(self, values: Mapping[str, Tensor]) -> list[float]:
        if not self.measures:
            self.measures = tuple(values)
        if tuple(values) != self.measures:
            raise ValueError(
                f"a step gave {list(values)} and an earlier one {list(self.measures)}"
            )
        return [value.item() for value in values.values()]

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self._active[list(replicas)] = False

    @torch.no_grad()
    def evaluate(
        self, name: str, sets: Sequence[Dataset], metrics: Mapping[str, Metric]
    ) -> dict[str, FloatArray]:
        """Compute the scores (K,), by name, of one set for each trial.

        The random numbers are the same at each evaluation.
        """
        with preserved(self._device):
            rows = [
                self._scores(replica, name, data, metrics)
                for replica, data in enumerate(sets)
            ]
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def _scores(
        self, replica: int, name: str, data: Dataset, metrics: Mapping[str, Metric]
    ) -> dict[str, float]:
        state, seed = self._states[replica], self._seeds[replica]
        state.net.eval()
        means, scores = Means(), {key: metric.new() for key, metric in metrics.items()}
        for part, indices in enumerate(in_order(len(data), self._size, self._device)):
            drawn = derive(seed, "evaluation", name, part)
            reseed(drawn ^ FORWARD, self._device)
            batch = data.batch(indices)
            moment = self._moment(replica, self._taken, 1.0, drawn)
            means.add(self._learner.evaluate(state, batch, moment), len(indices))
            if scores:
                outputs = self._learner.outputs(state, batch, moment)
                for score in scores.values():
                    score.add(outputs, batch)
        return means.values() | {
            key: float(score.value()) for key, score in scores.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        named = [snapshots.tensors_of(state.net) for state in self._states]
        return {
            name: torch.stack([tensors[name].detach() for tensors in named])
            for name in named[0]
        }

    def predict(self, x: Tensor) -> Tensor:
        """Refuse: a learner's outputs are of batches, not of one tensor.

        See `evaluate`.
        """
        raise TypeError(
            "a learner has no predictions of a tensor; evaluate it on a data set"
        )

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        state = {
            "active": torch.from_numpy(self._active.copy()),
            "taken": torch.tensor(self._taken),
        }
        for k, own in enumerate(self._states):
            state |= prefixed(str(k), snapshots.take(own.net, _by_place(own)))
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self._active = state["active"].numpy().copy()
        self._taken = int(state["taken"])
        for k, own in enumerate(self._states):
            snapshots.put(under(str(k), state), own.net, _by_place(own))


class Means:
    """Means over a set, from those of its batches."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(
        self, values: Mapping[str, Tensor | tuple[Tensor, Tensor]], samples: int
    ) -> None:
        """Take in a batch: means over its samples, or pairs (sum, count)."""
        for name, value in values.items():
            if isinstance(value, tuple):
                total, count = float(value[0]), float(value[1])
            else:
                total, count = float(value) * samples, float(samples)
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before[0] + total, before[1] + count

    def values(self) -> dict[str, float]:
        """Return the mean of each name."""
        return {
            name: total / count if count else float("nan")
            for name, (total, count) in self._sums.items()
        }


def _by_place(state: State) -> dict[str, torch.optim.Optimizer]:
    return {
        f"optimizer/{name}": optimizer for name, optimizer in state.optimizers.items()
    }
