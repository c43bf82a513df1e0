"""Weights of a trunk from files: whatever fits but for its head, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.files.weights import load_weights, read_weights, set_trunk_weights
from nablab.models import SmallTrunk
from nablab.models.fields import WeightsFile


def network(classes: int = 3, widths: tuple[int, ...] = (4, 6)) -> nn.Module:
    return SmallTrunk(1, classes, widths=widths)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return network(classes=5).state_dict()


def given(state: dict[str, Tensor], file: Path) -> tuple[nn.Module, str]:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    net = network()
    return net, " ".join(set_trunk_weights(net, read_weights(file), file, head="head"))


def check(net: nn.Module, state: dict[str, Tensor], tolerance: float = 0.0) -> None:
    for name, part in net.state_dict().items():
        assert part.dtype in (torch.float32, torch.int64)
        if not name.startswith("head"):
            torch.testing.assert_close(
                part, state[name], rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_another_number_of_classes_is_noted(
    tmp_path: Path, state: dict[str, Tensor], ending: str
) -> None:
    file = tmp_path / f"w.{ending}"
    net, notes = given(state, file)
    check(net, state)
    assert notes == (
        f"The last layer tells 5 classes apart in '{file}'; it is not used, because "
        "the target has classes of its own."
    )


@pytest.mark.parametrize("which", [("weight", "bias"), ("bias",)])
def test_a_missing_head_is_noted_once(
    tmp_path: Path, state: dict[str, Tensor], which: tuple[str, ...]
) -> None:
    whole = {**state, "head.weight": torch.zeros(3, 6), "head.bias": torch.zeros(3)}
    for part in which:
        del whole[f"head.{part}"]
    net, notes = given(whole, tmp_path / "w.pth")
    check(net, state)
    assert notes.count("The last layer is missing in") == 1


def test_a_head_that_fits_needs_no_word(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    state |= {"head.weight": torch.ones(3, 6), "head.bias": torch.ones(3)}
    net, notes = given(state, tmp_path / "w.pth")
    assert notes == ""
    assert torch.equal(net.head.bias, torch.ones(3))  # type: ignore[arg-type]


def test_a_wrappers_prefix_and_half_precision_are_noted(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    halves = {
        f"module.{name}": part.half() if part.is_floating_point() else part
        for name, part in state.items()
    }
    net, notes = given(halves, tmp_path / "w.pth")
    check(net, state, tolerance=1e-3)
    assert "begin with 'module.', which a wrapper adds; it was left out" in notes
    assert "are float16; they are converted to float32" in notes
    halves["module.blocks.1.1.weight"] = halves["module.blocks.1.1.weight"].bfloat16()
    _, notes = given(halves, tmp_path / "w.safetensors")
    assert "are bfloat16 and float16; they" in notes


def test_files_without_counts_of_batches_fit(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    # torchvision's resnet18-f37072fd.pth is one.
    old = {name: part for name, part in state.items() if not name.endswith("tracked")}
    assert len(old) == len(state) - 2
    net, _ = given(old, tmp_path / "w.pth")
    check(net, state)
    assert load_weights(network(classes=5), tmp_path / "w.pth") == ()
    del old["blocks.0.2.running_mean"]
    with pytest.raises(UsageError, match=r"missing blocks\.0\.2\.num_batches_tracked"):
        given(old, tmp_path / "w.pth")


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_not_run(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file, made = tmp_path / "w.pth", tmp_path / "made"
    with pytest.raises(UsageError, match="Nothing of it was run"):
        given({**state, "extra": Harmful(made)}, file)  # type: ignore[dict-item]
    assert not made.exists()
    # A whole network is as dangerous, and as easily saved.
    with pytest.raises(UsageError, match="holds more than tensors"):
        given(network(), file)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_was_cut_short_is_refused(
    tmp_path: Path, state: dict[str, Tensor], ending: str, share: float
) -> None:
    file = tmp_path / f"w.{ending}"
    given(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 6, 8), r"missing nothing; not in the network blocks\.2\.1\.weight"),
        ((4,), r"missing blocks\.1\.1\.weight, blocks\.1\.2\.bias"),
        ((4, 7), r"'blocks\.1\.1\.weight' has shape \(7, 4, 3, 3\) there and \(6, 4"),
    ],
)
def test_another_architecture_is_refused(
    tmp_path: Path, widths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=f"do not fit SmallTrunk: .*{message}"):
        given(network(5, widths).state_dict(), tmp_path / "w.pth")


def test_a_head_that_is_one_number_is_no_head(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    _, notes = given({**state, "head.weight": torch.tensor(1.0)}, tmp_path / "w.pth")
    assert notes.count("The last layer") == 1


def test_a_field_of_weights_wants_a_file_and_knows_what_is_in_it(
    tmp_path: Path,
) -> None:
    field, file = WeightsFile(), tmp_path / "w.pth"
    for place in (file, tmp_path):
        with pytest.raises(UsageError, match=r"no file of weights at .*: give a"):
            field.check(str(place))
    file.write_bytes(b"abc")
    field.check(str(file))
    # SHA-256 of "abc", from FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert field.source(str(file)) == expected
