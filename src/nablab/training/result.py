"""What a training leaves behind: curves, stop reasons and weights of all replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nablab.training.engine import FloatArray, slices
from nablab.training.seeding import build_replicas

At = Literal["final", "best"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """The outcome of `fit` for K replicas.

    Attributes:
        engine: The engine that trained: ``"fused"``, ``"batched"`` or ``"sequential"``.
        seeds: One per replica.
        train_loss: float64 (K, steps): the loss on the step's batch before each step; NaN after a replica
            ended, and NaN or infinite where it diverged.
        evaluations: ``"train_loss"`` on the training set and one ``"<name>_loss"`` per held-out set, with
            cross-entropy also ``"train_accuracy"`` and ``"<name>_accuracy"``: float64 (K, T) at
            `evaluation_steps`; NaN after a replica ended.
        evaluation_steps: int64 (T,), from 0, before training, to the end.
        seconds: float64 (T,): seconds of training up to each evaluation, of all replicas together and
            without the evaluations; they go on where a checkpoint left off.
        final: float64 (K,), the loss of the final weights on the full training set; NaN if diverged.
        best: float64 (K,), the lowest full-training-set loss at an evaluation.
        best_step: int64 (K,), the step of that evaluation.
        steps_taken: int64 (K,); for a diverged replica, the step whose loss was not finite.
        stop_reason: Per replica: ``"budget"``, ``"diverged"``, ``"probe"`` or the name of the rule.
        converged: bool (K,): the convergence rule held at the replica's last evaluation.
    """

    engine: str
    seeds: tuple[int, ...]
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
    _build: Callable[[], nn.Module] = field(repr=False)
    _prepare: Callable[[Tensor], Tensor] = field(repr=False)
    _final_tensors: dict[str, Tensor] = field(repr=False)
    _best_tensors: dict[str, Tensor] = field(repr=False)

    def parameters(self, *, at: At = "final") -> dict[str, Tensor]:
        """Stacked parameters (K, ...) by name, and buffers where the network has any."""
        return dict(self._final_tensors if at == "final" else self._best_tensors)

    @torch.no_grad()
    def predict(self, x: Tensor, *, at: At = "final") -> Tensor:
        """The outputs (K, N, ...) of every replica in eval mode and float32, for samples ``x`` (N, ...).

        The samples are prepared as in training.
        """
        tensors = self.parameters(at=at)
        x = torch.as_tensor(x).to(next(iter(tensors.values())).device)
        module = self.module(0, at=at).eval()
        outputs = []
        for replica in range(len(self.seeds)):
            own = {name: tensor[replica] for name, tensor in tensors.items()}
            parts = (self._prepare(x[part]) for part in slices(len(x), module))
            outputs.append(torch.cat([functional_call(module, own, (part,)) for part in parts]))
        return torch.stack(outputs)

    def module(self, replica: int, *, at: At = "final") -> nn.Module:
        """A fresh module with the weights of one replica, in training mode as PyTorch leaves it.

        It takes prepared inputs.
        """
        module = build_replicas(self._build, [self.seeds[replica]])[0]
        tensors = self.parameters(at=at)
        targets = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, target in targets.items():
                if name in tensors:
                    target.copy_(tensors[name][replica])
        return module.to(next(iter(tensors.values())).device)

    def steps_to(self, threshold: float) -> FloatArray:
        """float64 (K,): the first step whose training loss is at most ``threshold``; infinity if none."""
        reached = self.train_loss <= threshold
        return np.where(reached.any(axis=1), reached.argmax(axis=1).astype(np.float64), np.inf)
