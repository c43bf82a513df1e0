"""Features computed once: the network's own, each no more than once, folded exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nablab.models import (
    CachedFeatures,
    SmallTrunk,
    efficientnet_lite0,
    fold_batch_norms,
    resnet18,
)
from nablab.models import features as room


def settled(net: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales that are not 0 and 1."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.normal_(part.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return net.eval()


def norms_of(net: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())


@pytest.mark.parametrize(
    ("build", "channels", "norms"),
    [
        (lambda: SmallTrunk(1, 5, widths=(4, 6)), 1, 2),
        (lambda: resnet18(2), 3, 20),
        (lambda: efficientnet_lite0(2), 3, 49),
    ],
    ids=["small", "resnet18", "efficientnet-lite0"],
)
@torch.no_grad()
def test_folded_networks_give_the_same(build: Any, channels: int, norms: int) -> None:
    torch.manual_seed(0)
    net = settled(build()).double()
    x = torch.randn(2, channels, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    folded: Any = fold_batch_norms(net, x)
    assert (norms_of(net), norms_of(folded)) == (norms, 0)
    # On another input than that of the check; rounding alone is left in float64.
    other = torch.randn_like(x)
    torch.testing.assert_close(
        folded.features(other), net.features(other), rtol=1e-9, atol=1e-9
    )
    for name, part in net.state_dict().items():
        assert torch.equal(part, before[name])


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        once = self.conv(x)
        return self.norm(once) + once


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x))))


class Between(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2))


class First(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))


@pytest.mark.parametrize("kind", [Reused, Twice, Between, First])
@torch.no_grad()
def test_what_would_change_the_answer_is_not_folded(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = settled(kind())
    x = torch.randn(4, 2, 3, 3)
    found = fold_batch_norms(net, x)
    assert norms_of(found) == 1
    torch.testing.assert_close(found(x), net(x))


class Counting:
    """Prepares images, and counts them."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float() / 255


def test_features_are_computed_once_and_are_the_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "BATCH", 3)
    torch.manual_seed(0)
    net: Any = settled(SmallTrunk(1, 5, widths=(4, 6))).train()
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    prepare = Counting()
    cached = CachedFeatures(net, images, prepare)
    prepare.seen = 0  # two images were sent through to fold
    places = torch.tensor([7, 2, 2, 9])
    some = cached(places)
    assert prepare.seen == 3
    whole = cached()
    assert prepare.seen == 10
    assert torch.equal(cached(places), some)
    assert prepare.seen == 10
    assert torch.equal(whole[places], some)
    assert net.training
    with torch.no_grad():
        expected = net.eval().features(images.float() / 255)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    assert (whole.dtype, whole.requires_grad) == (torch.float32, False)
    # They may be learned from.
    head = nn.Linear(6, 2)
    head(whole).sum().backward()
    assert head.weight.grad is not None


def test_bfloat16_is_near() -> None:
    torch.manual_seed(0)
    net = settled(SmallTrunk(1, 5, widths=(4, 6)))
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    exact = CachedFeatures(net, images, Counting())()
    rounded = CachedFeatures(net, images, Counting(), bfloat16=True)()
    assert rounded.dtype == torch.float32
    difference = float((rounded - exact).norm() / exact.norm())
    assert 0 < difference < 0.02
