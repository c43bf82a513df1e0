"""A single network, and two: every engine saves, goes on and hands out its weights as
for many.
"""

import pytest
import torch
from torch import nn

from nablab.errors import Interrupted
from nablab.training import (
    Adam,
    Checkpoint,
    EarlyStopping,
    Probe,
    Unsupported,
    checkpoints,
    fit,
)
from nablab.training.fused import compiler


def dense():
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))


def one_weight():
    return nn.Sequential(nn.Linear(1, 1, bias=False))


def for_images():
    return nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))


class Scaled(nn.Module):
    """Parameters without axes and of one element, which only PyTorch's engines serve."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.scale * torch.tanh(self.layer(x))


class Emptied(nn.Module):
    """A parameter without elements beside others."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.nothing = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.layer(x) + self.nothing.sum()


class Normed(nn.Module):
    """Buffers, one of them without axes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout(0.2))

    def forward(self, x):
        return self.layers(x)


def has_tiles():
    try:
        return bool(compiler.load("float", "bfloat16.c").nablab_has_tiles())
    except Unsupported:
        return False


def numbers():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(10, 1, generator=draw)
    return {"data": (x, torch.sin(2 * x)), "loss": "mse"}


def images():
    draw = torch.Generator().manual_seed(0)
    data = (
        torch.randn(10, 1, 4, 4, generator=draw),
        torch.randint(2, (10,), generator=draw),
    )
    return {"data": data, "loss": "cross_entropy"}


CASES = [
    ("fused", "auto", dense, numbers),
    ("fused", "auto", one_weight, numbers),
    ("fused-images", "auto", for_images, images),
    pytest.param(
        "fused-bfloat16",
        "auto",
        perceptron,
        lambda: images() | {"precision": "bfloat16"},
        marks=pytest.mark.skipif(
            not has_tiles(), reason="the processor has no matrix tiles"
        ),
    ),
    ("batched", "batched", Scaled, numbers),
    ("batched", "batched", Emptied, numbers),
    ("sequential", "sequential", Scaled, numbers),
    ("sequential", "sequential", Emptied, numbers),
    ("sequential", "auto", Normed, numbers),
    ("sequential", "sequential", for_images, images),
]


class Watching(Probe):
    """Keeps what it saw in a row of a longer tensor."""

    every = 2

    def __init__(self):
        self.seen = torch.zeros(1, 7)

    def on_step_end(self, context):
        self.seen[0, 3] += float(context.losses[0, -1])

    def state(self):
        return {"seen": self.seen[:, 3]}

    def load_state(self, state):
        self.seen[:, 3] = state["seen"]


def ask_after(calls):
    left = iter(range(calls - 1, -1, -1))
    return lambda: next(left, 1) == 0


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("engine", "choice", "build", "task"), CASES)
def test_saved_at_every_chunk_and_resumed_it_is_the_same(
    engine, choice, build, task, replicas, batch_size, tmp_path
):
    options = task() | {
        "seeds": range(replicas),
        "steps": 24,
        "eval_every": 7,
        "batch_size": batch_size,
        "optimizer": Adam(0.01),
        "replicas": choice,
        "stop": [EarlyStopping("train_loss", patience=50, restore_best=True)],
    }
    expected, watched = fit(build, **options, probes=[first := Watching()]), first.seen
    assert expected.engine == engine
    path, notes = tmp_path / "fit.safetensors", []
    for calls in (1, 2):
        with pytest.raises(Interrupted):
            fit(
                build,
                **options,
                probes=[Watching()],
                checkpoint=Checkpoint(path, every_seconds=0),
                should_stop=ask_after(calls),
            )
    again = Watching()
    result = fit(
        build,
        **options,
        probes=[again],
        checkpoint=Checkpoint(path, every_seconds=0),
        on_note=notes.append,
    )
    assert any("goes on from step" in note for note in notes), notes
    assert result.train_loss.tobytes() == expected.train_loss.tobytes()
    assert result.final.tobytes() == expected.final.tobytes()
    assert torch.equal(again.seen, watched)
    for at in ("final", "best"):
        found, wanted = result.parameters(at=at), expected.parameters(at=at)
        assert checkpoints.digest(found) == checkpoints.digest(wanted)


STRIDED = {
    "one element of a row": lambda: torch.arange(5.0)[2:3].as_strided((1,), (5,)),
    "one row of a wider matrix": lambda: torch.arange(15.0).reshape(3, 5)[1:2, 1:4],
    "one column": lambda: torch.arange(15.0).reshape(3, 5)[:, 3:4],
    "a corner": lambda: torch.arange(15.0).reshape(3, 5)[:1, 4:],
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).T,
    "every other": lambda: torch.arange(9, dtype=torch.int64)[::2],
    "one value for many places": lambda: torch.tensor([2.5]).expand(4),
    "no axis": lambda: torch.tensor(2.5),
    "no axis, cut from a row": lambda: torch.arange(5.0)[3],
    "no element": lambda: torch.zeros(3, 0, 2),
    "no element, cut from a row": lambda: torch.arange(5.0)[2:2],
    "one flag": lambda: torch.tensor([[True, False]])[:, 1],
    "bfloat16": lambda: torch.arange(6.0).to(torch.bfloat16).reshape(2, 3)[:1, 1],
    "conjugated": lambda: torch.tensor([[1 + 2j, 3 - 1j]])[:, 1].conj(),
    "channels last": lambda: (
        torch.arange(8.0).reshape(1, 2, 2, 2).to(memory_format=torch.channels_last)
    ),
}


@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED.keys())
def test_a_tensor_of_any_strides_is_saved_by_its_values(make, tmp_path):
    tensor = make()
    checkpoints.save(tmp_path / "x", {"t": tensor}, {"fingerprint": {}})
    found, _ = checkpoints.load(tmp_path / "x", {})
    assert found["t"].dtype == tensor.dtype
    assert found["t"].shape == tensor.shape
    assert torch.equal(found["t"], tensor)
    fresh = torch.tensor(tensor.tolist(), dtype=tensor.dtype).reshape(tensor.shape)
    assert checkpoints.digest({"t": tensor}) == checkpoints.digest({"t": fresh})
    changed = ~fresh if fresh.dtype == torch.bool else fresh + 1
    assert not fresh.numel() or checkpoints.digest(
        {"t": changed}
    ) != checkpoints.digest({"t": fresh})
