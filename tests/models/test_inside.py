"""What lies inside networks: the first convolution, and what parts of it give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab import models


def test_outputs_inside_are_those_of_the_layers_before() -> None:
    net = models.image_network("conv4k3p1-bn-pool-conv3k2", size=8)
    first = models.first_convolution(net)
    assert first is net[0]
    after = models.activated(net, first)
    assert after is first  # batch norm comes between
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net.train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = models.outputs_inside(net, net[3], x)
    torch.testing.assert_close(found, net[3](net[2](net[1](net[0](x)))))
    assert not found.requires_grad
    # the network is as it was
    assert net.training
    assert not net[1].training
    assert not net[3]._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_part_that_is_not_used_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not use"):
        models.outputs_inside(net, nn.Linear(2, 2), torch.zeros(1, 2))


def test_the_activation_that_follows() -> None:
    net = models.image_network("conv4k3-conv5k3", activation="elu")
    assert models.activated(net, net[2]) is net[3]
    assert models.activated(net, nn.Linear(1, 1)) is not net[3]
    wrapped = nn.Sequential(nn.Sequential(net[0]), net[1])
    assert models.activated(wrapped, net[0]) is net[1]
