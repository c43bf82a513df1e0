"""Whatever is typed: four exit codes, a sentence, no traceback, bounded memory and
time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.command_lines.runner import Server, check
from tests.command_lines.words import command_lines

FITTING = ("--model", "net.py:build", "--data", "data.npz")
NETWORKS = """
import sys
import torch
from torch import nn
print("a user's file prints")

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

def wide():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

def leaves():
    sys.exit()

def raises():
    raise KeyError("a user's mistake")

def text():
    return "no network"

nothing = None

def loss(output, target):
    return output.square().mean()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what command lines name."""
    place = tmp_path_factory.mktemp("lines")
    (place / "net.py").write_text(NETWORKS)
    (place / "broken.py").write_text("def build(:\n")
    (place / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype("f4"), np.arange(20) % 3
    np.savez(place / "data.npz", x=x, y=y)
    np.savez(place / "columns.npz", x=x, y=y[:, None])
    np.savez(place / "from_one.npz", x=x, y=y + 1)
    np.savez(place / "text.npz", x=x, y=np.array(["a"] * 20))
    (place / "cut.npz").write_bytes((place / "data.npz").read_bytes()[:300])
    state = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).state_dict()
    save_file(state, place / "weights.safetensors")
    save_file(
        {name: tensor.to(torch.int8) for name, tensor in state.items()},
        place / "int8.safetensors",
    )
    torch.save(state, place / "old.pth")
    for name in ("cats", "dogs"):
        (place / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "pictures" / name / f"{number}.png")
    rows = [("good", "pos"), ("bad, dull", "neg")] * 6
    lines = "".join(f'"{text} {n}",{label}\n' for n, (text, label) in enumerate(rows))
    (place / "reviews.csv").write_text(f"text,label\n{lines}")
    (place / "one.csv").write_text("text,label\nfine,pos\nnice,pos\n")
    (place / "torn.csv").write_text('text,label\n"never closed,pos\nnice,neg\n')
    for number, (text, label) in enumerate(rows):
        (place / "letters" / label).mkdir(parents=True, exist_ok=True)
        (place / "letters" / label / f"{number}.txt").write_text(text)
    (place / "closed").mkdir()
    (place / "closed" / "net.py").write_text(NETWORKS)
    shutil.copy(place / "data.npz", place / "closed" / "data.npz")
    for name, origin in (("sealed.py", "net.py"), ("sealed.npz", "data.npz")):
        shutil.copy(place / origin, place / name)
        (place / name).chmod(0o000)
    return place


@pytest.fixture(scope="module")
def quick(folder: Path) -> Iterator[Server]:
    server = Server(folder, stubbed=True)
    (folder / "closed").chmod(0o000)
    yield server
    server.close()
    (folder / "closed").chmod(0o700)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Server]:
    server = Server(folder, stubbed=False)
    yield server
    server.close()


usual = settings(
    deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@settings(usual, max_examples=60, derandomize=True)
@given(words=command_lines())
def test_any_command_line(quick: Server, words: list[str]) -> None:
    check(words, quick.run(words))


@pytest.mark.slow
@settings(usual, max_examples=1_000)
@given(words=command_lines())
def test_a_thousand_command_lines(whole: Server, words: list[str]) -> None:
    check(words, whole.run(words))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "deep-vs-shallow", "steps=1e12", "--dry-run"],
        ["run", "toy", "steps=9e8", "--dry-run"],
        ["run", "random-labels", "epochs=1e12", "--dry-run"],
        ["run", "sensitivity", "most_steps=9223372036854775808", "--dry-run"],
        ["run", "cnn-depth", "data=digits", "batch_size=1e20", "--dry-run"],
        ["run", "cnn-depth", "data=digits", "networks=conv8k3p999", "--dry-run"],
        [
            "run",
            "cnn-depth",
            "data=digits",
            "networks=conv99999k1-conv99999k9p4",
            "--dry-run",
        ],
        ["run", "deep-vs-shallow", "networks=1-100000-100000-1", "--dry-run"],
        ["run", "toy", "--seeds", "1000000000"],
        ["run", "toy", "--seeds", "1e9"],
        ["run", "random-labels", "model=" + "a" * 5_000 + ".py:build", "--dry-run"],
        [
            "measure",
            "gradient_norm",
            "--model",
            "a" * 5_000 + ".py:build",
            "--data",
            "data.npz",
        ],
        [
            "measure",
            "gradient_norm",
            "--model",
            "~nobody/net.py:build",
            "--data",
            "data.npz",
        ],
        [
            "measure",
            "gradient_norm",
            "--model",
            "net.py:build",
            "--data",
            "b" * 5_000 + ".npz",
        ],
        [
            "measure",
            "gradient_norm",
            "--model",
            "net.py:build",
            "--data",
            "data.npz",
            "--weights",
            "c" * 999,
        ],
        ["measure", "loss_plane", "resolution=1e6", *FITTING],
        ["measure", "hessian_matrix", "--model", "net.py:leaves", "--data", "data.npz"],
        ["data", "get", "d" * 5_000],
        ["report", "e" * 5_000],
        ["compare", "e" * 5_000, "../" * 2_000],
        ["run", "toy", "fail=2", "--dry-run"],
        ["run", "random-labels", "model=leaves.py:build", "--dry-run"],
        ["run", "random-labels", "data=" + "f/" * 3_000, "--dry-run"],
        ["run", "random-labels", "data=king-james@20", "--dry-run"],
        ["run", "random-labels", "data=reviews.csv:text,label", "--dry-run"],
        ["run", "random-labels", "data=letters", "--dry-run"],
        ["measure", "gradient_norm", "--model", "net.py:build", "--data", "imdb"],
        ["measure", "gradient_norm", "--model", "net.py:build", "--data", "letters"],
    ],
)
def test_lines_that_once_hung_or_raised(quick: Server, words: list[str]) -> None:
    answer = quick.run(words)
    check(words, answer)
    assert answer.code in (1, 2), answer
    assert len(answer.stderr.splitlines()) <= 3
    assert answer.seconds < 5


@pytest.mark.parametrize(
    "words",
    [
        [
            "measure",
            "gradient_norm",
            "--model",
            "closed/net.py:build",
            "--data",
            "data.npz",
        ],
        [
            "measure",
            "gradient_norm",
            "--model",
            "net.py:build",
            "--data",
            "closed/data.npz",
        ],
        ["measure", "inertia", *FITTING, "--figure", "closed/a.png"],
        [
            "measure",
            "gradient_norm",
            "--model",
            "sealed.py:build",
            "--data",
            "data.npz",
        ],
        ["measure", "gradient_norm", "--model", "net.py:build", "--data", "sealed.npz"],
        ["run", "toy", "steps=20", "--seeds", "1", "--store", "closed"],
        ["run", "toy", "steps=20", "--seeds", "1", "--store", "net.py"],
        ["run", "random-labels", "data=closed/pictures", "--dry-run"],
    ],
)
def test_places_that_may_not_be_used(quick: Server, words: list[str]) -> None:
    answer = quick.run(words)
    check(words, answer)
    assert answer.code in (1, 2)
    assert any(name in answer.stderr for name in ("closed", "sealed", "net.py")), answer
