"""Losses that are not a plain mean over samples, or know more than their arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.instruments.battery.case import EITHER, REFUSAL, Model, rows_of, run, split
from tests.instruments.battery.models.layers import classification, dense

_OUTPUTS_ALONE = {"gradient_norm per sample": REFUSAL}


def penalized(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that reaches the model past its arguments."""
    return lambda output, target: F.mse_loss(output, target) + _penalty(model)


def _penalty(model: nn.Module) -> Tensor:
    return (
        0.1
        * torch.stack(
            [parameter.square().sum() for parameter in model.parameters()]
        ).sum()
    )


def penalized_plainly(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, target = split(batch)
    return F.mse_loss(run(model, inputs), target) + _penalty(model)


class Holding(nn.Module):
    """A loss module that holds the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + _penalty(self.model)


SAMPLE_WEIGHTS = torch.linspace(0.1, 1.0, 7)[:, None]


def weighted(output: Tensor, target: Tensor) -> Tensor:
    """Weights of samples that the loss knows by their place."""
    return (SAMPLE_WEIGHTS.to(output) * (output - target).square()).mean()


def partial_likelihood(output: Tensor, events: Tensor) -> Tensor:
    """Cox's likelihood: each row is compared with all rows before it."""
    return -((output[:, 0] - torch.logcumsumexp(output[:, 0], 0)) * events[:, 0]).mean()


def pairs() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3), torch.randn(7, 2)


def distributions() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3), torch.randn(7, 2).softmax(1)


class LogSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).log_softmax(1)


def ignoring() -> list[tuple[Tensor, Tensor]]:
    """Two batches, in which unequal numbers of targets count."""
    x, target = torch.randn(8, 3), torch.arange(8) % 2
    ignored = target.clone()
    ignored[1:5] = -100
    return [(x, target), (-x, ignored)]


ROWS = {
    "penalty on a captured model": Model(
        build=dense,
        data=pairs,
        loss=penalized,
        makes_loss=True,
        plain=penalized_plainly,
        sample=rows_of,
        answer=EITHER,
        matchable=True,
    ),
    "loss module that holds the model": Model(
        build=dense,
        data=pairs,
        loss=Holding,
        makes_loss=True,
        plain=penalized_plainly,
        sample=rows_of,
        answer=EITHER,
        matchable=True,
    ),
    "weights of samples by their place": Model(
        build=dense, data=pairs, loss=weighted, answers=_OUTPUTS_ALONE, matchable=True
    ),
    "Cox likelihood": Model(
        build=dense,
        data=lambda: (torch.randn(7, 3), (torch.rand(7, 1) > 0.3).float()),
        loss=partial_likelihood,
        answers=_OUTPUTS_ALONE,
        matchable=True,
    ),
    "weighted classes": Model(
        build=dense,
        data=classification,
        loss=lambda model: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
        makes_loss=True,
        answers=_OUTPUTS_ALONE,
        matchable=True,
    ),
    "mean over a batch's rows": Model(
        build=LogSoftmax,
        data=distributions,
        loss=nn.KLDivLoss(reduction="batchmean"),
        sample=rows_of,
    ),
    "ignored targets": Model(
        build=dense,
        data=ignoring,
        loss="cross_entropy",
        count=lambda batch: float((batch[1] != -100).sum()),
        answer=EITHER,
        answers={"gradient_norm per sample": REFUSAL},
        matchable=True,
    ),
}
