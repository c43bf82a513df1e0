"""K networks of one architecture as rows of one tensor.

An optimizer steps on all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nablab.training.engine import Unsupported
from nablab.training.optimizers import Specification

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class StackedWeights:
    """The weights (K, P) of K modules, the optimizer's slots, and who still trains.

    An optimizer step is a handful of operations, whatever the number of layers and of
    modules.

    Args:
        modules: K modules; only their weights are read.
        optimizer: Specification.

    Attributes:
        weights: (K, P).
        active: bool (K,): who still trains.

    Raises:
        Unsupported: The modules have buffers, active dropout, or untrained or mixed
            parameters.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizer: Specification) -> None:
        refuse_unsuitable(modules[0])
        self._optimizer = optimizer
        self._shapes = {name: p.shape for name, p in modules[0].named_parameters()}
        self.weights = torch.stack(
            [nn.utils.parameters_to_vector(m.parameters()).detach() for m in modules]
        )
        self._slots = {
            slot: torch.zeros_like(self.weights) for slot in optimizer.slots()
        }
        self.active = torch.ones(
            len(modules), dtype=torch.bool, device=self.weights.device
        )
        self.count = 0

    def step(self, gradients: Tensor, losses: Tensor, rate: float) -> None:
        """Step along gradients (K, P).

        Whoever's loss (K,) is not finite is left as it is from now on.
        """
        self.active &= torch.isfinite(losses)
        self.count += 1
        if bool(self.active.all()):
            self._optimizer.update(
                self.weights, gradients, self._slots, rate, self.count
            )
            return
        before = [tensor.clone() for tensor in (self.weights, *self._slots.values())]
        self._optimizer.update(self.weights, gradients, self._slots, rate, self.count)
        for tensor, old in zip(
            (self.weights, *self._slots.values()), before, strict=True
        ):
            tensor.copy_(torch.where(self.active[:, None], tensor, old))

    def by_name(self, weights: Tensor) -> dict[str, Tensor]:
        """Return views of (..., P) weights by parameter name."""
        parts = torch.split(
            weights, [shape.numel() for shape in self._shapes.values()], dim=-1
        )
        return {
            name: part.reshape((*part.shape[:-1], *shape))
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def parameters(self) -> dict[str, Tensor]:
        """See `Engine.parameters`."""
        return {name: part.clone() for name, part in self.by_name(self.weights).items()}

    def freeze(self, replicas: Sequence[int]) -> None:
        """See `Engine.freeze`."""
        self.active[list(replicas)] = False

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`."""
        tensors = {
            "weights": self.weights,
            "active": self.active,
            "count": torch.tensor(self.count),
        }
        tensors |= {f"slot/{name}": tensor for name, tensor in self._slots.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.load_state`."""
        self.weights.copy_(state["weights"])
        self.active.copy_(state["active"])
        self.count = int(state["count"])
        for name, tensor in self._slots.items():
            tensor.copy_(state[f"slot/{name}"])


def refuse_unsuitable(module: nn.Module) -> None:
    """Raise `Unsupported` for a module whose weights alone do not say what it computes."""
    if any(True for _ in module.buffers()):
        raise Unsupported(
            "the network has buffers, such as those of batch normalization"
        )
    if any(isinstance(part, _DROPOUT) and part.p > 0 for part in module.modules()):
        raise Unsupported(
            "the network has dropout, and each replica needs its own random numbers"
        )
    parameters = list(module.parameters())
    if not parameters:
        raise Unsupported("the network has no parameters")
    if not all(parameter.requires_grad for parameter in parameters):
        raise Unsupported("some parameters of the network do not train")
    if len({parameter.dtype for parameter in parameters}) > 1:
        raise Unsupported("the parameters of the network have several dtypes")
