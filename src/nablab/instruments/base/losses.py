"""What a user may call a loss: a name, a function of output and target, or a closure over model and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.errors import UsageError, unknown

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "nll": F.nll_loss,
}


@dataclass(frozen=True)
class Closure:
    """A loss of a model on a batch of any form: dictionaries, several inputs, several losses.

    Attributes:
        function: ``function(model, batch)`` gives the mean loss of the batch, a tensor without axes. It must
            reach the network through its first argument.
        samples: Counts what the mean is over, such as tokens that are no padding; batches are weighted by it.
            By default the length of the batch's first tensor.

    >>> loss = Closure(lambda model, batch: model(**batch["inputs"]).square().mean())
    """

    function: Callable[[Any, Any], Tensor]
    samples: Callable[[Any], int] | None = None


@dataclass(frozen=True, init=False, kw_only=True)
class Penalized(Closure):
    r"""A loss of outputs and target plus the penalty :math:`\frac{\lambda}{2} \|\theta\|^2` of weight decay.

    It is what `torch.optim.Adam` and `torch.optim.SGD` with ``weight_decay`` minimize (`torch.optim.AdamW`
    does not). All parameters count, also those that an instrument does not vary.

    Attributes:
        loss: ``loss(output, target)``, the mean over a batch.
        weight_decay: :math:`\lambda`.

    >>> Penalized("mse", 1e-3).weight_decay
    0.001
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    weight_decay: float

    def __init__(self, loss: str | Callable[[Tensor, Tensor], Tensor], weight_decay: float) -> None:
        if not 0 <= weight_decay < float("inf"):
            raise UsageError(f"weight_decay={weight_decay} is impossible: it must be 0 or more and finite.")
        if isinstance(loss, str) and loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        criterion = LOSSES[loss] if isinstance(loss, str) else loss

        def function(model: nn.Module, batch: Any) -> Tensor:
            inputs, target = split(batch)
            squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
            return criterion(call(model, inputs), target) + weight_decay / 2 * squares

        fields = {"function": function, "samples": None, "loss": criterion, "weight_decay": weight_decay}
        for name, value in fields.items():
            object.__setattr__(self, name, value)


Loss: TypeAlias = str | Callable[[Tensor, Tensor], Tensor] | Closure


class Evaluation(nn.Module):
    """A model and its loss as one module, so that both get their tensors from one functional call."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        if isinstance(loss, str):
            if loss not in LOSSES:
                raise unknown("loss", loss, LOSSES)
            loss = LOSSES[loss]
        elif isinstance(loss, nn.Module):
            if getattr(loss, "reduction", "mean") != "mean":
                raise UsageError(
                    f"The loss {type(loss).__name__} has reduction='{loss.reduction}'; instruments weight "
                    "batches by their samples and need the mean over a batch: use reduction='mean'."
                )
        elif not isinstance(loss, Closure) and not callable(loss):
            raise UsageError(
                f"A loss of type {type(loss).__name__} is not usable. Give a name ({', '.join(LOSSES)}), "
                "a function loss(output, target), or Closure(function) of (model, batch)."
            )
        self.criterion = loss  # a loss module is registered here, so its weights move to the dtype, too

    @property
    def is_closure(self) -> bool:
        """Whether outputs and targets cannot be had apart."""
        return isinstance(self.criterion, Closure)

    def forward(self, batch: Any) -> Any:
        """The loss of a batch."""
        if isinstance(self.criterion, Closure):
            return self.criterion.function(self.model, batch)
        inputs, target = split(batch)
        return self.criterion(call(self.model, inputs), target)


class Outputs(nn.Module):
    """The outputs of a model on the inputs of a batch, under the names that `Evaluation` gives tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        """What the model returns."""
        return call(self.model, inputs)


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(inputs)``, ``model(*inputs)`` for a tuple or list, ``model(**inputs)`` for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def split(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch ``(inputs, target)`` or ``(input, input, ..., target)``.

    Raises:
        UsageError: The batch has another form.
    """
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise UsageError(
        f"A batch of type {type(batch).__name__} does not say which part is the target. Give batches "
        "(inputs, target), or a loss Closure(lambda model, batch: ...) that takes batches as they are."
    )
