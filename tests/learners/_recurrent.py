"""A recurrent classifier on sequences of unequal length: which of two tokens came more
often?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

from nablab.training import Minimize, Moment, Sequences

TOKENS = 3  # the first one is the padding


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 4, padding_idx=0)
        self.recurrent = nn.GRU(4, 8, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(8, 2)

    def forward(self, batch: Any) -> Tensor:
        embedded = self.embedding(batch["tokens"])
        packed = pack_padded_sequence(
            embedded, batch["lengths"].cpu(), batch_first=True, enforce_sorted=False
        )
        _, hidden = self.recurrent(packed)
        scores: Tensor = self.output(self.dropout(hidden[-1]))
        return scores


def loss(net: Any, batch: Any, moment: Moment) -> Mapping[str, Tensor]:
    return {"loss": cross_entropy(net(batch), batch["y"])}


def sequences(samples: int, seed: int) -> Sequences:
    draw = torch.Generator().manual_seed(seed)
    # odd, so that there is no draw
    lengths = torch.randint(3, 20, (samples,), generator=draw) | 1
    values = torch.randint(
        1, TOKENS, (int(lengths.sum()),), generator=draw, dtype=torch.int32
    )
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ones = torch.stack([(part == 1).sum() for part in values.split(lengths.tolist())])
    return Sequences(values, starts, (2 * ones > lengths).long())


def learner() -> Minimize:
    return Minimize(Reader, loss, clip_norm=1.0, read=lambda net, batch: net(batch))
