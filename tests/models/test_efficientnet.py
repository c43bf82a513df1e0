"""EfficientNet-Lite0: the names and shapes of its published weights, its padding, and
how random weights are drawn.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nablab import data
from nablab.errors import DataError
from nablab.files.weights import set_weights
from nablab.models.efficientnet import (
    InvertedBottleneck,
    SamePadding,
    efficientnet_lite0,
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return efficientnet_lite0(classes=7)


def test_names_and_sizes_are_those_of_the_published_weights() -> None:
    net = efficientnet_lite0()
    state = net.state_dict()
    assert sum(part.numel() for part in net.parameters()) == 4_652_008
    assert len(net._blocks) == 16
    assert not any(name.startswith("_blocks.0._expand") for name in state)
    assert {
        name: tuple(state[name].shape)
        for name in (
            "_conv_stem.weight",
            "_blocks.0._depthwise_conv.weight",
            "_blocks.3._depthwise_conv.weight",
            "_blocks.15._expand_conv.weight",
            "_blocks.15._project_conv.weight",
            "_bn1.running_var",
            "_fc.weight",
        )
    } == {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.15._expand_conv.weight": (1_152, 192, 1, 1),
        "_blocks.15._project_conv.weight": (320, 1_152, 1, 1),
        "_bn1.running_var": (1_280,),
        "_fc.weight": (1_000, 1_280),
    }


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_tensorflows(kernel: int, stride: int, size: int) -> None:
    layer = SamePadding(1, 1, kernel, stride).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    out = -(-size // stride)
    # TensorFlow's formula: the smaller half of what is missing comes first.
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(out, out, dtype=torch.float64)
    for row in range(out):
        for column in range(out):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - before, column * stride + j - before
                    if 0 <= y < size and 0 <= z < size:
                        expected[row, column] += (
                            layer.weight[0, 0, i, j] * x[0, 0, y, z]
                        )
    torch.testing.assert_close(layer(x)[0, 0], expected)


def test_a_block_that_finds_nothing_passes_on_what_came_in() -> None:
    x = torch.rand(1, 4, 5, 5)
    block = InvertedBottleneck(4, 4, 3, 1, 6).eval()
    nn.init.zeros_(block._bn2.weight)
    torch.testing.assert_close(block(x), x)
    # of another shape it has no shortcut
    assert not InvertedBottleneck(4, 4, 3, 2, 6).shortcut
    assert InvertedBottleneck(4, 8, 3, 2, 1)(x).shape == (1, 8, 3, 3)


def test_images_are_halved_five_times_and_logits_read_features(net: nn.Module) -> None:
    net.eval()
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        inside = net._blocks(net._conv_stem(x))
        features = net.features(x)
        assert inside.shape == (2, 320, 2, 1)
        assert features.shape == (2, 1_280)
        torch.testing.assert_close(net(x), net._fc(features))
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-5)


def test_random_weights_let_everything_pass(net: nn.Module) -> None:
    for part in net.modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.groups > 1
            and part.weight.numel() > 999
        ):
            window = part.kernel_size[0] * part.kernel_size[1]
            assert float(part.weight.detach().std()) == pytest.approx(
                (2 / window) ** 0.5, rel=0.1
            )
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # In evaluation mode no batch norm makes up for weights that are too small.
    with torch.no_grad():
        features = net.eval().features(x)
    assert float(features.std(dim=0).mean()) > 0.05


@pytest.mark.slow
def test_the_published_weights_give_what_another_implementation_gives() -> None:
    try:
        found = data.load_pretrained("efficientnet-lite0")
    except DataError as error:
        pytest.skip(f"no source is reachable here: {error}")
    net = efficientnet_lite0().eval()
    assert set_weights(net, found.tensors, found.name) == ()
    x = torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96)
    with torch.no_grad():
        logits = net(x)[0]
    # Computed with the package efficientnet_lite_pytorch 0.1.0.
    expected = torch.tensor([-0.21829, 0.09534, 0.81439, 0.38354])
    torch.testing.assert_close(logits[:4], expected, rtol=0, atol=1e-3)
