"""Products in bfloat16, where the hardware has them, do not change what is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nablab
from nablab import data
from nablab.errors import NablabError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cpu._is_amx_tile_supported(),
        reason="the processor has no matrix tiles for bfloat16",
    ),
]

# Networks large enough that an automatic precision rounds, and as few images as leave
# something to find.
SMALL: dict[str, dict[str, Any]] = {
    "cnn-depth": {
        "data": "digits",
        "networks": ("lenet", "cnn-343k"),
        "epochs": 4,
        "batch_size": 64,
        "validation": 0,
        "threshold": 0.9,
    },
    "random-labels": {
        "data": "mnist@2000",
        "learning_rate": 2e-3,
        "batch_size": 100,
        "epochs": 40,
    },
    "parameters-vs-generalization": {
        "data": "digits",
        "hidden": ("30", "100", "300", "1000"),
        "ratios": (),
        "batch_size": 100,
    },
    "interpolation": {
        "data": "mnist@6000",
        "networks": ("784-300-100-10",),
        "epochs": 4,
        "alphas": 11,
    },
    "sensitivity": {
        "data": "mnist@2000",
        "batch_sizes": (64, 500, 2_000),
        "inputs": 300,
    },
    "sharpness": {
        "data": "mnist@2000",
        "batch_sizes": (50, 400, 2_000),
        "epochs": 20,
        "learning_rates": (1e-3,),
        "measured": 500,
    },
}


@pytest.fixture(autouse=True, scope="module")
def _mnist():
    try:
        data.load("mnist", split="test")
    except NablabError as error:
        pytest.skip(f"MNIST is not here: {error}")


def outcomes(name: str, store: Path) -> tuple[dict[str, str], set[str]]:
    """The outcome of every claim, and the engines that the notes name."""
    run = nablab.run(name, seeds=8, jobs=1, store=store, **SMALL[name])
    text = " ".join(run.view().notes)
    engines = {
        engine
        for engine in ("fused-bfloat16 engine", "sequential engine")
        if engine in text
    }
    return {
        f"{found.claim} {dict(found.scope)}": found.outcome for found in run.verdicts
    }, engines


@pytest.mark.parametrize("name", SMALL)
def test_verdicts_do_not_contradict_those_in_float32(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded, engines = outcomes(name, tmp_path / "rounded")
    assert engines, "no engine that rounds was chosen: the comparison would say nothing"
    monkeypatch.setattr(
        "nablab.training.inputs.multiplies_bfloat16_fast", lambda device: False
    )
    exact, _ = outcomes(name, tmp_path / "exact")
    assert rounded.keys() == exact.keys()
    differing = {
        sentence: (rounded[sentence], exact[sentence])
        for sentence in rounded
        if rounded[sentence] != exact[sentence]
    }
    print(
        "\n"
        f"{name}: {len(rounded)} claims, {len(differing)} with another outcome: "
        f"{differing}"
    )
    assert not any(
        set(pair) == {"supported", "refuted"} for pair in differing.values()
    ), differing
    assert len(differing) <= 1 + len(rounded) // 5, differing
