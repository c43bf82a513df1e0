"""Residual networks with the names of torchvision, so that weights of those fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)  # channels of the four stages


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution, and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            None
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what two convolutions find to what comes in."""
        shortcut = x if self.downsample is None else self.downsample(x)
        found = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(found)) + shortcut)
        return out


class ResNet(nn.Module):
    """A residual network of basic blocks, from images (N, 3, H, W) to logits.

    Args:
        blocks: How many in each of the four stages.
        classes: Number of logits.

    Attributes:
        last_block: The name of its last block, which fine-tuning may train alone.
        mean: Of each channel, on the scale from 0 to 1, in the images of ImageNet.
        std: Likewise; weights of torchvision's expect images minus mean, over std.
    """

    last_block = ("layer4",)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, blocks: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = _convolution(3, WIDTHS[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = (WIDTHS[0], *WIDTHS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(inputs, outputs, count, 1 if place == 0 else 2)
            for place, (inputs, outputs, count) in enumerate(
                zip(before, WIDTHS, blocks, strict=False)
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(
                    part.weight, mode="fan_out", nonlinearity="relu"
                )

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer decides by, (N, 512)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def resnet18(classes: int = 1_000) -> ResNet:
    """Build ResNet-18: 11,689,512 parameters for 1,000 classes.

    Names and shapes of its tensors are those of torchvision's, so weights of that load
    into it (`nablab.files.weights.load_weights`).

    >>> sum(part.numel() for part in resnet18().parameters())
    11689512
    """
    return ResNet((2, 2, 2, 2), classes)


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    """Return blocks of equal width, of which the first one may halve the image."""
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(
        first, *(BasicBlock(outputs, outputs) for _ in range(count - 1))
    )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias, which the batch norm behind it has."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
    )
