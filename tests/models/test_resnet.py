"""ResNet-18: the names and shapes of torchvision's, and weights from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nablab.errors import UsageError
from nablab.files.weights import load_weights
from nablab.models.resnet import BasicBlock, resnet18


def names_of_torchvision() -> list[str]:
    """Write its names down, stage by stage, as its files have them."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    found = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            place = f"layer{stage}.{block}"
            for number in (1, 2):
                found.append(f"{place}.conv{number}.weight")
                found += [f"{place}.bn{number}.{part}" for part in norm]
            if stage > 1 and block == 0:
                found.append(f"{place}.downsample.0.weight")
                found += [f"{place}.downsample.1.{part}" for part in norm]
    return [*found, "fc.weight", "fc.bias"]


def test_names_and_sizes_are_torchvisions() -> None:
    net = resnet18()
    state = net.state_dict()
    assert list(state) == names_of_torchvision()
    assert sum(part.numel() for part in net.parameters()) == 11_689_512
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)


def test_images_are_halved_five_times() -> None:
    net = resnet18(classes=7).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        inside = net.layer4(
            net.layer3(net.layer2(net.layer1(net.maxpool(net.conv1(x)))))
        )
        assert inside.shape == (2, 512, 2, 2)
        features = net.features(x)
        assert features.shape == (2, 512)
        torch.testing.assert_close(net(x), net.fc(features))
        # in evaluation mode an image stands for itself
        torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_a_block_that_finds_nothing_passes_on_what_came_in() -> None:
    block = BasicBlock(4, 4).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return resnet18(classes=4).state_dict()


@pytest.mark.parametrize("how", ["plain", "nested", "prefix", "half", "safetensors"])
def test_weights_fit_whatever_file_they_come_in(
    tmp_path: Path, state: dict[str, Tensor], how: str
) -> None:
    file = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pth")
    if how == "safetensors":
        save_file(state, file)
    elif how == "nested":
        torch.save({"epoch": 90, "best": 0.7, "state_dict": state}, file)
    elif how == "prefix":
        torch.save({f"module.{name}": part for name, part in state.items()}, file)
    elif how == "half":
        halves = {
            name: part.half() if part.is_floating_point() else part
            for name, part in state.items()
        }
        torch.save(halves, file)
    else:
        torch.save(state, file)
    net = resnet18(classes=4)
    notes = load_weights(net, file)
    for name, part in net.state_dict().items():
        assert part.dtype == state[name].dtype
        tolerance = 1e-2 if how == "half" else 0.0
        torch.testing.assert_close(part, state[name], rtol=tolerance, atol=tolerance)
    assert ("module." in "".join(notes)) is (how == "prefix")


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_not_run(
    tmp_path: Path, state: dict[str, Tensor], zipped: bool
) -> None:
    file, made = tmp_path / "w.pth", tmp_path / "made"
    torch.save(
        {**state, "extra": Harmful(made)},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UsageError, match=r"Nothing of it was run.*state_dict\(\)"):
        load_weights(resnet18(classes=4), file)
    assert not made.exists()


def test_what_does_not_fit_is_said(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "w.pth"
    torch.save(state, file)
    with pytest.raises(UsageError, match=r"'fc.weight' has shape \(4, 512\) there"):
        load_weights(resnet18(classes=9), file)
    with pytest.raises(UsageError, match="do not fit Linear: missing bias, weight"):
        load_weights(torch.nn.Linear(2, 2), file)
    torch.save([1, 2], file)
    with pytest.raises(UsageError, match="are no tensors by name, but list"):
        load_weights(resnet18(classes=4), file)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_file_that_was_cut_short_is_refused(
    tmp_path: Path, kind: str, share: float
) -> None:
    torch.manual_seed(0)
    small = {"weight": torch.randn(50, 50), "bias": torch.randn(50)}
    file = tmp_path / "w.pth"
    if kind == "safetensors":
        save_file(small, file)
    else:
        torch.save(small, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=r"w\.pth' cannot be read"):
        load_weights(torch.nn.Linear(50, 50), file)
