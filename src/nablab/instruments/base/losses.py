"""What a user may call a loss: a name, a function, or a closure."""

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
IGNORED = -100  # PyTorch's mark of a target that does not count
# What PyTorch and models raise for data that do not fit; a timer's exception, say, is
# not among them.
MISFITS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)


@dataclass(frozen=True)
class Closure:
    """A loss of a model on a batch of any form.

    The form may be dictionaries, several inputs or several losses.

    Attributes:
        function: ``function(model, batch)`` gives the mean loss of the batch, a tensor
            without axes. It must reach the network through its first argument.
        samples: Counts what the mean is over, such as tokens that are not padding;
            batches are weighted by it. By default the length of the batch's first
            tensor.

    >>> loss = Closure(lambda model, batch: model(**batch["inputs"]).square().mean())
    """

    function: Callable[[Any, Any], Tensor]
    samples: Callable[[Any], int] | None = None


@dataclass(frozen=True, init=False, kw_only=True)
class Penalized(Closure):
    r"""A loss plus the penalty :math:`\frac{\lambda}{2} \|\theta\|^2` of weight decay.

    It is what `torch.optim.Adam` and `torch.optim.SGD` with ``weight_decay`` minimize
    (`torch.optim.AdamW` does not). All parameters count, also those that an instrument
    does not vary.

    Attributes:
        loss: ``loss(output, target)``, the mean over a batch.
        weight_decay: :math:`\lambda`.

    >>> Penalized("mse", 1e-3).weight_decay
    0.001
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    weight_decay: float

    def __init__(
        self, loss: str | Callable[[Tensor, Tensor], Tensor], weight_decay: float
    ) -> None:
        if not 0 <= weight_decay < float("inf"):
            raise UsageError(
                f"weight_decay={weight_decay} is impossible: it must be 0 "
                "or more and finite."
            )
        if isinstance(loss, str) and loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        criterion = LOSSES[loss] if isinstance(loss, str) else loss

        def function(model: nn.Module, batch: Any) -> Tensor:
            inputs, target = split(batch)
            output = call(model, inputs)
            if _pairs_elements(criterion):
                check_equal_shapes(output, target)
            squares = torch.stack(
                [parameter.square().sum() for parameter in model.parameters()]
            ).sum()
            return criterion(output, target) + weight_decay / 2 * squares

        fields = {
            "function": function,
            "samples": None,
            "loss": criterion,
            "weight_decay": weight_decay,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)


Loss: TypeAlias = str | Callable[[Tensor, Tensor], Tensor] | Closure


class Evaluation(nn.Module):
    """A model and its loss as one module, so that both get their tensors in one way."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        if isinstance(loss, str):
            if loss not in LOSSES:
                raise unknown("loss", loss, LOSSES)
            loss = LOSSES[loss]
        elif isinstance(loss, nn.Module):
            if getattr(loss, "reduction", "mean") not in ("mean", "batchmean"):
                raise UsageError(
                    f"The loss {type(loss).__name__} has reduction='{loss.reduction}'; "
                    "instruments weight batches by their samples and need the mean "
                    "over a batch: use reduction='mean'."
                )
        elif not isinstance(loss, Closure) and not callable(loss):
            raise UsageError(
                f"A loss of type {type(loss).__name__} is not usable. Give a name "
                f"({', '.join(LOSSES)}), a function loss(output, target), or "
                "Closure(function) of (model, batch)."
            )
        # A loss module is registered here, so its weights move to the dtype, too.
        self.criterion = loss

    @property
    def is_closure(self) -> bool:
        """Whether outputs and targets are inseparable."""
        return isinstance(self.criterion, Closure)

    @property
    def count(self) -> Callable[[Any], float] | None:
        """Count the terms of a batch's mean, where the loss is a known one."""
        return counter(self.criterion)

    def forward(self, batch: Any) -> Any:
        """Return the loss of a batch."""
        if isinstance(self.criterion, Closure):
            return self.criterion.function(self.model, batch)
        inputs, target = split(batch)
        return self.loss_of(call(self.model, inputs), target)

    def loss_of(self, output: Any, target: Any) -> Any:
        """Return the loss of an output.

        Raises:
            UsageError: The loss needs a tensor and the model gives something else, or
                output and target have
            shapes that PyTorch would broadcast against each other.
        """
        if not isinstance(output, Tensor) and _is_known(self.criterion):
            raise UsageError(
                f"The model returns a {type(output).__name__}; this loss needs one "
                "tensor of outputs. Give Closure(lambda model, batch: ...), which "
                "picks what it needs of what the model returns."
            )
        if _pairs_elements(self.criterion):
            check_equal_shapes(output, target)
        criterion: Any = self.criterion
        return criterion(output, target)


def counter(loss: Any) -> Callable[[Any], float] | None:
    """Return what counts the terms of PyTorch's known means.

    Cross-entropy takes the mean over the targets that are not ignored, and with class
    weights over their weights; losses of pairs of elements take it over elements. So
    the mean over several batches is the mean over all targets only if batches are
    weighed by these.

    Args:
        loss: What `Evaluation` calls: a function, a loss module, or a `Closure`.

    Returns:
        A function of a batch ``(inputs, target)``, or None: then a mean over samples is
        assumed and checked.

    >>> targets = torch.tensor([1, -100, 0, -100])
    >>> counter(F.cross_entropy)((torch.zeros(4, 3), targets))
    2.0
    """
    if isinstance(loss, Penalized):
        return counter(loss.loss)
    if loss is F.cross_entropy or loss is F.nll_loss:
        return lambda batch: _targets_that_count(split(batch)[1], IGNORED, None)
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
        if loss.weight is not None and float(getattr(loss, "label_smoothing", False)):
            return None  # its two terms are means over different things
        return lambda batch: _targets_that_count(
            split(batch)[1], loss.ignore_index, loss.weight
        )
    if _pairs_elements(loss) and getattr(loss, "reduction", "mean") == "mean":
        return lambda batch: float(split(batch)[1].numel())
    return None


def _targets_that_count(target: Tensor, ignored: int, weight: Tensor | None) -> float:
    # Probabilities of classes are (N, C, ...): a mean over all but the classes.
    if target.is_floating_point():
        classes = target.shape[1] if target.ndim > 1 else target.numel()
        return target.numel() / max(1, classes)
    counted = target != ignored
    if weight is None:
        return float(counted.sum())
    return float(weight.detach().double()[target[counted].to(weight.device)].sum())


# Losses that are means over pairs of elements of output and target: broadcasting them
# is a mistake.
_PAIRED_FUNCTIONS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy_with_logits,
    F.binary_cross_entropy,
)
_PAIRED_MODULES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCEWithLogitsLoss,
    nn.BCELoss,
)


def _is_known(loss: Any) -> bool:
    return any(loss is function for function in LOSSES.values()) or _pairs_elements(
        loss
    )


def _pairs_elements(loss: Any) -> bool:
    if isinstance(loss, nn.Module):
        return type(loss) in _PAIRED_MODULES and getattr(loss, "weight", None) is None
    return any(loss is function for function in _PAIRED_FUNCTIONS)


def check_equal_shapes(output: Any, target: Any) -> None:
    """Refuse what PyTorch would broadcast: (N, 1) against (N,) gives (N, N) pairs.

    Raises:
        UsageError: The shapes differ.
    """
    if (
        isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and output.shape != target.shape
    ):
        raise UsageError(
            f"The model gives outputs of shape {tuple(output.shape)}, but the targets "
            f"have shape {tuple(target.shape)}; this loss compares them element by "
            "element and needs equal shapes. Reshape the "
            f"targets{_reshaping(output, target)}, or change the model's last layer."
        )


def _reshaping(output: Tensor, target: Tensor) -> str:
    return (
        ", for instance with y.unsqueeze(-1)"
        if output.shape == (*target.shape, 1)
        else ""
    )


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a batch's inputs.

    That is ``model(inputs)``, ``model(*inputs)`` for a tuple or list, and
    ``model(**inputs)`` for a mapping.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def split(batch: Any) -> tuple[Any, Any]:
    """Split a batch ``(inputs, target)`` or ``(input, input, ..., target)``.

    Raises:
        UsageError: The batch has another form.
    """
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise UsageError(
        f"A batch of type {type(batch).__name__} does not say which part is the "
        "target. Give batches (inputs, target), or a loss Closure(lambda model, batch: "
        "...) that takes batches as they are."
    )
