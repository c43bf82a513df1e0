"""What is known of a training so far.

Curves, evaluations, who ended when and why, the best weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.errors import unknown
from nablab.training.checkpoints import prefixed, under
from nablab.training.engine import FloatArray
from nablab.training.stopping import EarlyStopping, Rule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Goal:
    """What counts as best.

    Attributes:
        metric: The evaluated curve whose best moment's weights are kept.
        higher: The evaluated curves of which higher is better.
    """

    metric: str = "train_loss"
    higher: frozenset[str] = frozenset()

    def check(self, curves: Sequence[str]) -> None:
        """Refuse a metric that is not evaluated.

        Without a loss there is no best, unless one is asked for.

        Raises:
            UsageError: There is no such curve.
        """
        if self.metric not in curves and self.metric != Goal.metric:
            raise unknown(
                "evaluated metric",
                self.metric,
                curves,
                remedy="It is what `best` asks for.",
            )

    def lower_is_better(self, metric: str, values: FloatArray) -> FloatArray:
        """Return the values of a curve, negated where higher is better."""
        return -values if metric in self.higher else values


class Best:
    """The lowest value of a metric per replica, with its step and its weights."""

    def __init__(self, replicas: int) -> None:
        self.values = np.full(replicas, np.inf)
        self.steps = np.zeros(replicas, dtype=np.int64)
        self.tensors: Tensors = {}

    def update(
        self, values: FloatArray, step: int, parameters: Callable[[], Tensors]
    ) -> None:
        """Take over the replicas whose value is lower than before.

        ``parameters`` is asked if any is.
        """
        improved = values < self.values
        if self.tensors and not improved.any():
            return
        now = parameters()
        if not self.tensors:
            self.tensors = {name: tensor.clone() for name, tensor in now.items()}
        where = torch.from_numpy(np.flatnonzero(improved))
        for name, tensor in self.tensors.items():
            tensor[where] = now[name][where]
        self.values = np.where(improved, values, self.values)
        self.steps = np.where(improved, step, self.steps)

    def state(self) -> Tensors:
        """Return the tensors for a checkpoint."""
        numbers = {
            "values": torch.from_numpy(self.values),
            "steps": torch.from_numpy(self.steps),
        }
        return numbers | prefixed("tensors", self.tensors)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.values, self.steps = (
            state["values"].numpy().copy(),
            state["steps"].numpy().copy(),
        )
        for name, tensor in under("tensors", state).items():
            self.tensors[name].copy_(tensor)


class History:
    """The record of K replicas over a budget of steps; rules watch its evaluations.

    Args:
        replicas: K.
        steps: The budget.
        stop: Rules that end a replica.
        converged: The rule that flags a replica.
        goal: What counts as best.
    """

    def __init__(
        self,
        replicas: int,
        steps: int,
        stop: tuple[Rule, ...],
        converged: Rule | None,
        goal: Goal = Goal(),
    ) -> None:
        self._goal = goal
        self.step = 0
        self.loss_name = "loss"  # of what a step gives first
        # what it gives beside that, (K, steps) each
        self.beside: dict[str, FloatArray] = {}
        self.train_loss = np.full((replicas, steps), np.nan)
        self.active = np.ones(replicas, dtype=bool)
        self.steps_taken = np.zeros(replicas, dtype=np.int64)
        self.stop_reason = ["budget"] * replicas
        self.converged = np.zeros(replicas, dtype=bool)
        self.evaluation_steps: list[int] = []
        self.evaluations: list[dict[str, FloatArray]] = []
        self.seconds = 0.0  # of training, without evaluations and probes
        self.evaluation_seconds: list[float] = []
        self.best = Best(replicas)
        self.restored = next(
            (
                rule
                for rule in stop
                if isinstance(rule, EarlyStopping) and rule.restore_best
            ),
            None,
        )
        self.best_restored = Best(replicas) if self.restored else None
        self._watches = [(rule, rule.watch(replicas)) for rule in stop]
        self._convergence = (
            (converged, converged.watch(replicas)) if converged else None
        )

    def add_losses(self, losses: FloatArray, measures: Sequence[str] = ()) -> None:
        """Append what the steps of a chunk gave; end the replicas that diverged in it.

        Args:
            losses: (steps, K), or (steps, K, measures) with the loss first.
            measures: The names of the last axis.
        """
        start, self.step = self.step, self.step + len(losses)
        values = losses.reshape(*losses.shape[:2], -1)
        self.train_loss[:, start : self.step] = values[:, :, 0].T
        self.loss_name = measures[0] if measures else self.loss_name
        for place, name in enumerate(measures[1:], 1):
            curve = self.beside.setdefault(name, np.full_like(self.train_loss, np.nan))
            curve[:, start : self.step] = values[:, :, place].T
        failed = np.asarray((~np.isfinite(values)).any(axis=2))
        for replica in np.flatnonzero(self.active & failed.any(axis=0)).tolist():
            self.end(replica, "diverged", start + int(failed[:, replica].argmax()))
        self.steps_taken[self.active] = self.step

    def end(self, replica: int, reason: str, step: int) -> None:
        """Let a replica take no more steps."""
        self.active[replica] = False
        self.stop_reason[replica] = reason
        self.steps_taken[replica] = step

    def add_evaluation(
        self, metrics: Mapping[str, FloatArray], parameters: Callable[[], Tensors]
    ) -> list[int]:
        """Append an evaluation at the present step.

        Returns:
            The replicas that it ended: by a stopping rule, or because the training loss
                is not finite.
        """
        own = {
            name: np.where(self.active, values, np.nan)
            for name, values in metrics.items()
        }
        self.evaluation_steps.append(self.step)
        self.evaluations.append(own)
        self.evaluation_seconds.append(self.seconds)
        before = self.active.copy()
        if self._goal.metric in own:
            values = own[self._goal.metric]
            self.best.update(
                self._goal.lower_is_better(self._goal.metric, values),
                self.step,
                parameters,
            )
            for replica in np.flatnonzero(self.active & ~np.isfinite(values)).tolist():
                self.end(replica, "diverged", self.step)
        if self.restored and self.best_restored:
            metric = self.restored.metric
            values = self._goal.lower_is_better(metric, own[metric])
            self.best_restored.update(values, self.step, parameters)
        self._apply_rules(own, before)
        ended: list[int] = np.flatnonzero(before & ~self.active).tolist()
        return ended

    def _apply_rules(self, metrics: Mapping[str, FloatArray], evaluated: Any) -> None:
        if self._convergence:
            rule, watch = self._convergence
            holds = watch.update(self.step, self._seen_by(rule, metrics))
            self.converged = np.where(evaluated, holds, self.converged)
        for rule, watch in self._watches:
            holds = watch.update(self.step, self._seen_by(rule, metrics))
            for replica in np.flatnonzero(self.active & holds).tolist():
                self.end(replica, rule.name, self.step)

    def _seen_by(self, rule: Rule, metrics: Mapping[str, FloatArray]) -> FloatArray:
        """Return the curve that a rule sees.

        A rule that looks for improvement gets values of which lower is better.
        """
        values = metrics[rule.metric]
        return (
            self._goal.lower_is_better(rule.metric, values) if rule.improves else values
        )

    def measures(self) -> dict[str, FloatArray]:
        """Return what the steps gave, (K, steps) by name."""
        return {self.loss_name: self.train_loss, **self.beside}

    def best_values(self) -> FloatArray:
        """Return the best value of the goal's metric, float64 (K,)."""
        return self._goal.lower_is_better(self._goal.metric, self.best.values)

    def curves(self) -> dict[str, FloatArray]:
        """Return each evaluated metric as float64 (K, T)."""
        return {
            name: np.stack([e[name] for e in self.evaluations], axis=1)
            for name in self.evaluations[0]
        }

    def goal_of(self, evaluation: Mapping[str, FloatArray]) -> FloatArray:
        """Return the goal's metric (K,) in an evaluation.

        NaN where it is not evaluated.
        """
        missing = np.full(len(self.active), np.nan)
        return evaluation.get(self._goal.metric, missing)

    def final(
        self, engine_tensors: Tensors, losses: FloatArray
    ) -> tuple[Tensors, FloatArray]:
        """Return the final weights and their training loss.

        Early stopping has restored its best weights by then.
        """
        losses = np.where(np.array(self.stop_reason) == "diverged", np.nan, losses)
        best = self.best_restored
        if best is None:
            return engine_tensors, losses
        known = np.flatnonzero(np.isfinite(best.values))
        rows = np.searchsorted(self.evaluation_steps, best.steps[known])
        losses[known] = self.goal_of(self.curves())[known, rows]
        for name, tensor in engine_tensors.items():
            tensor[torch.from_numpy(known)] = best.tensors[name][
                torch.from_numpy(known)
            ]
        return engine_tensors, losses

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return tensors and JSON facts for a checkpoint."""
        tensors = {
            "train_loss": torch.from_numpy(self.train_loss[:, : self.step].copy()),
            "active": torch.from_numpy(self.active),
            "converged": torch.from_numpy(self.converged),
            "steps_taken": torch.from_numpy(self.steps_taken),
            "evaluation_steps": torch.tensor(self.evaluation_steps, dtype=torch.int64),
            "evaluation_seconds": torch.tensor(
                self.evaluation_seconds, dtype=torch.float64
            ),
        }
        beside = {
            name: torch.from_numpy(c[:, : self.step].copy())
            for name, c in self.beside.items()
        }
        tensors |= prefixed("beside", beside)
        tensors |= prefixed(
            "curves", {name: torch.from_numpy(c) for name, c in self.curves().items()}
        )
        tensors |= prefixed("best", self.best.state())
        if self.best_restored:
            tensors |= prefixed("best_restored", self.best_restored.state())
        facts = {
            "step": self.step,
            "stop_reason": self.stop_reason,
            "seconds": self.seconds,
        }
        return tensors, facts | {"loss name": self.loss_name}

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        parameters: Callable[[], Tensors],
    ) -> None:
        """Go on from what `state` gave.

        Replay the evaluations for the rules, then take over the rest.
        """
        steps = tensors["evaluation_steps"].tolist()
        curves = {
            name: curve.numpy() for name, curve in under("curves", tensors).items()
        }
        for row, step in enumerate(steps):
            self.step, self.seconds = step, float(tensors["evaluation_seconds"][row])
            self.add_evaluation(
                {name: curve[:, row].copy() for name, curve in curves.items()},
                parameters,
            )
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.loss_name = facts["loss name"]
        self.train_loss[:, : self.step] = tensors["train_loss"].numpy()
        for name, curve in under("beside", tensors).items():
            self.beside[name] = np.full_like(self.train_loss, np.nan)
            self.beside[name][:, : self.step] = curve.numpy()
        self.active = tensors["active"].numpy().copy()
        self.converged = tensors["converged"].numpy().copy()
        self.steps_taken = tensors["steps_taken"].numpy().copy()
        self.stop_reason = list(facts["stop_reason"])
        self.best.load_state(under("best", tensors))
        if self.best_restored:
            self.best_restored.load_state(under("best_restored", tensors))
