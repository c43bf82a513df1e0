"""What a loop saves of objects: every kind comes back exactly, and what cannot be saved
is named.
"""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.files import checkpoint_files
from nablab.lab import states
from nablab.lab.states import Packed

Pair = namedtuple("Pair", "first second")
FACTS = {"fingerprint": {"kind": "test"}}


def through_a_file(packed: Packed, folder: Path) -> Packed:
    """As a killed process finds it."""
    path = folder / "state.safetensors"
    checkpoint_files.save_arrays(
        path, packed.arrays, {**FACTS, "structure": packed.structure}
    )
    arrays, facts = checkpoint_files.load_arrays(path, FACTS["fingerprint"])
    return Packed(facts["structure"], arrays)


def assert_same(one: Any, other: Any) -> None:
    """Equal values of equal types, to the last bit, at any depth."""
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.requires_grad) == (
            other.dtype,
            other.shape,
            other.requires_grad,
        )
        as_bytes = [
            t.detach().resolve_conj().reshape(-1).view(torch.uint8)
            for t in (one, other)
        ]
        assert torch.equal(*as_bytes)
        return
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
            assert_same(
                getattr(one, "_metadata", None), getattr(other, "_metadata", None)
            )
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert (one.dtype, one.shape, np.isfortran(one)) == (
            other.dtype,
            other.shape,
            np.isfortran(other),
        )
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other or (one != one and other != other)


VALUES = {
    "nothing": None,
    "truth": [True, False],
    "numbers": [
        0,
        -1,
        2**200,
        0.1,
        -0.0,
        5e-324,
        math.inf,
        -math.inf,
        math.nan,
        1j,
        complex(-0.0, math.inf),
    ],
    "texts": ["", "ä ∇", "\ud800", 'a "quoted" \\ word', "\0"],
    "tuples in lists": [(), (1, (2, [3])), []],
    "mappings": {
        "a": {1: "int", "1": "text", 1.5: "float", None: 0, (1, "b"): 2},
        "truth": {True: 1},
    },
    "names of ours": {"array": 1, "tuple": [2], "mapping": {"scalar": 3}},
    "ordered": OrderedDict(b=1, a=OrderedDict()),
    "numpy scalars": [
        np.float64(0.1),
        np.float32(0.1),
        np.int8(-3),
        np.bool_(True),
        np.str_("text"),
    ],
    "dates": [
        np.datetime64("2020-01-01"),
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
    ],
    "tensors": [
        torch.arange(6).reshape(2, 3).T,
        torch.tensor(1.5),
        torch.tensor([0.1, math.nan], dtype=torch.bfloat16),
        torch.tensor([1 + 2j]).conj(),
        torch.zeros(0, 3),
        torch.tensor([True]),
        torch.ones(2, requires_grad=True),
    ],
}
ARRAYS = {
    "empty": np.zeros((0, 3)),
    "a number": np.array(2.5),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every second": np.arange(10)[::2],
    "broadcast": np.broadcast_to(np.array(1.0), (2, 2)),
    "big endian": np.arange(3, dtype=">f8"),
    "texts": np.array(["a", "longer"]),
    "bytes": np.array([b"a", b""]),
    "no texts": np.array([], dtype="U3"),
} | {
    name: np.array([0, 1, 3], dtype=name)
    for name in (
        "float64",
        "float32",
        "float16",
        "longdouble",
        "complex64",
        "complex128",
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    )
}


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_exactly(name: str, copies: bool, tmp_path: Path) -> None:
    found = states.unpack(
        through_a_file(states.pack(VALUES[name], "x", copies=copies), tmp_path)
    )
    assert_same(VALUES[name], found)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_exactly_and_can_be_written_to(
    name: str, tmp_path: Path
) -> None:
    found = states.unpack(through_a_file(states.pack([ARRAYS[name]], "x"), tmp_path))[0]
    assert_same(ARRAYS[name], found)
    assert found.flags.writeable


def test_any_mapping_comes_back_as_a_dict(tmp_path: Path) -> None:
    found = states.unpack(
        through_a_file(states.pack(MappingProxyType({"a": 1}), "x"), tmp_path)
    )
    assert_same({"a": 1}, found)


def test_copies_stay_as_they_were() -> None:
    weights = np.zeros(3)
    packed = states.pack({"weights": weights}, "x")
    weights += 1
    assert_same({"weights": np.zeros(3)}, states.unpack(packed))


@dataclass
class Inner:
    numbers: list[int] = field(default_factory=list)


@dataclass
class Learner:
    weights: np.ndarray
    inner: Inner = field(default_factory=Inner)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))


@dataclass(frozen=True)
class Frozen:
    number: int = 0


class Methods:
    def __init__(self) -> None:
        self.seen = ("nothing",)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Forgetful(Methods):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise KeyError("lost")


def test_several_objects_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Saved, changed and given back, each of them continues as an untouched one does."""

    def made() -> dict[str, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        return {
            "net": net,
            "optimizer": torch.optim.Adam(net.parameters()),
            "learner": Learner(np.zeros(2)),
            "methods": Methods(),
            "pcg": np.random.default_rng(0),
            "twister": np.random.Generator(np.random.MT19937(0)),
            "old": np.random.RandomState(0),
            "python": random.Random(0),
            "torch": torch.Generator().manual_seed(0),
        }

    def go_on(objects: dict[str, Any]) -> list[Any]:
        x = torch.randn(8, 2, generator=objects["torch"])
        loss = objects["net"](x).square().mean()
        objects["optimizer"].zero_grad()
        loss.backward()
        objects["optimizer"].step()
        learner = objects["learner"]
        learner.weights = learner.weights + learner.rng.normal(size=2)
        learner.inner.numbers.append(objects["python"].randrange(100))
        objects["methods"].seen += (float(objects["twister"].normal()),)
        random_numbers = [objects["pcg"].normal(), objects["old"].normal()]
        weights = [p.detach().clone() for p in objects["net"].parameters()]
        seen = [
            learner.weights.copy(),
            list(learner.inner.numbers),
            objects["methods"].seen,
        ]
        return [loss.item(), random_numbers, weights, seen]

    untouched = made()
    first, second, third = (go_on(untouched) for _ in range(3))
    interrupted = made()
    assert_same(go_on(interrupted), first)
    packed = through_a_file(states.take(interrupted), tmp_path)
    resumed = made()
    go_on(resumed), go_on(resumed)  # whatever it did before
    inner = resumed["learner"].inner
    states.give(resumed, packed)
    # the objects that the experiment holds are filled
    assert resumed["learner"].inner is inner
    assert_same(go_on(resumed), second)
    assert_same(go_on(resumed), third)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (3, r"lab\.steps cannot save state: it is of type int has no state_dict"),
        (
            {"w": np.zeros(2)},
            r"cannot save state\['w'\]: it is of type ndarray.* Hold it in a dataclass",
        ),
        (
            {"net": nn.Linear},
            r"cannot save state\['net'\]: it is the class Linear itself",
        ),
        ({1: Methods()}, r"by text, not by 1"),
        (
            Inner(numbers=[1, {2}]),
            r"cannot save state\['numbers'\]\[1\]: it is of type set\. It can be made",
        ),  # type: ignore[list-item]
        (
            {"a": Inner(numbers={"x": b""})},
            r"cannot save state\['a'\]\['numbers'\]\['x'\]: it is of type bytes",
        ),  # type: ignore[arg-type]
        (Inner(numbers=Pair(1, 2)), r"state\['numbers'\]: it is of type Pair"),  # type: ignore[arg-type]
        (Inner(numbers={(1, {}.values): 1}), r"state\['numbers'\] because of its key"),  # type: ignore[arg-type]
        (Learner(np.array([None])), r"state\['weights'\]: it is an array of object"),
        (Learner(np.zeros(2, dtype="i4,f8")), r"structured array"),
        (Learner(torch.zeros(2).to_sparse()), r"sparse or quantized"),  # type: ignore[arg-type]
        (Learner(np.ma.masked_array([1.0])), r"it is of type MaskedArray"),
        (
            {"f": Frozen()},
            r"cannot save state\['f'\]\.number: Frozen is frozen.* Leave out frozen=True",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(state: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        states.take(state)


def test_an_object_that_does_not_take_its_state_back_is_named() -> None:
    with pytest.raises(
        UsageError,
        match=r"state\['f'\] does not take back what it saved: KeyError: 'lost'",
    ):
        states.give({"f": Forgetful()}, states.take({"f": Methods()}))


def test_what_would_not_fit_into_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "MOST_FACTS", 5_000)
    with pytest.raises(UsageError, match="Keep long lists of numbers in NumPy arrays"):
        through_a_file(states.pack(list(range(5_000)), "x"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["cut", "flipped", "facts", "other kind"])
def test_a_file_that_was_changed_is_not_believed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint_files.save_arrays(path, {"a": np.arange(50.0)}, {**FACTS, "step": 7})
    content, wanted = path.read_bytes(), dict(FACTS["fingerprint"])
    if change == "cut":
        path.write_bytes(content[:-1])
    elif change == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "facts":
        path.write_bytes(
            content.replace(
                json.dumps({"step": 7})[1:-1].replace('"', '\\"').encode(),
                b'\\"step\\": 8',
            )
        )
        assert path.read_bytes() != content
    else:
        wanted["kind"] = "training"
    with pytest.raises(checkpoint_files.UnusableCheckpoint):
        checkpoint_files.load_arrays(path, wanted)
