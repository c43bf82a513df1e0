"""Transformers: PyTorch's layers, and GPT and BERT with random weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.instruments import Closure, count_next_tokens
from tests.instruments.battery.case import VALUE, Model, rows_of

TOKENS, STEPS = 4, 5


class Encoder(nn.Module):
    """PyTorch's encoder layer, whose inference-only path has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            2, 1, 2, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Masked(nn.Module):
    """Attention with an additive mask that the batch carries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(
            self.attention(x, x, x, attn_mask=mask, need_weights=False)[0].mean(1)
        )


def masked() -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.triu(torch.full((3, 3), float("-inf")), diagonal=1)
    return torch.randn(4, 3, 2), mask, torch.arange(4) % 2


def gpt(attention: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=STEPS,
        n_embd=3,
        n_layer=1,
        n_head=1,
        n_inner=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
        use_cache=False,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention).eval()


def bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=3,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=STEPS,
        type_vocab_size=1,
        initializer_range=0.5,
    )
    return BertForSequenceClassification._from_config(
        config, attn_implementation=attention
    ).eval()


def texts() -> list[dict[str, Tensor]]:
    """Two batches; prompts and padding do not count, more of them in the second."""
    batches = []
    for size, ignored in ((3, 1), (2, 3)):
        tokens = torch.randint(0, TOKENS, (size, STEPS))
        labels = tokens.clone()
        labels[:, :ignored] = -100
        batches.append({"input_ids": tokens, "labels": labels})
    return batches


def sentences() -> dict[str, Tensor]:
    mask = torch.ones(4, STEPS, dtype=torch.long)
    mask[0, 3:] = mask[2, 4:] = 0
    # 0 is BERT's padding: it has no gradient
    tokens = torch.randint(1, TOKENS, (4, STEPS))
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.arange(4) % 2}


def next_token_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """What GPT's own loss is, without its cast of the outputs to float32."""
    outputs = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(
        outputs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )


def own_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return model(**batch).loss


def _gpt(attention: str) -> Model:
    return Model(
        build=lambda: gpt(attention),
        data=texts,
        loss=Closure(own_loss, samples=count_next_tokens),
        plain=next_token_loss,
        count=lambda batch: float((batch["labels"][:, 1:] != -100).sum()),
        sample=rows_of,
        token_inputs=True,
        tolerance=1e-5,  # of the cast
    )


def _bert(attention: str) -> Model:
    return Model(
        build=lambda: bert(attention),
        data=sentences,
        loss=Closure(own_loss),
        sample=rows_of,
        token_inputs=True,
    )


ROWS = {
    "encoder layer": Model(
        build=lambda: Encoder().eval(),
        data=lambda: (torch.randn(4, 3, 2), torch.arange(4) % 2),
        loss="cross_entropy",
        sample=rows_of,
    ),
    "attention mask with -inf": Model(
        build=Masked,
        data=masked,
        loss="cross_entropy",
        sample=lambda batch, i: (batch[0][i : i + 1], batch[1], batch[2][i : i + 1]),
        answers={"input_sensitivity": VALUE, "HessianOperator": VALUE},
    ),
    "GPT, eager attention": _gpt("eager"),
    "GPT, fused attention": _gpt("sdpa"),
    "BERT, eager attention": _bert("eager"),
    "BERT, fused attention": _bert("sdpa"),
}
