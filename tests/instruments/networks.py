"""Small networks of every kind that instruments serve, with data and a loss each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.instruments import Closure


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0][:, -1])


class Tied(nn.Module):
    """Embedding and output share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left) * self.right(right)))


class FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        context.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (x,) = context.saved_tensors
        return slope * x.cos()


class Sine(nn.Module):
    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.first, self.last, self.exact = nn.Linear(3, 4), nn.Linear(4, 1), exact

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(
            hidden.sin() if self.exact else FirstDerivativeOnly.apply(hidden)
        )


def convolutional() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    network(torch.randn(20, 1, 6, 6))  # running statistics of its own
    return network.eval()


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(12, 2)
    ).eval()


def dictionary_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.mse_loss(model(**batch["inputs"]), batch["target"])


Case = tuple[nn.Module, Any, Any]


def _classes(count: int) -> Tensor:
    return torch.arange(count) % 2


def _two_inputs() -> Case:
    inputs = {"left": torch.randn(7, 3), "right": torch.randn(7, 2)}
    loss = Closure(dictionary_loss, samples=lambda batch: len(batch["target"]))
    return TwoInputs(), loss, {"inputs": inputs, "target": torch.randn(7, 1)}


def _tokens() -> Tensor:
    return torch.randint(0, 5, (7, 3))


CASES: dict[str, Callable[[], Case]] = {
    "dense": lambda: (
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        "mse",
        (torch.randn(7, 3), torch.randn(7, 2)),
    ),
    "convolutional": lambda: (
        convolutional(),
        "cross_entropy",
        (torch.randn(7, 1, 6, 6), _classes(7)),
    ),
    "rnn": lambda: (Recurrent(nn.RNN), "cross_entropy", (_tokens(), _classes(7))),
    "gru": lambda: (Recurrent(nn.GRU), "cross_entropy", (_tokens(), _classes(7))),
    "lstm": lambda: (Recurrent(nn.LSTM), "cross_entropy", (_tokens(), _classes(7))),
    "transformer": lambda: (
        transformer(),
        "cross_entropy",
        (torch.randn(7, 3, 4), _classes(7)),
    ),
    "tied weights": lambda: (
        Tied(),
        "cross_entropy",
        (_tokens(), torch.randint(0, 5, (7,))),
    ),
    "two inputs": lambda: (
        TwoInputs(),
        nn.MSELoss(),
        (torch.randn(7, 3), torch.randn(7, 2), torch.randn(7, 1)),
    ),
    "dictionary": _two_inputs,
}


def case(name: str) -> Case:
    """A fresh network with its loss and data, the same every time."""
    torch.manual_seed(3)
    return CASES[name]()
