"""Networks that read texts: padding must not count, and PyTorch's own modules agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from nablab import models
from nablab.errors import UsageError
from nablab.models.sequences import mask, pooled, reversed_places
from nablab.models.transformer import TransformerLayer, position_codes

WORDS, EMBEDDING = 30, 8
LENGTHS = torch.tensor([7, 1, 4, 5])
ENCODERS = {
    "rnn": lambda: models.Recurrent(EMBEDDING, 6, cell="rnn"),
    "lstm": lambda: models.Recurrent(EMBEDDING, 6),
    "gru": lambda: models.Recurrent(EMBEDDING, 6, cell="gru", start="orthogonal"),
    "bilstm": lambda: models.Recurrent(EMBEDDING, 3, both_ways=True),
    "transformer": lambda: models.TransformerEncoder(EMBEDDING, heads=2, layers=2),
    "cnn": lambda: models.Convolutions(EMBEDDING, 5),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(kind: str, **options: object) -> models.TextClassifier:
    torch.manual_seed(0)
    net = models.TextClassifier(
        ENCODERS[kind](),
        vocabulary=WORDS,
        embedding=EMBEDDING,
        outputs=3,
        **options,  # type: ignore[arg-type]
    )
    # Longer word vectors than at the start, so that a leak would be seen.
    with torch.no_grad():
        net.embedding.weight.mul_(20)
    return net.double().eval()


def batch(extra: int = 0) -> Tensor:
    torch.manual_seed(1)
    tokens = torch.randint(1, WORDS, (len(LENGTHS), int(LENGTHS.max()) + extra))
    return tokens.where(mask(LENGTHS, tokens.shape[1]), 0)


@pytest.mark.parametrize("read", ["last", "max", "mean"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_and_neighbors_do_not_count(kind: str, read: str) -> None:
    net, tokens = classifier(kind, read=read), batch()
    together = net(tokens, LENGTHS)
    longer = net(nn.functional.pad(tokens, (0, 9)), LENGTHS)
    torch.testing.assert_close(longer, together, rtol=0, atol=1e-9)
    alone = torch.cat(
        [
            net(row[:length][None], length[None])
            for row, length in zip(tokens, LENGTHS, strict=True)
        ]
    )
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)
    # What it reads does count: the last word of the longest text.
    other = tokens.clone()
    other[0, 6] = other[0, 6] % (WORDS - 1) + 1
    assert (net(other, LENGTHS)[0] - together[0]).abs().max() > 1e-6
    torch.testing.assert_close(net(other, LENGTHS)[1:], together[1:])


@pytest.mark.parametrize("kind", ENCODERS)
def test_gradients_of_padding_are_zero(kind: str) -> None:
    net, tokens = classifier(kind), batch(extra=3)
    x = net.vectors(tokens).detach().requires_grad_()
    states = net.encoder(x, LENGTHS)
    pooled(states, LENGTHS, "max").sum().backward()
    assert x.grad is not None
    outside = ~mask(LENGTHS, tokens.shape[1])
    assert x.grad[outside].abs().max() == 0


def test_bilstm_equals_pytorch_on_packed_sequences() -> None:
    net, tokens = classifier("bilstm"), batch()
    recurrent = net.encoder
    assert isinstance(recurrent, models.Recurrent)
    assert recurrent.backwards is not None
    reference = nn.LSTM(EMBEDDING, 3, batch_first=True, bidirectional=True).double()
    for name, weight in recurrent.forwards.named_parameters():
        getattr(reference, name).data.copy_(weight.data)
    for name, weight in recurrent.backwards.named_parameters():
        getattr(reference, f"{name}_reverse").data.copy_(weight.data)
    x = net.vectors(tokens)
    packed = nn.utils.rnn.pack_padded_sequence(
        x, LENGTHS, batch_first=True, enforce_sorted=False
    )
    wanted, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    found = recurrent(x, LENGTHS)
    inside = mask(LENGTHS, tokens.shape[1])
    torch.testing.assert_close(found[inside], wanted[inside])


def test_transformer_layer_equals_pytorch() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(EMBEDDING, 2, 12, 0.0).eval()
    theirs = nn.TransformerEncoderLayer(
        EMBEDDING, 2, 12, dropout=0.0, batch_first=True, norm_first=True
    ).eval()
    pairs = {
        "self_attn.in_proj_": ours.query_key_value,
        "self_attn.out_proj.": ours.attended,
        "linear1.": ours.feed_forward[0],
        "linear2.": ours.feed_forward[2],
        "norm1.": ours.attention_norm,
        "norm2.": ours.feed_forward_norm,
    }
    named = dict(theirs.named_parameters())
    for name, module in pairs.items():
        for part in ("weight", "bias"):
            named[name + part].data.copy_(getattr(module, part).data)
    x = torch.randn(4, 7, EMBEDDING)
    inside = mask(LENGTHS, 7)
    with torch.no_grad():
        wanted = theirs(x, src_key_padding_mask=~inside)
        found = ours(x, inside)
        torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-4, atol=1e-5)
        _, weights = theirs.self_attn(
            *[theirs.norm1(x)] * 3, key_padding_mask=~inside, average_attn_weights=False
        )
    torch.testing.assert_close(ours.weights(x, inside), weights, rtol=1e-4, atol=1e-5)


def test_attention_is_a_mean_over_the_words_of_a_text() -> None:
    net, tokens = classifier("transformer"), batch()
    assert isinstance(net.encoder, models.TransformerEncoder)
    weights = net.encoder.attention(net.vectors(tokens), LENGTHS)
    assert weights.shape == (2, 4, 2, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 2, 7).double())
    outside = ~mask(LENGTHS, 7)
    assert (weights.movedim(-1, 0)[:, :, outside.any(1)] >= 0).all()
    assert weights.permute(1, 4, 0, 2, 3)[outside].max() == 0


def test_without_positions_the_order_of_words_does_not_count() -> None:
    torch.manual_seed(0)
    x, lengths = torch.randn(1, 6, EMBEDDING).double(), torch.tensor([6])
    for positions in (False, True):
        encoder = models.TransformerEncoder(EMBEDDING, positions=positions).double()
        read = pooled(encoder(x, lengths), lengths, "max")
        turned = pooled(encoder(x.flip(1), lengths), lengths, "max")
        assert torch.allclose(read, turned) is not positions


def test_position_codes_are_those_of_the_paper() -> None:
    codes = position_codes(50, 6).double()
    place, coordinate = 31, 4
    angle = torch.tensor(place / 10_000 ** (coordinate / 6)).double()
    torch.testing.assert_close(codes[place, 4], angle.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(codes[place, 5], angle.cos(), rtol=0, atol=1e-6)
    assert position_codes(3, 5).shape == (3, 5)


def test_convolutions_see_windows_around_words() -> None:
    torch.manual_seed(0)
    encoder = models.Convolutions(EMBEDDING, 2, widths=(3,)).double()
    x = torch.randn(1, 4, EMBEDDING).double()
    conv = encoder.parts[0]
    assert isinstance(conv, nn.Conv1d)
    padded = nn.functional.pad(x, (0, 0, 1, 1))[0]
    wanted = torch.stack(
        [
            (conv.weight * padded[t : t + 3].T).sum((1, 2)) + conv.bias  # type: ignore[operator]
            for t in range(4)
        ]
    )
    torch.testing.assert_close(encoder(x, torch.tensor([4]))[0], wanted)


def test_orthogonal_start_keeps_lengths() -> None:
    gru = models.Recurrent(4, 6, cell="gru", start="orthogonal")
    for gate in torch.split(gru.forwards.weight_hh_l0, 6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=0, atol=1e-5)


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, -5.0], [3.0, -2.0], [9.0, 9.0]]])
    lengths = torch.tensor([2])
    assert pooled(states, lengths, "last").tolist() == [[3, -2]]
    assert pooled(states, lengths, "max").tolist() == [[3, -2]]
    assert pooled(states, lengths, "mean").tolist() == [[2, -3.5]]
    assert reversed_places(lengths, 3).tolist() == [[1, 0, 2]]


def test_dropout_only_in_training_and_drawn_from_the_seed() -> None:
    net, tokens = classifier("lstm", dropout=0.5, word_dropout=0.3), batch()
    assert torch.equal(net(tokens, LENGTHS), net(tokens, LENGTHS))
    net.train()
    torch.manual_seed(3)
    first = net(tokens, LENGTHS)
    assert not torch.equal(first, net(tokens, LENGTHS))
    torch.manual_seed(3)
    assert torch.equal(first, net(tokens, LENGTHS))
    # A coordinate is hidden for all words of a text, or for none.
    hidden = net.vectors(torch.full((3, 5), 2)) == 0
    assert (hidden.all(1) == hidden.any(1)).all()
    assert hidden.any()


def test_course_sizes() -> None:
    def size(encoder: nn.Module, embedding: int) -> int:
        net = models.TextClassifier(
            encoder, vocabulary=10_000, embedding=embedding, outputs=1
        )
        return sum(part.numel() for part in net.parameters())

    assert size(models.Recurrent(10, 32, cell="rnn"), 10) == 101_441
    assert size(models.Recurrent(10, 32, cell="lstm"), 10) == 105_665
    assert size(models.Recurrent(10, 32, cell="gru"), 10) == 104_257
    # The course's Transformer had a decoder, which was fed the labels.
    theirs = nn.Transformer(32, 2, 1, 1, 128, batch_first=True)
    whole = sum(part.numel() for part in theirs.parameters())
    assert whole + 10_000 * 32 + 2 * 32 + 32 + 1 == 349_921
    assert size(models.TransformerEncoder(32, feed_forward=128), 32) == 332_801


class Mean(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, outputs)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.table(tokens).sum(1) / lengths[:, None]


def test_networks_of_a_user_are_checked() -> None:
    models.check_text_network(Mean(2), WORDS, 2)
    models.check_text_network(Mean(1), WORDS, 2)
    with pytest.raises(UsageError, match=r"gives \(2, 3\) for two texts: called as"):
        models.check_text_network(Mean(3), WORDS, 2)
    with pytest.raises(UsageError, match="cannot read texts: called as net"):
        models.check_text_network(nn.Linear(3, 2), WORDS, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.Recurrent(4, 4, cell="lstn"), "Did you mean 'lstm'"),  # type: ignore[arg-type]
        (lambda: models.Recurrent(4, 4, start="zero"), "no start 'zero'"),  # type: ignore[arg-type]
        (lambda: models.TransformerEncoder(10, heads=4), "choose one of 1, 2, 5, 10"),
        (lambda: classifier("lstm", read="middle"), "no reading 'middle'"),
    ],
)
def test_what_cannot_be_built(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?i){message}"):
        make()  # type: ignore[operator]
