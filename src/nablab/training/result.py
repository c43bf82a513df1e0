"""What a training leaves behind: curves, stop reasons and weights of all replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nablab.training.engine import FloatArray, slices
from nablab.training.seeding import build_replicas

At = Literal["final", "best"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one trial of a training left.

    Attributes:
        curves: The evaluated curves by name, float64 (T,) at `steps`, up to where the
            trial ended.
        steps: int64 (T,): the steps of the evaluations, from 0.
        measures: What each step gave by name, float64 (steps taken,); see `Training`.
        steps_taken: Optimizer steps.
        steps_per_epoch: Of the training.
        stop_reason: ``"budget"``, ``"diverged"``, ``"probe"`` or the name of the rule
            that ended it.
        converged: The convergence rule held at the last evaluation.
        final: The goal's metric of the final weights; NaN if diverged.
        best: The goal's metric at its best evaluation.
        best_step: The step of that evaluation.
    """

    curves: Mapping[str, FloatArray]
    steps: npt.NDArray[np.int64]
    measures: Mapping[str, FloatArray]
    steps_taken: int
    steps_per_epoch: int
    stop_reason: str
    converged: bool
    final: float
    best: float
    best_step: int
    _module: Callable[[At], nn.Module] = field(repr=False)

    @property
    def epochs(self) -> npt.NDArray[np.int64]:
        """int64 (T,): the whole epochs before each evaluation."""
        return self.steps // self.steps_per_epoch

    def last(self) -> dict[str, float]:
        """Return the evaluated curves' values where the trial ended."""
        return {name: float(values[-1]) for name, values in self.curves.items()}

    def at(self, *, epoch: int) -> dict[str, float]:
        """Return the curves' values at the first evaluation at or after an epoch's end.

        If there is none, where the trial ended.

        Args:
            epoch: Number of whole epochs.
        """
        later = np.flatnonzero(self.steps >= epoch * self.steps_per_epoch)
        place = int(later[0]) if len(later) else -1
        return {name: float(values[place]) for name, values in self.curves.items()}

    def first_epoch(
        self, curve: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> float:
        """Return the epoch at whose evaluation a curve first reached a bound.

        It may be a fraction; infinity if the curve never reached it.

        Args:
            curve: The name of an evaluated curve, such as ``"test_accuracy"``.
            at_least: The bound of a curve that rises.
            at_most: The bound of a curve that falls.

        Raises:
            ValueError: Not exactly one bound is given.
        """
        if (at_least is None) == (at_most is None):
            raise ValueError("give at_least or at_most, one of the two")
        values = self.curves[curve]
        reached = (
            values <= at_most if at_most is not None else values >= (at_least or 0.0)
        )
        return (
            float(self.steps[reached.argmax()] / self.steps_per_epoch)
            if reached.any()
            else np.inf
        )

    def module(self, *, at: At = "final") -> nn.Module:
        """Return a fresh module with the trial's weights, in evaluation mode.

        Args:
            at: ``"final"`` for the weights at the end, ``"best"`` for those of the best
                evaluation.
        """
        return self._module(at).eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class Training(Sequence[Outcome]):
    """The outcome of a training for K trials.

    A sequence of one `Outcome` each, and all of them stacked.

    Attributes:
        engine: The engine that trained: ``"fused"``, ``"batched"`` or ``"sequential"``.
        seeds: One per replica.
        starts: The seeds of the first weights, one per replica.
        train_loss: float64 (K, steps): the loss on the step's batch before each step;
            NaN after a replica ended, and NaN or infinite where it diverged.
        measures: What the steps gave by name, float64 (K, steps) each: `train_loss` as
            ``"loss"``, or by the name that a learner gives it, and what stands beside
            it.
        evaluations: ``"train_loss"`` on the training set and one ``"<name>_loss"`` per
            held-out set, with cross-entropy also ``"train_accuracy"`` and
            ``"<name>_accuracy"``: float64 (K, T) at `evaluation_steps`; NaN after a
            replica ended.
        evaluation_steps: int64 (T,), from 0, before training, to the end.
        seconds: float64 (T,): seconds of training up to each evaluation, of all
            replicas together and without the evaluations; they go on where a checkpoint
            left off.
        final: float64 (K,), the loss of the final weights on the full training set; NaN
            if diverged.
        best: float64 (K,), the lowest full-training-set loss at an evaluation.
        best_step: int64 (K,), the step of that evaluation.
        steps_taken: int64 (K,); for a diverged replica, the step whose loss was not
            finite.
        stop_reason: Per replica: ``"budget"``, ``"diverged"``, ``"probe"`` or the name
            of the rule.
        converged: bool (K,): the convergence rule held at the replica's last
            evaluation.
        steps_per_epoch: Optimizer steps until each sample was seen once.
    """

    engine: str
    seeds: tuple[int, ...]
    starts: tuple[int, ...]
    train_loss: FloatArray
    evaluations: dict[str, FloatArray]
    evaluation_steps: npt.NDArray[np.int64]
    seconds: FloatArray
    final: FloatArray
    best: FloatArray
    best_step: npt.NDArray[np.int64]
    steps_taken: npt.NDArray[np.int64]
    stop_reason: tuple[str, ...]
    converged: npt.NDArray[np.bool_]
    measures: dict[str, FloatArray]
    steps_per_epoch: int
    _build: Callable[[], nn.Module] = field(repr=False)
    _prepare: Callable[[Tensor], Tensor] = field(repr=False)
    _final_tensors: dict[str, Tensor] = field(repr=False)
    _best_tensors: dict[str, Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        curves = np.array([curve[k] for curve in self.evaluations.values()])
        known = ~np.isnan(curves).all(axis=0)  # until the trial ended
        taken = int(self.steps_taken[k])
        return Outcome(
            curves={name: curve[k][known] for name, curve in self.evaluations.items()},
            steps=self.evaluation_steps[known],
            measures={
                name: values[k, :taken] for name, values in self.measures.items()
            },
            steps_taken=taken,
            steps_per_epoch=self.steps_per_epoch,
            stop_reason=self.stop_reason[k],
            converged=bool(self.converged[k]),
            final=float(self.final[k]),
            best=float(self.best[k]),
            best_step=int(self.best_step[k]),
            _module=lambda at: self.module(k, at=at),
        )

    def parameters(self, *, at: At = "final") -> dict[str, Tensor]:
        """Return stacked parameters (K, ...) by name, and buffers if there are any.

        Args:
            at: ``"final"`` for the weights at the end, ``"best"`` for those of each
                replica's best evaluation.
        """
        return dict(self._final_tensors if at == "final" else self._best_tensors)

    @torch.no_grad()
    def predict(self, x: Tensor, *, at: At = "final") -> Tensor:
        """Compute the outputs (K, N, ...) of every replica, in eval mode and float32.

        The samples are prepared as in training.

        Args:
            x: Stored samples (N, ...).
            at: See `parameters`.
        """
        tensors = self.parameters(at=at)
        x = torch.as_tensor(x).to(next(iter(tensors.values())).device)
        module = self.module(0, at=at).eval()
        outputs = []
        for replica in range(len(self.seeds)):
            own = {name: tensor[replica] for name, tensor in tensors.items()}
            parts = (self._prepare(x[part]) for part in slices(len(x), module))
            outputs.append(
                torch.cat([functional_call(module, own, (part,)) for part in parts])
            )
        return torch.stack(outputs)

    def module(self, replica: int, *, at: At = "final") -> nn.Module:
        """Return a fresh module with the weights of one replica.

        It is in training mode, as PyTorch leaves it, and takes prepared inputs.

        Args:
            replica: Its number, from 0.
            at: See `parameters`.
        """
        module = build_replicas(self._build, [self.starts[replica]])[0]
        tensors = self.parameters(at=at)
        targets = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, target in targets.items():
                if name in tensors:
                    target.copy_(tensors[name][replica])
        return module.to(next(iter(tensors.values())).device)

    def steps_to(self, threshold: float) -> FloatArray:
        """Return the first step whose training loss is at most ``threshold``.

        float64 (K,); infinity where the loss never got there.
        """
        reached = self.train_loss <= threshold
        return np.where(
            reached.any(axis=1), reached.argmax(axis=1).astype(np.float64), np.inf
        )
