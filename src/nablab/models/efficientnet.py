"""EfficientNet-Lite0 with the names of its published weights, so that these fit."""

from __future__ import annotations

import math

from torch import Tensor, nn

# What TensorFlow's networks use, from which the published weights were converted.
EPSILON, MOMENTUM = 1e-3, 0.01
# A row per stage: blocks, kernel, stride of the first one, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, FEATURES, DROPOUT = 32, 1_280, 0.2


class SamePadding(nn.Conv2d):
    """A convolution that pads as TensorFlow does: ceil(size / stride) places come out.

    With a stride of 2 an even image gets one row more below than above. PyTorch's own
    padding would look half a pixel aside, and the published weights would not fit.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Height and width of the window.
        stride: Of the window.
        groups: 1, or one for each channel.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            inputs, outputs, kernel, stride=stride, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve (N, inputs, H, W)."""
        window, stride = self.kernel_size[0], self.stride[0]
        sides = [
            max((-(-size // stride) - 1) * stride + window - size, 0)
            for size in x.shape[2:]
        ]
        high, wide = sides
        if high % 2 or wide % 2:
            x = nn.functional.pad(
                x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)
            )
            high = wide = 0
        return nn.functional.conv2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            padding=(high // 2, wide // 2),
            groups=self.groups,
        )


class InvertedBottleneck(nn.Module):
    """Many channels for a moment: widen, look around in each channel, narrow.

    As in MobileNetV2 (Sandler et al. 2018), without the attention to channels that
    EfficientNet adds and the Lite networks leave out.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Of the convolution that looks at one channel at a time.
        stride: Of the same.
        expansion: How many times as many channels there are in between.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        between = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = SamePadding(inputs, between, 1)
            self._bn0 = _batch_norm(between)
        self._depthwise_conv = SamePadding(between, between, kernel, stride, between)
        self._bn1 = _batch_norm(between)
        self._project_conv = SamePadding(between, outputs, 1)
        self._bn2 = _batch_norm(outputs)
        self.relu = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of x, plus x where both have the same shape."""
        found = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        found = self.relu(self._bn1(self._depthwise_conv(found)))
        found = self._bn2(self._project_conv(found))
        return x + found if self.shortcut else found


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, from images (N, 3, H, W) to logits.

    It expects pixels minus 127, divided by 128 (`mean`, `std`, on the scale from 0 to
    1), and was trained at 224 x 224. Fine-tuning drops no blocks at random.

    Args:
        classes: Number of logits.
        dropout: Share of features that training leaves out before the last layer.

    Attributes:
        last_block: The names of its last block, which fine-tuning may train alone.
        mean: Of each channel of its inputs.
        std: By which its inputs are divided.
    """

    last_block = ("_blocks.15", "_conv_head", "_bn1")
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, classes: int = 1_000, *, dropout: float = DROPOUT) -> None:
        super().__init__()
        self._conv_stem = SamePadding(3, STEM, 3, 2)
        self._bn0 = _batch_norm(STEM)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for place in range(count):
                blocks.append(
                    InvertedBottleneck(
                        inputs, outputs, kernel, 1 if place else stride, expansion
                    )
                )
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SamePadding(inputs, FEATURES, 1)
        self._bn1 = _batch_norm(FEATURES)
        self.relu = nn.ReLU6(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(FEATURES, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                # An output channel of a depthwise convolution has one input, which
                # torch's fan_out does not count: its weights would be far too small.
                reach = part.out_channels // part.groups * math.prod(part.kernel_size)
                nn.init.normal_(part.weight, std=math.sqrt(2 / reach))

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer decides by, (N, 1280)."""
        x = self.relu(self._bn0(self._conv_stem(x)))
        x = self.relu(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self._fc(self.dropout(self.features(x)))
        return logits


def efficientnet_lite0(
    classes: int = 1_000, *, dropout: float = DROPOUT
) -> EfficientNetLite0:
    """Build EfficientNet-Lite0: 4,652,008 parameters for 1,000 classes.

    Names and shapes of its tensors are those of the weights that ``nablab data get
    efficientnet-lite0`` fetches.

    >>> sum(part.numel() for part in efficientnet_lite0().parameters())
    4652008
    """
    return EfficientNetLite0(classes, dropout=dropout)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)
