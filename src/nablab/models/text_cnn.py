"""Convolutions over words: detectors of short phrases (Kim 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablab.models.sequences import mask


class Convolutions(nn.Module):
    """Filters over windows of words, several widths side by side.

    An encoder for `nablab.models.TextClassifier`. A filter's largest value over the
    text (``read="max"``) tells whether its phrase occurs anywhere. There is no ReLU
    here, since one on the largest value does the same as one on each, in a hundredth of
    the time; with the linear decision behind it, it can also be left out.

    Args:
        inputs: Coordinates of a word vector.
        filters: Filters of each width.
        widths: Words that a filter sees.
    """

    def __init__(
        self, inputs: int, filters: int, *, widths: Sequence[int] = (3, 4, 5)
    ) -> None:
        super().__init__()
        self.outputs = filters * len(widths)
        self.parts = nn.ModuleList(
            nn.Conv1d(inputs, filters, width, padding=width // 2) for width in widths
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the filters' values (N, T, outputs), a window around each word.

        Beyond a text's ends stand zeros.

        Args:
            x: Word vectors (N, T, inputs).
            lengths: int64 (N,).
        """
        longest = x.shape[1]
        inside = mask(lengths, longest)[..., None]
        channels = (x * inside).transpose(1, 2)
        found = [part(channels)[..., :longest] for part in self.parts]
        return torch.cat(found, dim=1).transpose(1, 2)
