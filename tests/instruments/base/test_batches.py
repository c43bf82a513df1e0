"""Every form of data gives one weighted mean; the rest is refused by name."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nablab.errors import UsageError
from nablab.instruments.base.batches import is_batch, read_batches

X, Y = torch.randn(10, 3), torch.randn(10, 1)
CPU = torch.device("cpu")


def read(data: object, **options: object):
    return read_batches(data, device=CPU, dtype=torch.float32, **options)


class Rows(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return X[index], Y[index]


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        ((X, Y), (10,)),
        ([X, Y], (10,)),
        ([(X[:7], Y[:7]), (X[7:], Y[7:])], (7, 3)),
        (((X[:7], Y[:7]), (X[7:], Y[7:])), (7, 3)),
        (iter([(X, Y)]), (10,)),
        (TensorDataset(X, Y), (10,)),
        (Rows(), (10,)),
        (DataLoader(TensorDataset(X, Y), batch_size=4), (4, 4, 2)),
        ({"x": X, "y": Y}, (10,)),
        ([{"x": X[:7], "y": Y[:7]}, {"x": X[7:], "y": Y[7:]}], (7, 3)),
        (((X, X), Y), (10,)),
    ],
)
def test_all_forms_are_read(data: object, samples: tuple[int, ...]) -> None:
    batches = read(data)
    assert batches.samples == samples
    assert sum(batches.weights) == pytest.approx(1)
    first = batches.items[0]
    tensors = list(first.values()) if isinstance(first, dict) else list(first)
    assert torch.equal(tensors[-1], Y[: samples[0]])


def test_a_batch_is_cut_with_everything_in_it() -> None:
    batches = read(
        {"x": X, "nested": [Y, torch.tensor(3.0)], "word": "kept"}, batch_size=4
    )
    assert batches.samples == (4, 4, 2)
    assert torch.equal(batches.items[2]["nested"][0], Y[8:])
    assert batches.items[2]["nested"][1] == 3
    assert batches.items[2]["word"] == "kept"


def test_named_tuples_stay_named() -> None:
    Pair = namedtuple("Pair", ["x", "y"])
    assert read(Pair(X, Y)).items[0].y.shape == (10, 1)


def test_only_floating_point_tensors_change_their_dtype() -> None:
    classes = torch.arange(10)
    batches = read_batches((X, classes), device=CPU, dtype=torch.float64)
    assert batches.items[0][0].dtype == torch.float64
    assert batches.items[0][1].dtype == torch.int64


def test_what_is_counted_can_be_given() -> None:
    batches = read(
        [{"x": X}, {"x": X[:4]}], samples=lambda batch: int(batch["x"].shape[0] // 2)
    )
    assert batches.samples == (5, 2)


def test_one_batch_or_several() -> None:
    assert is_batch((X, Y))
    assert is_batch({"x": X})
    assert not is_batch([(X, Y)])
    assert not is_batch([])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "contain no batch"),
        (iter([]), "A generator can be read only once"),
        (3, "Data of type int cannot be read"),
        ((X[:0], Y[:0]), "Batch 0 of the data contains no sample"),
        (
            [(X, Y), (X, Y.clone().fill_(float("nan")))],
            r"Tensor 1 of batch 1 .* holds 10 values that are NaN",
        ),
        ([("words",)], "holds no tensor"),
    ],
)
def test_bad_data_are_named(data: object, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read(data)


def test_an_impossible_batch_size() -> None:
    with pytest.raises(UsageError, match="batch_size=0 is impossible"):
        read((X, Y), batch_size=0)
