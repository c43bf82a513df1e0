"""A Transformer encoder over words (Vaswani et al. 2017), made to be read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nablab.errors import UsageError
from nablab.models.sequences import EMBEDDING_STD, mask, unhalved


class TransformerEncoder(nn.Module):
    """Layers in which each word looks at all words of its text.

    An encoder for `nablab.models.TextClassifier`. Layers normalize before they compute
    (Xiong et al. 2020), which needs no long warm-up.

    Args:
        inputs: Coordinates of a word vector and of a state.
        heads: Attention heads; they share the coordinates evenly.
        feed_forward: Hidden units of the layer that each word goes through.
        layers: How many.
        dropout: Share of each layer's results that training leaves out.
        positions: Whether words are told where they stand.

    Raises:
        UsageError: The heads do not divide the coordinates.
    """

    def __init__(
        self,
        inputs: int,
        *,
        heads: int = 2,
        feed_forward: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        positions: bool = True,
    ) -> None:
        super().__init__()
        if inputs % heads:
            raise UsageError(
                f"{heads} heads cannot share {inputs} coordinates evenly: choose one "
                f"of {', '.join(str(n) for n in range(1, inputs + 1) if not inputs % n)}."
            )
        self.outputs = inputs
        self.positions = positions
        self.layers = nn.ModuleList(
            TransformerLayer(inputs, heads, feed_forward, dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(inputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the states (N, T, outputs); those of padding mean nothing.

        Args:
            x: Word vectors (N, T, inputs).
            lengths: int64 (N,).
        """
        inside = mask(lengths, x.shape[1])
        x = self.placed(x)
        for layer in self.layers:
            x = layer(x, inside)
        states: Tensor = self.norm(x)
        return states

    def attention(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return how much each word looks at each, (layers, N, heads, T, T).

        Rows, the words that look, add up to 1 over the words of the text.
        """
        inside = mask(lengths, x.shape[1])
        x = self.placed(x)
        found = []
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            found.append(layer.weights(x, inside))
            x = layer(x, inside)
        return torch.stack(found)

    def placed(self, x: Tensor) -> Tensor:
        """Add to each word vector the code of its place."""
        if not self.positions:
            return x
        return x + EMBEDDING_STD * position_codes(x.shape[1], x.shape[2]).to(x)


class TransformerLayer(nn.Module):
    """Attention, then a small network for each word, each added to what came in.

    Args:
        inputs: Coordinates of a state.
        heads: Attention heads.
        feed_forward: Hidden units.
        dropout: Share of what is added that training leaves out.
    """

    def __init__(
        self, inputs: int, heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(inputs)
        self.query_key_value = nn.Linear(inputs, 3 * inputs)
        self.attended = nn.Linear(inputs, inputs)
        self.feed_forward_norm = nn.LayerNorm(inputs)
        self.feed_forward = nn.Sequential(
            nn.Linear(inputs, feed_forward),
            nn.ReLU(),
            nn.Linear(feed_forward, inputs),
        )
        self.hide = nn.Dropout(dropout)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return states of the same shape.

        Args:
            x: (N, T, inputs).
            inside: bool (N, T): where there are words.
        """
        query, key, value = self._parts(x)
        # In bfloat16 PyTorch's attention takes 2.4 times as long on a CPU.
        with torch.autocast(x.device.type, enabled=False):
            found = functional.scaled_dot_product_attention(
                unhalved(query),
                unhalved(key),
                unhalved(value),
                attn_mask=inside[:, None, None],
            )
        joined = found.transpose(1, 2).flatten(2)
        x = x + self.hide(self.attended(joined))
        added: Tensor = self.feed_forward(self.feed_forward_norm(x))
        out: Tensor = x + self.hide(added)
        return out

    def weights(self, x: Tensor, inside: Tensor) -> Tensor:
        r"""Return the attention weights (N, heads, T, T).

        They are :math:`\mathrm{softmax}(q k^\top / \sqrt{d})` over the words inside,
        with d coordinates in a head.
        """
        query, key, _ = self._parts(x)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.masked_fill(~inside[:, None, None], -torch.inf).softmax(-1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (N, heads, T, coordinates) each."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).chunk(3, -1)
        )
        return query, key, value


def position_codes(places: int, coordinates: int) -> Tensor:
    r"""Return sines and cosines of each place, float32 (places, coordinates).

    Coordinate 2i of place t is :math:`\sin(t / 10000^{2i/d})`, the next one its cosine
    (Vaswani et al. 2017, section 3.5).

    >>> position_codes(2, 2)[1].tolist() == [torch.tensor(1.0).sin().item(),
    ...     torch.tensor(1.0).cos().item()]
    True
    """
    even = torch.arange(0, coordinates, 2)
    angles = torch.arange(places)[:, None] / 10_000 ** (even / coordinates)
    codes = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return codes[:, :coordinates]
