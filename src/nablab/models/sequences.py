"""Networks that read texts: embedding, encoder, one vector per text, classes.

A batch of texts is padded to its longest, and padding must not count: whatever a
network here says of a text is the same alone and beside longer ones.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nablab.errors import UsageError, unknown

Read = Literal["last", "max", "mean"]
Cell = Literal["rnn", "lstm", "gru"]
Start = Literal["default", "orthogonal"]

UNKNOWN = 1  # the number of every word that the vocabulary does not list
# New word vectors are short: a word that is hardly seen in training then says little.
EMBEDDING_STD = 0.1


class TextClassifier(nn.Module):
    """Word vectors, an encoder that gives a state per word, and a decision.

    Called as ``net(tokens, lengths)``, it gives float32 (N, outputs). Dropout hides
    whole coordinates of a text's word vectors (Gal and Ghahramani 2016), which takes a
    hundredth of the random numbers of dropout per word.

    Args:
        encoder: Called as ``encoder(x, lengths)`` with word vectors (N, T, embedding),
            it gives states (N, T, encoder.outputs).
        vocabulary: Numbers of words, from 0; 0 is padding.
        embedding: Coordinates of a word vector.
        outputs: Scores of a text; one for two classes.
        read: What becomes of the states: the ``"last"`` one, or over the words of the
            text the ``"max"`` of each coordinate or the ``"mean"``.
        dropout: Share of coordinates that training leaves out, of word vectors and of
            what is read.
        word_dropout: Share of words that training replaces by the unknown word.

    Raises:
        UsageError: There is no such reading.

    >>> net = TextClassifier(Recurrent(8, 4), vocabulary=9, embedding=8, outputs=1)
    >>> net(torch.tensor([[2, 3, 0]]), torch.tensor([2])).shape
    torch.Size([1, 1])
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        vocabulary: int,
        embedding: int,
        outputs: int,
        read: Read = "max",
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if read not in get_args(Read):
            raise unknown("reading", read, get_args(Read))
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.mul_(EMBEDDING_STD)
        self.encoder = encoder
        self.read = read
        self.word_dropout = word_dropout
        self.hide = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.outputs), outputs)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Score texts.

        Args:
            tokens: int64 (N, T), padded at the end.
            lengths: int64 (N,): words of each text, at least 1.
        """
        if self.training and self.word_dropout:
            hidden = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(hidden & (tokens > 0), UNKNOWN)
        states = self.encoder(self.vectors(tokens), lengths)
        scores: Tensor = self.head(self.hide(pooled(states, lengths, self.read)))
        return unhalved(scores)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return word vectors (N, T, embedding); those of padding are zero."""
        x: Tensor = self.embedding(tokens)
        if self.training and self.hide.p:
            x = x * self.hide(torch.ones_like(x[:, :1]))
        return x


class Recurrent(nn.Module):
    """A recurrent layer: each state is made of the one before it and the next word.

    PyTorch's layers, without its packed sequences: a packed batch of 128 texts took
    seven times as long as a padded one, on one core. Padding stands behind a text,
    where no state of the text sees it.

    Args:
        inputs: Coordinates of a word vector.
        hidden: Coordinates of a state; of each direction.
        cell: ``"rnn"`` (tanh, Elman 1990), ``"lstm"`` or ``"gru"``.
        both_ways: Whether a second layer reads from the end, its states beside those of
            the first.
        start: First weights from state to state; ``"orthogonal"`` ones keep the length
            of what they multiply (Saxe et al. 2014).

    Raises:
        UsageError: There is no such cell or start.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        cell: Cell = "lstm",
        both_ways: bool = False,
        start: Start = "default",
    ) -> None:
        super().__init__()
        kinds = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        if cell not in kinds:
            raise unknown("cell", cell, kinds)
        if start not in get_args(Start):
            raise unknown("start", start, get_args(Start))
        self.forwards = kinds[cell](inputs, hidden, batch_first=True)
        self.backwards = (
            kinds[cell](inputs, hidden, batch_first=True) if both_ways else None
        )
        self.outputs = hidden * (2 if both_ways else 1)
        if start == "orthogonal":
            for name, weight in self.named_parameters():
                if "weight_hh" in name:
                    for gate in torch.split(weight, hidden):
                        nn.init.orthogonal_(gate)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the states (N, T, outputs); those of padding mean nothing.

        Args:
            x: Word vectors (N, T, inputs).
            lengths: int64 (N,).
        """
        states = self._run(self.forwards, x)
        if self.backwards is None:
            return states
        # Each text is turned round within its own length: the second layer begins with
        # its last word, not with padding.
        place = reversed_places(lengths, x.shape[1])
        turned = self._run(self.backwards, _taken(x, place))
        return torch.cat([states, _taken(turned, place)], dim=-1)

    def _run(self, layer: nn.RNNBase, x: Tensor) -> Tensor:
        """Return all states of one direction.

        On a CPU PyTorch has a kernel for the bfloat16 LSTM, which takes half the time;
        a GRU is a loop there that would convert its weights at every word.
        """
        fast = isinstance(layer, nn.LSTM) or x.device.type != "cpu"
        cast = torch.is_autocast_enabled(x.device.type) and fast
        with torch.autocast(x.device.type, enabled=cast):
            states: Tensor = layer(x)[0]
        return states


def pooled(states: Tensor, lengths: Tensor, read: Read) -> Tensor:
    """Make one vector of a text's states, float (N, D).

    Args:
        states: (N, T, D).
        lengths: int64 (N,).
        read: See `TextClassifier`.
    """
    if read == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, lengths - 1]
    inside = mask(lengths, states.shape[1])[..., None]
    if read == "max":
        return states.masked_fill(~inside, -torch.inf).amax(dim=1)
    total = unhalved(states.masked_fill(~inside, 0)).sum(dim=1)
    return total / lengths[:, None]


def mask(lengths: Tensor, longest: int) -> Tensor:
    """Tell words from padding: bool (N, longest), true where there is a word.

    >>> mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def unhalved(x: Tensor) -> Tensor:
    """Return bfloat16 as float32, in which sums are safe; anything else as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x


def reversed_places(lengths: Tensor, longest: int) -> Tensor:
    """Return the places of words from the last to the first; padding stays.

    int64 (N, longest).

    >>> reversed_places(torch.tensor([2, 3]), 4).tolist()
    [[1, 0, 2, 3], [2, 1, 0, 3]]
    """
    place = torch.arange(longest, device=lengths.device).expand(len(lengths), -1)
    turned = lengths[:, None] - 1 - place
    return torch.where(turned >= 0, turned, place)


def _taken(x: Tensor, place: Tensor) -> Tensor:
    """Return x (N, T, D) with its words at other places (N, T)."""
    rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    # One index into rows of words: half the time of gather along the second axis.
    return x.reshape(-1, x.shape[-1])[rows + place]


def check_text_network(net: nn.Module, words: int, outputs: int) -> None:
    """Raise `UsageError` unless a network takes texts, as `TextClassifier` does.

    Args:
        net: The network; it is called on two short texts.
        words: Numbers of words, from 0.
        outputs: Classes; of two a network may score one.
    """
    tokens = torch.tensor([[1, 2, 3], [2, 0, 0]]).clamp(max=words - 1)
    lengths = torch.tensor([3, 1])
    before = net.training
    wanted = f"called as net(tokens, lengths) it must return (N, {outputs}) scores"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = net.eval()(tokens, lengths)
    except Exception as error:
        raise UsageError(
            f"The network {type(net).__name__} cannot read texts: {wanted}, and "
            f"{type(error).__name__} was raised: {error}"
        ) from error
    finally:
        net.train(before)
    allowed = {(2, outputs), (2, 1)} if outputs == 2 else {(2, outputs)}
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape not in allowed:
        raise UsageError(
            f"The network {type(net).__name__} gives {shape} for two texts: {wanted}."
        )
