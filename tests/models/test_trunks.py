"""Networks taken apart: the head, the last block, what is frozen, and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.models import (
    FineTuned,
    SmallTrunk,
    check_trunk,
    efficientnet_lite0,
    head_of,
    last_block_of,
    moved_statistics,
    replace_head,
    resnet18,
    settle_statistics,
)


class Own(nn.Module):
    """A user's network: its last block is not named."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.first(x))).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


@pytest.fixture
def small() -> SmallTrunk:
    torch.manual_seed(1)
    return SmallTrunk(1, 5, widths=(4, 6, 8))


def images(count: int = 8, channels: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, 8, 8, generator=draw)


def test_the_small_trunk_halves_images_and_counts_its_parameters(
    small: SmallTrunk,
) -> None:
    convolutions = 9 * (1 * 4 + 4 * 6 + 6 * 8)
    norms, head = 2 * (4 + 6 + 8), 8 * 5 + 5
    parameters = sum(part.numel() for part in small.parameters())
    assert parameters == convolutions + norms + head
    x = images()
    assert small.blocks(x).shape == (8, 8, 2, 2)
    small.eval()
    torch.testing.assert_close(small(x), small.head(small.features(x)))
    assert check_trunk(small, (1, 8, 8)) == 8


@pytest.mark.parametrize(
    ("net", "head", "block"),
    [
        (SmallTrunk(1, 2), "head", ("blocks.2",)),
        (Own(), "out.1", ("norm",)),
        (resnet18(2), "fc", ("layer4",)),
        (efficientnet_lite0(2), "_fc", ("_blocks.15", "_conv_head", "_bn1")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_head_and_last_block_by_name(
    net: nn.Module, head: str, block: tuple[str, ...]
) -> None:
    assert head_of(net) == head
    assert last_block_of(net) == (*block, head)
    other = nn.Linear(net.get_submodule(head).in_features, 9)  # type: ignore[arg-type]
    assert replace_head(net, other) is net
    assert net.get_submodule(head) is other
    channels = 3 if hasattr(net, "mean") else 1
    with torch.no_grad():
        assert net.eval()(images(2, channels)).shape == (2, 9)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))


def test_what_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Sequential has no linear layer to replace"):
        head_of(nn.Sequential(nn.Conv2d(1, 2, 3)))
    net = Own()
    net.last_block = ("first", "third")  # type: ignore[assignment]
    with pytest.raises(UsageError, match="last_block of Own names third, which the"):
        last_block_of(net)
    with pytest.raises(UsageError, match=r"everything stands in one part\. Name it"):
        last_block_of(Wrapped())
    with pytest.raises(UsageError, match=r"Wrapped has no features: it must have"):
        check_trunk(Wrapped(), (1, 8, 8))
    net.out = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(
        UsageError, match=r"Own are \(2, 4\) for two images.* reads 3: .* with D = 3\."
    ):
        check_trunk(net, (1, 8, 8))
    with pytest.raises(UsageError, match="Own fails on an input of shape"):
        check_trunk(Own(), (3, 8, 8))


def test_checking_draws_no_random_number_and_leaves_the_network_alone() -> None:
    net = Own().train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert check_trunk(net, (1, 8, 8)) == 4
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training for part in net.modules())
    for name, part in net.state_dict().items():
        assert torch.equal(part, before[name])


def trained(net: FineTuned, steps: int = 3) -> FineTuned:
    net.train()
    moving = [part for part in net.parameters() if part.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.1)
    labels = torch.arange(8) % 5
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images()), labels).backward()
        optimizer.step()
    return net


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {
        name for name, part in after.state_dict().items() if not part.equal(old[name])
    }


def test_what_is_frozen_does_not_change_at_all(small: SmallTrunk) -> None:
    before = copy.deepcopy(small)
    net = trained(FineTuned(small, last_block_of(small)))
    assert all(
        name.startswith(("blocks.2.", "head.")) for name in changed(before, net.net)
    )
    assert {"blocks.2.1.weight", "blocks.2.2.running_mean", "head.bias"} <= changed(
        before, net.net
    )
    assert not small.blocks[1].training
    assert not small.blocks[1][2].training
    assert small.blocks[2][2].training
    assert not any(part.training for part in net.eval().modules())


def test_everything_is_everything(small: SmallTrunk) -> None:
    before = copy.deepcopy(small)
    net = trained(FineTuned(small))
    assert changed(before, net.net) == set(before.state_dict())
    assert net.still == []


def test_drifting_statistics_move_though_no_weight_does(small: SmallTrunk) -> None:
    before = copy.deepcopy(small)
    net = trained(FineTuned(small, ("head",), fixed_statistics=False))
    moved = changed(before, net.net) - {"head.weight", "head.bias"}
    assert moved == {
        f"blocks.{place}.2.{what}"
        for place in range(3)
        for what in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert moved_statistics(before, net.net) > 0.01
    right = trained(FineTuned(copy.deepcopy(before), ("head",)))
    assert moved_statistics(before, right.net) == 0


def test_how_far_statistics_moved_in_closed_form() -> None:
    before, after = nn.BatchNorm2d(2, eps=0.0), nn.BatchNorm2d(2, eps=0.0)
    assert before.running_var is not None
    assert after.running_mean is not None
    before.running_var.copy_(torch.tensor([4.0, 0.25]))
    after.running_mean.copy_(torch.tensor([2.0, 1.0]))  # 1 and 2 deviations
    assert moved_statistics(before, after) == pytest.approx(2.5**0.5)
    assert moved_statistics(nn.Linear(1, 1), nn.Linear(1, 1)) == 0


def test_settled_statistics_are_the_mean_over_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2))
    norm = net[0]
    norm.running_mean.fill_(9.0)
    batches = torch.randn(4, 5, 3, 6, 6) * 3 + 2
    settle_statistics(net, iter(batches))
    torch.testing.assert_close(norm.running_mean, batches.mean(dim=(0, 1, 3, 4)))
    each = torch.stack([part.transpose(0, 1).flatten(1).var(dim=1) for part in batches])
    torch.testing.assert_close(norm.running_var, each.mean(dim=0))
    assert (norm.momentum, norm.training) == (0.2, False)
