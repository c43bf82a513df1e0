"""`nablab measure`: models, data and weights by name in, numbers and figures out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nablab import data, instruments
from tests.conftest import Nablab

NETWORK = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def digits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def one_output():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

def mine(output, target):
    return (output - target).abs().pow(1.5).mean()
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "network.py").write_text(NETWORK)
    np.savez(tmp_path / "classes.npz", x=rng.normal(size=(30, 3)).astype("f4"), y=np.arange(30) % 2)
    np.savez(tmp_path / "numbers.npz", inputs=rng.normal(size=(30, 3)), targets=rng.normal(size=(30, 2)))
    for seed in range(3):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        save_file(network.state_dict(), tmp_path / f"{seed}.safetensors")


def facts(nablab_here: Nablab, *words: str) -> dict:
    done = nablab_here("measure", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MODEL = ("--model", "network.py:build")


def test_numbers_are_those_of_python(nablab: Nablab, tmp_path: Path) -> None:
    found = facts(
        nablab, "hessian_trace", "products=20", *MODEL, "--data", "classes.npz", "--weights", "1.safetensors"
    )
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with np.load(tmp_path / "classes.npz") as file:
        batch = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]).long()
    expected = instruments.hessian_trace(network, "cross_entropy", batch, products=20)
    assert found["value"] == pytest.approx(expected.value, rel=1e-4)


def test_the_terminal_names_the_numbers(nablab_here: Nablab) -> None:
    done = nablab_here("measure", "gradient-norm", *MODEL, "--data", "numbers.npz")
    assert done.returncode == 0, done.stderr
    assert "gradient" in done.stdout
    assert "0.weight" in done.stdout


ONE_MODEL = {
    "hessian_eigenvalues": ("count=2",),
    "hessian_trace": ("products=12",),
    "hessian_diagonal": ("samples=5",),
    "spectral_density": ("steps=10", "probes=2"),
    "hessian_matrix": (),
    "inertia": (),
    "find_critical_point": ("max_iterations=3",),
    "gradient_norm": (),
    "loss_plane": ("resolution=5",),
    "input_sensitivity": (),
    "sharpness": (),
}
TWO_MODELS = {"interpolate": (), "match_units": ()}
POINTS = {"trajectory_pca": ()}


def test_every_instrument_is_tried() -> None:
    assert set(instruments.INSTRUMENTS) == {*ONE_MODEL, *TWO_MODELS, *POINTS}


@pytest.mark.parametrize("name", instruments.INSTRUMENTS)
def test_every_instrument_runs_and_draws(nablab_here: Nablab, tmp_path: Path, name: str) -> None:
    words = [*ONE_MODEL.get(name, ()), "--figure", "figure.png"]
    if name not in POINTS:
        words += [*MODEL, "--data", "classes.npz"]
    count = {**dict.fromkeys(TWO_MODELS, 2), **dict.fromkeys(POINTS, 3)}.get(name, 1)
    words += ["--weights", *[f"{seed}.safetensors" for seed in range(count)]]
    found = facts(nablab_here, name, *words)
    assert "gradients" in found
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_targets_are_data_and_batches_may_be_several(nablab_here: Nablab) -> None:
    model = ("--model", "network.py:one_output")
    whole = facts(nablab_here, "gradient_norm", *model, "--data", "sinc")
    assert whole["norm"] > 0
    twice = facts(nablab_here, "gradient_norm", *MODEL, "--data", "classes.npz", "classes.npz")
    once = facts(nablab_here, "gradient_norm", *MODEL, "--data", "classes.npz")
    assert twice["norm"] == pytest.approx(once["norm"], rel=1e-5)


def test_images_are_data(nablab_here: Nablab) -> None:
    digits, model = data.load("digits", split="test").first(50), ("--model", "network.py:digits")
    found = facts(nablab_here, "gradient_norm", *model, "--data", "digits:test@50")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loss = nn.functional.cross_entropy(network(digits.normalize(digits.images)), digits.labels)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).norm()
    assert found["norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert facts(nablab_here, "gradient_norm", *model, "--data", "digits@50")["norm"] != found["norm"]


def test_a_loss_of_ones_own(nablab_here: Nablab) -> None:
    found = facts(nablab_here, "gradient_norm", *MODEL, "--data", "numbers.npz", "--loss", "network.py:mine")
    usual = facts(nablab_here, "gradient_norm", *MODEL, "--data", "numbers.npz")
    assert found["norm"] != usual["norm"]


def test_the_cost_comes_without_the_measurement(nablab_here: Nablab) -> None:
    found = facts(nablab_here, "hessian_trace", "products=20", *MODEL, "--data", "classes.npz", "--cost")
    assert set(found) == {"gradients", "seconds_per_gradient", "seconds", "bytes"}


def test_instruments_and_their_options_are_listed(nablab_here: Nablab) -> None:
    listed = nablab_here("measure").stdout
    for name in instruments.INSTRUMENTS:
        assert name in listed
    options = nablab_here("measure", "hessian_trace").stdout
    assert "products" in options
    assert "float32 or float64" in options
    assert json.loads(nablab_here("measure", "hessian_trace", "--json").stdout)["name"] == "hessian_trace"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("hesian_trace", *MODEL), "Did you mean 'hessian_trace'"),
        (("hessian_trace", "--data", "classes.npz"), "Which network? Give --model"),
        (("hessian_trace", *MODEL), "Which data? Give --data"),
        (("hessian_trace", *MODEL, "--data", "none.npz"), "'none.npz' cannot be read"),
        (("hessian_trace", *MODEL, "--data", "sincc"), "Did you mean 'sinc'"),
        (("hessian_trace", *MODEL, "--data", "mnits@50"), "Did you mean 'mnist'"),
        (("hessian_trace", *MODEL, "--data", "digits:tset"), "Did you mean 'test'"),
        (("hessian_trace", *MODEL, "--data", "digits@5000"), "from 1 to 1,297"),
        (("hessian_trace", "prodcts=3", *MODEL, "--data", "classes.npz"), "Did you mean 'products'"),
        (("hessian_trace", "products=many", *MODEL, "--data", "classes.npz"), "products='many' does not fit"),
        (("hessian_trace", "dtype=float16", *MODEL, "--data", "classes.npz"), "Choices: float32, float64"),
        (("hessian_trace", *MODEL, "--data", "classes.npz", "--loss", "mes"), "Did you mean 'mse'"),
        (
            ("hessian_trace", *MODEL, "--data", "classes.npz", "--weights", "network.py"),
            "cannot be read as safetensors",
        ),
        (("interpolate", *MODEL, "--data", "classes.npz"), "compares two models"),
        (("trajectory_pca", "--weights", "0.safetensors"), "Give the points in weight space"),
        (
            ("hessian_trace", *MODEL, "--data", "classes.npz", "--figure", "a.gif"),
            "There is no picture format '.gif'",
        ),
        (("hessian_trace", "inertia"), "One instrument at a time"),
    ],
)
def test_mistakes_are_named(nablab_here: Nablab, words: tuple[str, ...], text: str) -> None:
    done = nablab_here("measure", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_weights_of_another_network_are_named(nablab_here: Nablab, tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "other.safetensors")
    other = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    save_file(other.state_dict(), tmp_path / "wide.safetensors")
    base = ("measure", "hessian_trace", *MODEL, "--data", "classes.npz", "--weights")
    assert "missing 0.bias" in nablab_here(*base, "other.safetensors").stderr
    assert (
        "'0.bias' has shape (5,) there and (4,) in the network"
        in nablab_here(*base, "wide.safetensors").stderr
    )


def test_nothing_is_unpickled(nablab_here: Nablab, tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    done = nablab_here("measure", "hessian_trace", *MODEL, "--data", "objects.npz")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
