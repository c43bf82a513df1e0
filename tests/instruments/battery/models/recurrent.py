"""Recurrent networks: both layouts, and sequences of unequal lengths."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from nablab.instruments import Closure
from tests.instruments.battery.case import EITHER, REFUSAL, Model, rows_of

STEPS, SEQUENCES = 3, 4


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        self.recurrent = kind(2, 2, batch_first=batch_first)
        self.head = nn.Linear(2, 2)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.recurrent(x)[0]
        return self.head(hidden[:, -1] if self.batch_first else hidden[-1])


class Packing(nn.Module):
    """Packs padded sequences itself."""

    def __init__(self, enforce_sorted: bool) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(2, 2, batch_first=True), nn.Linear(2, 2)
        self.enforce_sorted = enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=self.enforce_sorted
        )
        return self.head(self.recurrent(packed)[1][-1])


class OnPacked(nn.Module):
    """Takes packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(2, 2), nn.Linear(2, 2)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.head(self.recurrent(x)[1][0][-1])


def sequences(batch_first: bool) -> tuple[Tensor, Tensor]:
    shape = (SEQUENCES, STEPS, 2) if batch_first else (STEPS, SEQUENCES, 2)
    return torch.randn(shape), torch.arange(SEQUENCES) % 2


def padded() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(SEQUENCES, STEPS, 2),
        torch.tensor([3, 3, 2, 1]),
        torch.arange(SEQUENCES) % 2,
    )


def packed() -> tuple[PackedSequence, Tensor]:
    x, lengths, target = padded()
    return pack_padded_sequence(x, lengths, batch_first=True), target


def packed_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _layout(kind: type[nn.RNNBase], batch_first: bool) -> Model:
    time_first = (
        {}
        if batch_first
        else {"gradient_norm per sample": REFUSAL, "input_sensitivity": EITHER}
    )
    return Model(
        build=lambda: Recurrent(kind, batch_first),
        data=lambda: sequences(batch_first),
        loss="cross_entropy",
        sample=rows_of if batch_first else None,
        answers=time_first,
    )


# Lengths must be whole numbers in the CPU's memory and sorted, which a sample by itself
# is.
_ONE_BY_ONE = {"input_sensitivity": EITHER}

ROWS = {
    "LSTM": _layout(nn.LSTM, True),
    "LSTM, time first": _layout(nn.LSTM, False),
    "GRU": _layout(nn.GRU, True),
    "GRU, time first": _layout(nn.GRU, False),
    "sequences packed inside": Model(
        build=lambda: Packing(False),
        data=padded,
        loss="cross_entropy",
        sample=rows_of,
        answers=_ONE_BY_ONE,
    ),
    "sequences packed inside, sorted": Model(
        build=lambda: Packing(True),
        data=padded,
        loss="cross_entropy",
        sample=rows_of,
        answers=_ONE_BY_ONE,
    ),
    "packed sequences": Model(
        build=OnPacked,
        data=packed,
        loss=Closure(packed_loss, samples=lambda batch: len(batch[1])),
        count=lambda batch: float(len(batch[1])),
        answer=EITHER,
        answers={"gradient_norm per sample": REFUSAL, "input_sensitivity": REFUSAL},
    ),
}
