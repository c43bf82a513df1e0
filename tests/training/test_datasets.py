"""Data sets by index: batches are padded as PyTorch pads them, and keep what they
should of long ones.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from nablab.errors import UsageError
from nablab.training import Arrays, Sequences, Subset

LENGTHS = [3, 1, 6, 2]


def rows() -> list[torch.Tensor]:
    return list(torch.arange(1, 1 + sum(LENGTHS)).split(LENGTHS))


def stored(**options: object) -> Sequences:
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    values = torch.cat(rows()).to(torch.int32)
    return Sequences(values, starts, torch.tensor([7, 8, 9, 10]), **options)  # type: ignore[arg-type]


def test_sequences_are_padded_as_pytorch_pads_them() -> None:
    for padding in (0, -1):
        batch = stored(padding=padding).batch(torch.tensor([2, 0, 1]))
        expected = pad_sequence(
            [rows()[k] for k in (2, 0, 1)], batch_first=True, padding_value=padding
        )
        assert torch.equal(batch["tokens"], expected)
        assert batch["tokens"].dtype == torch.int64
        assert batch["lengths"].tolist() == [6, 3, 1]
        assert batch["y"].tolist() == [9, 7, 8]


@pytest.mark.parametrize(
    ("keep", "kept"), [("first", slice(None, 2)), ("last", slice(-2, None))]
)
def test_long_sequences_keep_their_first_or_last_elements(
    keep: str, kept: slice
) -> None:
    batch = stored(limit=2, keep=keep).batch(torch.arange(4))
    assert torch.equal(
        batch["tokens"], pad_sequence([row[kept] for row in rows()], batch_first=True)
    )
    assert stored(limit=2).lengths.tolist() == [2, 1, 2, 2]


def test_sequences_of_vectors_keep_their_axes() -> None:
    values = torch.randn(5, 3)
    data = Sequences(values, torch.tensor([0, 2, 5]), torch.zeros(2))
    expected = pad_sequence([values[:2], values[2:]], batch_first=True)
    assert torch.equal(data.batch(torch.tensor([0, 1]))["tokens"], expected)


@pytest.mark.parametrize("starts", [[0, 2, 2, 5], [1, 2, 5], [0, 2, 4], [0, 5]])
def test_sequences_that_do_not_fit_are_refused(starts: list[int]) -> None:
    labels = torch.zeros(3 if len(starts) == 4 else 2)
    with pytest.raises(UsageError, match="starts must rise from 0"):
        Sequences(torch.ones(5), torch.tensor(starts), labels)


def test_a_subset_counts_its_own_samples() -> None:
    part = Subset(Arrays(x=torch.arange(10) * 2), torch.tensor([9, 1]))
    assert len(part) == 2
    assert part.batch(torch.tensor([0]))["x"].tolist() == [18]
    assert set(part.tensors()) == {"x", "subset"}


def test_arrays_prepare_batches() -> None:
    data = Arrays(
        x=torch.tensor([0, 255], dtype=torch.uint8),
        prepare=lambda batch: {"x": batch["x"] / 255},
    )
    assert data.batch(torch.tensor([1]))["x"].tolist() == [1.0]
    assert data.to(torch.device("cpu")).batch(torch.tensor([1]))["x"].tolist() == [1.0]
