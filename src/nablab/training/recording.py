"""A probe that keeps the weights of all replicas at regular steps.

The paths of training.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.training.probes import Context, Probe


class WeightRecorder(Probe):
    """Keeps the weights of every replica as training goes on.

    It keeps those before training, at every ``every``-th step, and at the end.

    They are kept on the CPU in their own dtype and are part of checkpoints. K replicas
    of P float32 weights at T points take 4·K·T·P bytes. A replica that ended keeps its
    last weights; one that diverged may hold NaN from there on.

    Args:
        every: Steps between two points.
        parameters: Names or glob patterns of the parameters (and buffers) to keep, such
            as ``"0.*"``.
        replicas: Keep only this many replicas, the first ones; None for all.

    Raises:
        UsageError: ``every`` or ``replicas`` is below 1; when training starts, a
            pattern without a match.

    >>> from torch import nn
    >>> from nablab import training
    >>> recorder = WeightRecorder(every=2)
    >>> data = torch.ones(4, 1), torch.zeros(4, 1)
    >>> def build() -> nn.Module:
    ...     return nn.Linear(1, 1)
    >>> _ = training.fit(build, data, seeds=[0, 1], steps=5, probes=[recorder])
    >>> recorder.steps, len(recorder.path(0)), recorder.path(0)[0]["weight"].shape
    (array([0, 2, 4, 5]), 4, torch.Size([1, 1]))
    """

    def __init__(
        self,
        *,
        every: int,
        parameters: str | Sequence[str] = "*",
        replicas: int | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(
                f"every={every} is impossible: weights are kept every 1 step or more."
            )
        if replicas is not None and replicas < 1:
            raise UsageError(
                f"replicas={replicas} is impossible: give 1 or more, or "
                "leave it out for all."
            )
        self.every, self._replicas = every, replicas
        self._patterns = (
            (parameters,) if isinstance(parameters, str) else tuple(parameters)
        )
        self._steps: list[int] = []
        self._points: list[dict[str, Tensor]] = []

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """int64 (T,): the steps taken at each point."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by name, (T, K, ...)."""
        names = self._points[0] if self._points else {}
        return {
            name: torch.stack([point[name] for point in self._points]) for name in names
        }

    def path(self, replica: int) -> list[dict[str, Tensor]]:
        """Return the T points of one replica, each as tensors by name.

        `trajectory_pca` takes them.
        """
        return [
            {name: tensor[replica] for name, tensor in point.items()}
            for point in self._points
        ]

    def on_train_begin(self, context: Context) -> None:
        """Keep the weights before the first step.

        A recorder that is used again forgets what it kept.
        """
        if context.step == 0:
            self._steps, self._points = [], []
            self._keep(context)

    def on_step_end(self, context: Context) -> None:
        """Keep the weights."""
        self._keep(context)

    def on_train_end(self, context: Context) -> None:
        """Keep the last weights, if the last step is not a multiple of ``every``."""
        if self._steps[-1] != context.step:
            self._keep(context)

    def state(self) -> dict[str, Tensor]:
        """Return all points so far."""
        return {
            "steps": torch.tensor(self._steps),
            **{f"weights/{n}": t for n, t in self.weights.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these points."""
        self._steps = [int(step) for step in state["steps"]]
        stacked = {
            n.removeprefix("weights/"): t
            for n, t in state.items()
            if n.startswith("weights/")
        }
        # Copies: the checkpoint's tensors may be views of one file that is about to be
        # replaced.
        self._points = [
            {n: t[index].clone() for n, t in stacked.items()}
            for index in range(len(self._steps))
        ]

    def _keep(self, context: Context) -> None:
        every = context.engine.parameters()
        chosen: set[str] = set()
        for pattern in self._patterns:
            found = fnmatch.filter(every, pattern)
            if not found:
                raise unknown("parameter", pattern, every)
            chosen.update(found)
        own = slice(self._replicas)
        # A part of a tensor would keep all of it in memory.
        self._points.append(
            {
                name: tensor[own].cpu().clone()
                for name, tensor in every.items()
                if name in chosen
            }
        )
        self._steps.append(context.step)


def path_array(path: Sequence[Mapping[str, Tensor]]) -> npt.NDArray[Any]:
    """Stack the T points of a path to one array (T, P), for a store.

    `path_from_array` goes back.

    Args:
        path: T points, each as tensors by name.
    """
    return torch.stack(
        [torch.cat([t.reshape(-1) for t in point.values()]) for point in path]
    ).numpy()


def path_from_array(
    rows: npt.NDArray[Any], module: nn.Module
) -> list[dict[str, Tensor]]:
    """Split points (T, P) into tensors by parameter of a module; memory is shared.

    Args:
        rows: What `path_array` gave.
        module: A module of the same architecture.
    """
    parameters = dict(module.named_parameters())
    parts = torch.split(
        torch.from_numpy(rows), [p.numel() for p in parameters.values()], dim=1
    )
    shaped = [
        part.reshape(-1, *p.shape)
        for part, p in zip(parts, parameters.values(), strict=True)
    ]
    return [
        dict(zip(parameters, point, strict=True)) for point in zip(*shaped, strict=True)
    ]
