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

def three():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = nn.Linear(3, 3), kind
    def forward(self, x):
        out = self.inner(x)
        return {"tuple": (out, x), "dict": {"logits": out}, "list": [out]}[self.kind]

def a_tuple():
    return Several("tuple")

def a_dict():
    return Several("dict")

def a_list():
    return Several("list")

def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))

def half_lazy():
    return nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 3))

def leaves():
    raise SystemExit(0)

class Leaves(Several):
    def forward(self, x):
        raise SystemExit

def leaves_later():
    return Leaves("list")

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
    def forward(self, x):
        if len(x) > 2:
            return [1, 2, 3][7] * self.inner(x)
        return self.inner(x)

def fails_on_many():
    return Fails()

def loud():
    print("a user's words")
    return three()
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "network.py").write_text(NETWORK)
    np.savez(
        tmp_path / "classes.npz",
        x=rng.normal(size=(30, 3)).astype("f4"),
        y=np.arange(30) % 2,
    )
    np.savez(
        tmp_path / "numbers.npz",
        inputs=rng.normal(size=(30, 3)),
        targets=rng.normal(size=(30, 2)),
    )
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
        nablab,
        "hessian_trace",
        "products=20",
        *MODEL,
        "--data",
        "classes.npz",
        "--weights",
        "1.safetensors",
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
def test_every_instrument_runs_and_draws(
    nablab_here: Nablab, tmp_path: Path, name: str
) -> None:
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
    twice = facts(
        nablab_here, "gradient_norm", *MODEL, "--data", "classes.npz", "classes.npz"
    )
    once = facts(nablab_here, "gradient_norm", *MODEL, "--data", "classes.npz")
    assert twice["norm"] == pytest.approx(once["norm"], rel=1e-5)


def test_images_are_data(nablab_here: Nablab) -> None:
    digits, model = (
        data.load("digits", split="test").first(50),
        ("--model", "network.py:digits"),
    )
    found = facts(nablab_here, "gradient_norm", *model, "--data", "digits:test@50")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loss = nn.functional.cross_entropy(
        network(digits.normalize(digits.images)), digits.labels
    )
    norm = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]
    ).norm()
    assert found["norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert (
        facts(nablab_here, "gradient_norm", *model, "--data", "digits@50")["norm"]
        != found["norm"]
    )


def test_a_loss_of_ones_own(nablab_here: Nablab) -> None:
    found = facts(
        nablab_here,
        "gradient_norm",
        *MODEL,
        "--data",
        "numbers.npz",
        "--loss",
        "network.py:mine",
    )
    usual = facts(nablab_here, "gradient_norm", *MODEL, "--data", "numbers.npz")
    assert found["norm"] != usual["norm"]


def test_the_cost_comes_without_the_measurement(nablab_here: Nablab) -> None:
    found = facts(
        nablab_here,
        "hessian_trace",
        "products=20",
        *MODEL,
        "--data",
        "classes.npz",
        "--cost",
    )
    assert set(found) == {"gradients", "seconds", "bytes", "notes"}


def test_instruments_and_their_options_are_listed(nablab_here: Nablab) -> None:
    listed = nablab_here("measure").stdout
    for name in instruments.INSTRUMENTS:
        assert name in listed
    options = nablab_here("measure", "hessian_trace").stdout
    assert "products" in options
    assert "float32 or float64" in options
    assert (
        json.loads(nablab_here("measure", "hessian_trace", "--json").stdout)["name"]
        == "hessian_trace"
    )


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
        (
            ("hessian_trace", "prodcts=3", *MODEL, "--data", "classes.npz"),
            "Did you mean 'products'",
        ),
        (
            ("hessian_trace", "products=many", *MODEL, "--data", "classes.npz"),
            "products='many' does not fit",
        ),
        (
            ("hessian_trace", "dtype=float16", *MODEL, "--data", "classes.npz"),
            "Choices: float32, float64",
        ),
        (
            ("hessian_trace", *MODEL, "--data", "classes.npz", "--loss", "mes"),
            "Did you mean 'mse'",
        ),
        (
            (
                "hessian_trace",
                *MODEL,
                "--data",
                "classes.npz",
                "--weights",
                "network.py",
            ),
            "cannot be read as safetensors",
        ),
        (("interpolate", *MODEL, "--data", "classes.npz"), "compares two models"),
        (
            ("trajectory_pca", "--weights", "0.safetensors"),
            "Give the points in weight space",
        ),
        (
            ("hessian_trace", *MODEL, "--data", "classes.npz", "--figure", "a.gif"),
            "There is no picture format '.gif'",
        ),
        (("hessian_trace", "inertia"), "One instrument at a time"),
    ],
)
def test_mistakes_are_named(
    nablab_here: Nablab, words: tuple[str, ...], text: str
) -> None:
    done = nablab_here("measure", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_weights_of_another_network_are_named(
    nablab_here: Nablab, tmp_path: Path
) -> None:
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
    np.savez(
        tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1)
    )
    done = nablab_here("measure", "hessian_trace", *MODEL, "--data", "objects.npz")
    assert done.returncode == 2
    assert "an array of Python objects, which is not read" in done.stderr


THREE = ("--model", "network.py:three")
INPUTS = np.random.default_rng(0).normal(size=(30, 3)).astype("f4")
CLASSES = np.arange(30) % 3


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (
            INPUTS,
            CLASSES + 1,
            "go from 1 to 3, but the network has 3 outputs: classes count from 0",
        ),
        (
            INPUTS,
            CLASSES * 7,
            "go from 0 to 14, but the network has 3 outputs: labels are from 0 to 2",
        ),
        (INPUTS, CLASSES - 1, "go from -1 to 1"),
        (INPUTS, CLASSES[:, None], "Drop the last axis of y: y = y[:, 0]"),
        (
            INPUTS,
            np.eye(3, dtype=int)[CLASSES],
            "needs one label per sample: shape (N,)",
        ),
        (
            INPUTS,
            CLASSES.astype(float),
            "If y holds classes, store whole numbers, y = y.astype('int64')",
        ),
        (INPUTS, INPUTS[:, 0], "mse needs equal shapes"),
        (INPUTS, INPUTS[:, :2], "mse needs equal shapes"),
        (
            INPUTS,
            np.array(["cat", "dog", "owl"])[CLASSES],
            "holds text ('cat' comes first)",
        ),
        (INPUTS, np.array([b"cat", b"dog", b"owl"])[CLASSES], "holds text"),
        (
            INPUTS,
            np.array(["2020-01-01"] * 30, dtype="M8[D]"),
            "holds datetime64[D], which is not a kind",
        ),
        (INPUTS, np.float64(1.0), "is a single number"),
        (INPUTS[:, :2], CLASSES, "fails on an input of shape (2, 2)"),
        (
            np.arange(90).reshape(30, 3),
            CLASSES,
            "if they are not indices, store float32",
        ),
        (INPUTS, CLASSES[:29], "30 inputs and 29 targets"),
    ],
)
def test_data_that_do_not_fit_the_network(
    nablab_here: Nablab, tmp_path: Path, x: np.ndarray, y: np.ndarray, text: str
) -> None:
    np.savez(tmp_path / "data.npz", x=x, y=y)
    for instrument in ("gradient_norm", "interpolate"):
        weights = (
            ()
            if instrument == "gradient_norm"
            else ("--weights", "a.safetensors", "a.safetensors")
        )
        save_file(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).state_dict(),
            tmp_path / "a.safetensors",
        )
        done = nablab_here(
            "measure", instrument, *THREE, "--data", "data.npz", *weights
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert text in " ".join(done.stderr.split())
        assert (
            done.stderr.startswith("Error: data.npz")
            or "The data file 'data.npz'" in done.stderr
        )
    assert (
        nablab_here(
            "measure", "gradient_norm", *THREE, "--data", "data.npz", "--cost"
        ).returncode
        == 2
    )


def test_a_target_with_or_without_a_last_axis_is_never_broadcast(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    x = np.linspace(-1, 1, 30, dtype="f4")[:, None]
    np.savez(tmp_path / "flat.npz", x=x, y=x[:, 0])
    np.savez(tmp_path / "column.npz", x=x, y=x)
    model = ("--model", "network.py:one_output")
    for loss in ("mse", "l1", "binary_cross_entropy"):
        done = nablab_here(
            "measure", "gradient_norm", *model, "--data", "flat.npz", "--loss", loss
        )
        assert done.returncode == 2
        assert "Give y one more axis: y = y[..., None]" in done.stderr
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    loss = nn.functional.mse_loss(network(torch.from_numpy(x)), torch.from_numpy(x))
    norm = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]
    ).norm()
    found = facts(nablab_here, "gradient_norm", *model, "--data", "column.npz")
    assert found["norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_whole_numbers_are_targets_of_losses_of_numbers(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    np.savez(tmp_path / "whole.npz", x=INPUTS, y=np.eye(3, dtype=int)[CLASSES])
    np.savez(
        tmp_path / "decimal.npz",
        x=INPUTS.astype(">f8"),
        y=np.eye(3, dtype=">f4")[CLASSES],
    )
    for loss in ("mse", "binary_cross_entropy", "l1"):
        words = ("gradient_norm", *THREE, "--loss", loss, "--data")
        assert facts(nablab_here, *words, "whole.npz") == facts(
            nablab_here, *words, "decimal.npz"
        )


def test_targets_outside_0_and_1_have_no_binary_cross_entropy(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=np.eye(3)[CLASSES] + 1)
    done = nablab_here(
        "measure",
        "gradient_norm",
        *THREE,
        "--data",
        "data.npz",
        "--loss",
        "binary_cross_entropy",
    )
    assert "The targets go from 1 to 2" in done.stderr


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("a_tuple", "returns a tuple; for cross_entropy it must return one tensor"),
        ("a_dict", "returns a dict"),
        ("a_list", "returns a list"),
        ("lazy", "whose layers have no size yet (0.weight)"),
        ("half_lazy", "whose layers have no size yet (1.weight)"),
        ("leaves", "raised SystemExit: 0 ("),
        ("leaves_later", "SystemExit ("),
    ],
)
def test_networks_that_cannot_be_measured(
    nablab_here: Nablab, tmp_path: Path, model: str, text: str
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=CLASSES)
    done = nablab_here(
        "measure",
        "hessian_trace",
        "--model",
        f"network.py:{model}",
        "--data",
        "data.npz",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off(
    nablab_here: Nablab, tmp_path: Path, cut: float
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=CLASSES)
    content = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(content[: int(cut * len(content))])
    done = nablab_here("measure", "hessian_trace", *THREE, "--data", "data.npz")
    assert done.returncode == 2
    assert "data.npz is not an .npz file, or it is damaged" in done.stderr


@pytest.mark.parametrize("instrument", ["gradient_norm", "hessian_trace", "sharpness"])
def test_an_error_that_nobody_foresaw_is_one_sentence(
    nablab_here: Nablab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instrument: str,
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=CLASSES)
    words = (
        "measure",
        instrument,
        "--model",
        "network.py:fails_on_many",
        "--data",
        "data.npz",
    )
    for more in ((), ("--cost",)):
        done = nablab_here(*words, *more)
        assert done.returncode == 1
        assert (
            f"Measuring {instrument} raised IndexError: list index out of range ("
        ) in done.stderr
        assert "network.py, line " in done.stderr
        assert len(done.stderr.splitlines()) == 1
    monkeypatch.setenv("NABLAB_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in nablab_here(*words).stderr


def saved(folder: Path, name: str, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).state_dict()
    state = {**state, **changed}
    save_file(state, folder / name)
    return state


def test_tensors_that_torch_saved_are_those_of_safetensors(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    state = saved(tmp_path, "w.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    words = ("gradient_norm", *MODEL, "--data", "classes.npz", "--weights")
    norms = [
        facts(nablab_here, *words, name)["norm"]
        for name in ("w.safetensors", "new.pth", "old.pt")
    ]
    assert len(set(norms)) == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out_and_said(
    nablab_here: Nablab, tmp_path: Path, prefix: str
) -> None:
    state = saved(tmp_path, "plain.safetensors")
    save_file(
        {prefix + name: tensor for name, tensor in state.items()},
        tmp_path / "wrapped.safetensors",
    )
    words = ("gradient_norm", *MODEL, "--data", "classes.npz", "--weights")
    wrapped, plain = (
        facts(nablab_here, *words, f"{name}.safetensors")
        for name in ("wrapped", "plain")
    )
    assert wrapped["norm"] == plain["norm"]
    assert f"begin with '{prefix}'" in wrapped["notes"][0]
    assert not plain["notes"]


def test_a_network_whose_own_names_begin_like_a_wrapper_keeps_them(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        NETWORK + "\n"
        "def own():\n"
        "    return nn.ModuleDict({'module': build()})['module']\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.module = build()\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    state = saved(tmp_path, "plain.safetensors")
    save_file(
        {f"module.{name}": tensor for name, tensor in state.items()},
        tmp_path / "own.safetensors",
    )
    words = (
        "gradient_norm",
        "--model",
        "own.py:Own",
        "--data",
        "classes.npz",
        "--weights",
    )
    assert not facts(nablab_here, *words, "own.safetensors")["notes"]


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(
    nablab_here: Nablab, tmp_path: Path, kind: torch.dtype
) -> None:
    saved(tmp_path, "w.safetensors", **{"0.weight": torch.ones(4, 3, dtype=kind)})
    done = nablab_here(
        "measure",
        "gradient_norm",
        *MODEL,
        "--data",
        "classes.npz",
        "--weights",
        "w.safetensors",
    )
    assert done.returncode == 2
    assert "'0.weight' holds" in done.stderr
    assert "and float32 in the network" in done.stderr


def test_weights_that_are_rounded_are_said_and_wider_ones_are_not(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    words = (
        "gradient_norm",
        *MODEL,
        "--data",
        "classes.npz",
        "--weights",
        "w.safetensors",
    )
    saved(
        tmp_path,
        "w.safetensors",
        **{"0.bias": torch.full((4,), 0.1, dtype=torch.float64)},
    )
    assert "rounded: float64 to float32" in facts(nablab_here, *words)["notes"][0]
    saved(
        tmp_path,
        "w.safetensors",
        **{"0.bias": torch.full((4,), 0.1, dtype=torch.float16)},
    )
    assert not facts(nablab_here, *words)["notes"]


def test_a_user_file_that_prints_leaves_the_json_alone(
    nablab: Nablab, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=CLASSES)
    (tmp_path / "network.py").write_text(
        NETWORK + "\nimport os\nprint('on import')\nos.write(1, b'past Python')\n"
    )
    words = (
        "measure",
        "gradient_norm",
        "--model",
        "network.py:loud",
        "--data",
        "data.npz",
        "--json",
    )
    done = nablab(*words)
    assert json.loads(done.stdout)["norm"] > 0
    assert all(
        text in done.stderr for text in ("on import", "past Python", "a user's words")
    )


def test_the_cost_with_a_user_file_that_prints_is_json(
    nablab_here: Nablab, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=INPUTS, y=CLASSES)
    model = ("--model", "network.py:loud")
    assert (
        facts(nablab_here, "gradient_norm", *model, "--data", "data.npz", "--cost")[
            "seconds"
        ]
        > 0
    )


def test_settings_may_stand_after_the_data(nablab_here: Nablab, tmp_path: Path) -> None:
    before = facts(
        nablab_here, "hessian_trace", "products=12", *MODEL, "--data", "classes.npz"
    )
    after = facts(
        nablab_here, "hessian_trace", *MODEL, "--data", "classes.npz", "products=12"
    )
    assert after == before
    points = ("--weights", "0.safetensors", "1.safetensors", "2.safetensors")
    late = facts(nablab_here, "trajectory_pca", *points, "components=1")
    assert late == facts(nablab_here, "trajectory_pca", "components=1", *points)
    done = nablab_here(
        "measure", "hessian_trace", *MODEL, "--data", "classes.npz", "prodcts=12"
    )
    assert "Did you mean 'products'" in done.stderr
    (tmp_path / "a=1.npz").write_bytes((tmp_path / "classes.npz").read_bytes())
    named = facts(nablab_here, "gradient_norm", *MODEL, "--data", "a=1.npz")
    assert named == facts(nablab_here, "gradient_norm", *MODEL, "--data", "classes.npz")


def test_figures_do_not_depend_on_the_surroundings(
    nablab: Nablab, nablab_here: Nablab, tmp_path: Path
) -> None:
    words = ("measure", "gradient_norm", *MODEL, "--data", "classes.npz", "--figure")
    (tmp_path / "mpl").mkdir()
    theirs = (
        "text.usetex: True\nfont.size: 30\nsavefig.facecolor: red\nlines.linewidth: 9\n"
    )
    (tmp_path / "mpl" / "matplotlibrc").write_text(theirs)
    done = nablab(
        *words,
        "theirs.png",
        # what a notebook's "!" hands on
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        MPLCONFIGDIR=str(tmp_path / "mpl"),
    )
    assert done.returncode == 0, done.stderr
    assert nablab_here(*words, "plain.png").returncode == 0
    assert (tmp_path / "theirs.png").read_bytes() == (
        tmp_path / "plain.png"
    ).read_bytes()


@pytest.mark.parametrize("device", ["0", "cuda0", "gpu", "meta", ""])
def test_a_device_that_is_none_is_refused_with_the_choices(
    nablab_here: Nablab, device: str
) -> None:
    words = ["--model", "network.py:three", "--data", "classes.npz", "--device", device]
    done = nablab_here("measure", "gradient_norm", *words)
    assert done.returncode == 2
    assert f"There is no device '{device}'" in done.stderr
    assert "Choices: cpu, cuda, mps" in done.stderr
