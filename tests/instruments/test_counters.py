"""Counters of language models' targets weigh batches as all data at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments import Closure, count_labels, count_next_tokens, gradient_norm


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()


def batches() -> list[dict[str, Tensor]]:
    """Prompts and padding of unequal lengths do not count."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for size, ignored in ((5, 1), (3, 4), (2, 0)):
        tokens = torch.randint(0, 7, (size, 6), generator=draw)
        labels = tokens.clone()
        labels[:, :ignored] = -100
        labels[0, -1] = -100
        found.append({"tokens": tokens, "labels": labels})
    return found


def shifted(network: nn.Module, batch: dict[str, Any]) -> Tensor:
    outputs = network(batch["tokens"])[:, :-1].flatten(0, 1)
    return F.cross_entropy(outputs, batch["labels"][:, 1:].flatten())


def in_place(network: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(
        network(batch["tokens"]).flatten(0, 1), batch["labels"].flatten()
    )


@pytest.mark.parametrize(
    ("loss", "samples"), [(shifted, count_next_tokens), (in_place, count_labels)]
)
def test_batches_weigh_by_the_targets_that_count(loss: Any, samples: Any) -> None:
    parts = batches()
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    right = gradient_norm(model(), Closure(loss, samples=samples), [whole])
    found = gradient_norm(model(), Closure(loss, samples=samples), parts)
    assert found.loss == pytest.approx(right.loss, rel=1e-12)
    assert found.norm == pytest.approx(right.norm, rel=1e-12)


def test_they_count_by_hand() -> None:
    labels = torch.tensor([[1, 2, -100], [-100, -100, 4], [3, 3, 3]])
    assert count_next_tokens({"labels": labels}) == 1 + 1 + 2
    assert count_labels({"labels": labels}) == 2 + 1 + 3
    assert count_next_tokens((torch.zeros(3, 3), labels)) == 4
    assert count_labels((torch.zeros(3), torch.tensor([0, -100, 1]))) == 2


@pytest.mark.parametrize(
    "batch", [{"ids": torch.zeros(2)}, (), torch.zeros(2, 2), (torch.zeros(3, 2),)]
)
def test_batches_without_labels_are_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match="holds no whole numbers under 'labels'"):
        count_next_tokens(batch)
