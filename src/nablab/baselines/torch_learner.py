"""A network trained as everybody trains one in PyTorch: autograd and `torch.optim.SGD`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Array = npt.NDArray[Any]

AT_ONCE = 250  # images of one prediction


class TorchLearner:
    """The same network and the same steps, with derivatives that PyTorch finds.

    Its methods are those of `nablab.from_scratch.learner.Learner`.

    Args:
        module: Gives logits (N, classes) of normalized images.
        weights: Where it starts, arrays by the module's names.
        normalize: Makes the module's input of uint8 images.
        momentum: How much of the last step is kept in the next.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Mapping[str, Array],
        normalize: Callable[[Tensor], Tensor],
        momentum: float,
    ) -> None:
        self.module, self._normalize = module, normalize
        module.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        self.optimizer = torch.optim.SGD(module.parameters(), momentum=momentum)

    def step(self, images: Array, labels: Array, learning_rate: float) -> float:
        """Learn from uint8 (N, C, H, W) and int64 (N,); return the loss before it."""
        x = self._normalize(torch.from_numpy(images))
        loss = cross_entropy(self.module(x), torch.from_numpy(labels))
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def logits(self, images: Array) -> Array:
        """Compute the logits (N, classes) of uint8 images (N, C, H, W)."""
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(images), AT_ONCE)
            return torch.cat([self.module(self._normalize(x)) for x in parts]).numpy()

    def weights(self) -> dict[str, Array]:
        """Return the network's parameters by name."""
        return {k: v.numpy() for k, v in self.module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return weights and velocities."""
        return {
            "network": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy weights and velocities."""
        self.module.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
