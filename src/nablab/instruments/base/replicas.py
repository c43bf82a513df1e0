"""Networks of one architecture with their weights stacked, tensors (K, ...)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.placement import copied


@dataclass(frozen=True, eq=False)
class Replicas:
    """K networks of one architecture.

    Attributes:
        module: One of them, or any module of that architecture; it is never written to.
        tensors: Parameters by name, stacked (K, ...), and buffers where the networks
            differ in them. This is what ``Training.parameters()`` of `nablab.training`
            gives. A parameter that is left out is the module's own in every replica.

    Raises:
        UsageError: A tensor that the module lacks or that has another shape, unequal
            numbers of replicas, or a replica with NaN.

    >>> replicas = Replicas.stack([nn.Linear(2, 1) for _ in range(5)])
    >>> len(replicas), replicas.tensors["weight"].shape
    (5, torch.Size([5, 1, 2]))
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        own = tensors_of(self.module)
        if not self.tensors:
            raise UsageError(
                "No stacked tensors: replicas need at least one parameter "
                "of shape (K, ...)."
            )
        counts = {}
        for name, tensor in self.tensors.items():
            if name not in own:
                raise UsageError(
                    f"The architecture {type(self.module).__name__} has no tensor "
                    f"'{name}'. It has: {', '.join(list(own)[:8])}."
                )
            if tensor.ndim == 0 or tensor.shape[1:] != own[name].shape:
                raise UsageError(
                    f"The stacked tensor '{name}' has shape {tuple(tensor.shape)}; K "
                    "replicas of this architecture need (K, "
                    f"{_listed(own[name].shape)})."
                )
            counts[name] = len(tensor)
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise UsageError(
                "The stacked tensors hold unequal numbers of replicas, or "
                f"none: {counts}."
            )
        self._check_finite()

    @classmethod
    def stack(cls, modules: Sequence[nn.Module]) -> Replicas:
        """Return networks as replicas; their weights are copied.

        Raises:
            UsageError: No network, or two whose architectures differ.
        """
        if not modules:
            raise UsageError(
                "No network to stack: give a sequence of at least one module."
            )
        each = [tensors_of(module) for module in modules]
        for place, tensors in enumerate(each[1:], start=1):
            _check_alike(each[0], tensors, place)
        return cls(
            modules[0],
            {name: torch.stack([t[name] for t in each]).detach() for name in each[0]},
        )

    def __len__(self) -> int:
        """Return K."""
        return len(next(iter(self.tensors.values())))

    def select(self, replicas: Sequence[int]) -> Replicas:
        """Return the replicas of these numbers, in this order."""
        chosen = list(replicas)
        return Replicas(
            self.module, {name: tensor[chosen] for name, tensor in self.tensors.items()}
        )

    def network(self, replica: int) -> nn.Module:
        """Return a new module with the weights and in the dtype of one replica."""
        module = copied(self.module)
        with torch.no_grad():
            for name, target in tensors_of(module).items():
                if name in self.tensors:
                    source = self.tensors[name][replica]
                    target.data = source.to(target.device, copy=True)
                elif target.is_floating_point():
                    target.data = target.data.to(self._dtype)
        return module

    @property
    def _dtype(self) -> torch.dtype:
        return next(t.dtype for t in self.tensors.values() if t.is_floating_point())

    def _check_finite(self) -> None:
        bad: set[int] = set()
        for tensor in self.tensors.values():
            if tensor.is_floating_point():
                finite = tensor.reshape(len(tensor), -1).isfinite().all(1)
                bad.update((~finite).nonzero().flatten().tolist())
        if bad:
            raise UsageError(
                f"Replicas {', '.join(map(str, sorted(bad)))} of {len(self)} hold "
                "weights that are NaN or infinite: they have diverged. Leave them out "
                "of the tensors."
            )


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape)) if math.prod(shape) and shape else "..."


def _check_alike(
    first: Mapping[str, Tensor], other: Mapping[str, Tensor], place: int
) -> None:
    for name in [*first, *other]:
        shapes = [
            tuple(tensors[name].shape) if name in tensors else None
            for tensors in (first, other)
        ]
        if shapes[0] != shapes[1]:
            said = [
                "is missing" if shape is None else f"has shape {shape}"
                for shape in shapes
            ]
            raise UsageError(
                f"Networks 0 and {place} differ: '{name}' {said[0]} in the first and "
                f"{said[1]} in the other. Replicas share one architecture."
            )
