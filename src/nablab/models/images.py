"""Networks for images.

Those of the catalogue by name, and any other written by its layers.

``conv6k5p2-pool-conv16k5-pool-120-84`` is LeNet: a convolution with 6 filters of 5 x 5
pixels and a border of 2, max pooling over 2 x 2, a second convolution, and dense layers
of 120 and 84 units. The output layer, one unit per class, is added. ``784-500-10`` is a
dense network: there the widths of the input and of the output are written too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from nablab.errors import UsageError, unknown
from nablab.models.dense_network import Activation, activation_layer, check_size

if TYPE_CHECKING:
    from torch import nn

# For 28 x 28 gray images and ten classes each has the number of parameters that its
# source reports.
NETWORKS: Mapping[str, str] = {
    # Three of about 25.6 thousand parameters with seven, five and four layers of
    # weights (course A). The source gives the rate of the middle one's dropout and not
    # its place: it stands before the output.
    "cnn-25k-deep": "conv10k4-pool-conv20k4-pool-50-50-40-30",
    "cnn-25k-middle": "conv10k4-pool-conv20k4-pool-50-100-drop0.25",
    "cnn-25k-shallow": "conv10k5-pool-conv15k5-pool-86",
    # 61,706. LeCun's images had 32 x 32 pixels; a border of 2 gives 28 x 28 the same
    # 400 features.
    "lenet": "conv6k5p2-pool-conv16k5-pool-120-84",
    # 342,698 (courses B and E): that count needs 64 x 4 x 4 features before the dense
    # layers, which two poolings leave when the first convolution is padded as LeNet's
    # is.
    "cnn-343k": "conv32k5p2-conv32k5-pool-conv64k5-pool-256-drop0.5",
    # Course C: 96,238; 206,922; 856,074.
    "cnn-96k": "conv5k3p1-pool-conv15k3p1-pool-128",
    "cnn-207k": "conv16k3p1-pool-conv32k3p1-pool-128",
    "cnn-856k": "conv32k3p1-pool-conv64k3p1-pool-256-128",
    "cnn-205k": "conv8k3p1-pool-conv16k3p1-pool-256",
    "mlp-10-20": "flatten-10-20",
    "mlp-5-9": "flatten-5-9",
    "mlp-50": "flatten-50",
    "mlp-500": "flatten-500",
    "mlp-500-50": "flatten-500-50",
    "mlp-256-128-64": "flatten-256-128-64",
    "mlp-350-600": "flatten-350-600",
    "mlp-2000": "flatten-2000",
    # On CIFAR-10: 1,209,866 and 1,735,178 (Zhang et al. 2017, arXiv:1611.03530).
    "mlp-512": "flatten-512",
    "mlp-512x3": "flatten-512x3",
    # F1 of Keskar et al. 2017, arXiv:1609.04836: batch norm after every hidden layer.
    "keskar-f1": "flatten-512-bn-512-bn-512-bn-512-bn-512-bn",
    # The lab's own, for 99 % on MNIST in seconds on two cores.
    "fast": "conv16k5s2-bn-conv32k3-pool-128",
}

LAYERS = (
    "conv16k3 (16 filters of 3 x 3 pixels; p1 adds a border of 1, s2 a stride of 2, x2 "
    "repeats it), pool (maximum over 2 x 2; pool3 over 3 x 3), mean2 (mean over 2 x 2), "
    "mean (over all pixels), flatten, bn (batch norm, right after a convolution or a "
    "width), drop0.5 (dropout), 120 (a dense layer of 120 units), 120x2 (two such)"
)
# filters or units of one layer, and pixels of a side; more is a typing mistake
LARGEST_NUMBER = 100_000
# Values of one layer for one image: a batch of 64 takes 2.6 GB. ResNets for large
# photos have 800,000.
MOST_VALUES = 10_000_000
_TOKENS = {
    "conv": re.compile(r"conv(\d{1,6})k(\d{1,3})((?:[ps]\d{1,3})*)(?:x(\d{1,3}))?"),
    "pool": re.compile(r"pool(\d{1,3})?"),
    "average": re.compile(r"mean(\d{1,3})"),
    "drop": re.compile(r"drop(\d*\.?\d+)"),
    "dense": re.compile(r"(\d{1,6})(?:x(\d{1,3}))?"),
    "plain": re.compile(r"mean|flatten|bn"),
}

Kind = Literal[
    "conv",
    "pool",
    "average",
    "mean",
    "flatten",
    "bn2d",
    "bn1d",
    "drop",
    "dense",
    "activation",
]


def image_networks() -> tuple[str, ...]:
    """Return the names of the networks of the catalogue."""
    return tuple(NETWORKS)


def image_network(
    spec: str,
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Build a network from images (N, channels, size, size) to logits (N, classes).

    Inputs are float32.

    Weights start as PyTorch starts its layers. The result is a plain
    `torch.nn.Sequential`, so that replicas, Hessians and
    `nablab.instruments.match_units` work on it. No softmax follows: losses add their
    own.

    Args:
        spec: A name of `image_networks`, or the layers joined by hyphens. A notation
            that begins with a number is a dense network with its input and output
            widths, as in ``784-500-10``; to any other an output layer of ``classes``
            units is added.
        channels: 1 for gray images, 3 for color.
        size: Pixels of a side.
        classes: Number of outputs.
        activation: After every convolution and dense layer but the last; batch norm
            stands before it.

    Raises:
        UsageError: A name, layer or activation that does not exist; layers that leave
            no pixel; widths that do not fit the images or the classes.

    >>> image_network("conv6k5-pool-120", size=12)
    Sequential(
      (0): Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1))
      (1): ReLU()
      (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
      (3): Flatten(start_dim=1, end_dim=-1)
      (4): Linear(in_features=96, out_features=120, bias=True)
      (5): ReLU()
      (6): Linear(in_features=120, out_features=10, bias=True)
    )
    """
    from torch import nn

    # a wrong name is an error even where no layer needs one
    activation_layer(activation)
    layers = _plan(spec, channels, size, classes)
    return nn.Sequential(*(_module(layer, activation) for layer in layers))


def check_image_network(spec: str, *, channels: int, size: int, classes: int) -> None:
    """Raise `UsageError` where `image_network` would; needs no torch."""
    _plan(spec, channels, size, classes)


def parameter_count_of(
    spec: str, *, channels: int = 1, size: int = 28, classes: int = 10
) -> int:
    """Count the trainable weights and biases of `image_network`, by formula.

    Needs no torch.

    (inputs x kernel height x kernel width + 1) x outputs for a convolution, (inputs +
    1) x outputs for a dense layer, 2 per unit or filter for batch norm.

    Args:
        spec: As in `image_network`.
        channels: 1 for gray images, 3 for color.
        size: Pixels of a side.
        classes: Number of outputs.

    >>> parameter_count_of("lenet")
    61706
    """
    return sum(layer.parameters for layer in _plan(spec, channels, size, classes))


@dataclass(frozen=True)
class _Layer:
    """One layer with the numbers that it needs.

    Inputs and outputs count channels or units.
    """

    kind: Kind
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    rate: float = 0.0

    @property
    def parameters(self) -> int:
        if self.kind in ("conv", "dense"):
            return (self.inputs * self.kernel**2 + 1) * self.outputs
        return 2 * self.inputs if self.kind in ("bn1d", "bn2d") else 0


def _module(layer: _Layer, activation: Activation) -> nn.Module:
    from torch import nn

    if layer.kind == "conv":
        return nn.Conv2d(
            layer.inputs,
            layer.outputs,
            layer.kernel,
            stride=layer.stride,
            padding=layer.padding,
        )
    if layer.kind == "dense":
        return nn.Linear(layer.inputs, layer.outputs)
    if layer.kind == "pool":
        return nn.MaxPool2d(layer.kernel)
    if layer.kind == "average":
        return nn.AvgPool2d(layer.kernel)
    if layer.kind == "bn2d":
        return nn.BatchNorm2d(layer.inputs)
    if layer.kind == "bn1d":
        return nn.BatchNorm1d(layer.inputs)
    if layer.kind == "drop":
        return nn.Dropout(layer.rate)
    if layer.kind == "mean":
        return nn.AdaptiveAvgPool2d(1)
    return nn.Flatten() if layer.kind == "flatten" else activation_layer(activation)


def _plan(spec: str, channels: int, size: int, classes: int) -> list[_Layer]:
    """List the layers of a name or a notation, with their shapes."""
    for name, value in (("channels", channels), ("size", size), ("classes", classes)):
        if not 1 <= value <= LARGEST_NUMBER:
            raise UsageError(
                f"{name}={value} is impossible: it must be from 1 to "
                f"{LARGEST_NUMBER:,}."
            )
    notation = NETWORKS.get(spec, spec)
    tokens = notation.split("-")
    if _kind_of(tokens[0]) == "":
        remedy = f"Or write its layers, as in {NETWORKS['lenet']}. Layers: {LAYERS}."
        raise unknown("image network", spec, NETWORKS, remedy=remedy)
    walk = _Walk(notation, channels, size)
    if tokens[0].isdecimal():
        tokens = _hidden_of_widths(spec, tokens, channels, size, classes)
    elif tokens[-1] == str(classes):
        raise UsageError(
            f"'{spec}' ends with {classes}, the number of classes, but the output "
            f"layer is added automatically: leave out the last -{classes}."
        )
    for token in tokens:
        walk.pass_token(token)
    layers = walk.end(classes)
    check_size(spec, sum(layer.parameters for layer in layers))
    return layers


def _hidden_of_widths(
    spec: str, tokens: list[str], channels: int, size: int, classes: int
) -> list[str]:
    """List the layers between the input and the output width of a dense network."""
    inputs = channels * size * size
    if int(tokens[0]) != inputs:
        raise UsageError(
            f"'{spec}' begins with {tokens[0]}, but images of {channels} x {size} x "
            f"{size} have {inputs:,} values: begin with {inputs}."
        )
    if len(tokens) < 2 or tokens[-1] != str(classes):
        raise UsageError(
            f"'{spec}' must end with {classes}, the number of classes, as in "
            f"{inputs}-500-{classes}."
        )
    return ["flatten", *tokens[1:-1]]


def _kind_of(token: str) -> str:
    """Tell which pattern the token follows; empty if none."""
    return next(
        (kind for kind, pattern in _TOKENS.items() if pattern.fullmatch(token)), ""
    )


class _Walk:
    """The layers met so far, and the shape of what arrives at the next."""

    def __init__(self, notation: str, channels: int, size: int) -> None:
        self._notation, self._size = notation, size
        self._units = channels  # channels while there are pixels, then features
        self._side = size  # pixels of a side; 0 once flattened
        self._layers: list[_Layer] = []
        self._waits = False  # an activation is due, after batch norm if that comes next

    def pass_token(self, token: str) -> None:
        """Append what the token says.

        Raises:
            UsageError: It is not a layer, or none that can stand here.
        """
        kind = _kind_of(token) or self._refuse(token)
        found = _TOKENS[kind].fullmatch(token)
        groups = found.groups() if found else ()
        if token == "bn":
            self._norm()
            return
        self._activate()
        if kind == "conv":
            filters, kernel, options, repeats = groups
            for _ in range(int(repeats or 1)):
                self._convolve(token, int(filters), int(kernel), options)
        elif kind == "dense":
            for _ in range(int(groups[1] or 1)):
                self._dense(token, int(groups[0]))
        elif kind == "pool":
            self._pool(token, "pool", int(groups[0] or 2))
        elif kind == "average":
            self._pool(token, "average", int(groups[0]))
        elif kind == "drop":
            self._drop(token, float(groups[0]))
        elif token == "mean":
            self._need_pixels(token)
            self._layers.append(_Layer("mean"))
            self._side = 1
        else:
            self._need_pixels(token)
            self._flatten()

    def end(self, classes: int) -> list[_Layer]:
        """Return all layers, with the output layer."""
        self._activate()
        self._flatten()
        return [*self._layers, _Layer("dense", self._units, classes)]

    def _convolve(self, token: str, filters: int, kernel: int, options: str) -> None:
        self._need_pixels(token)
        self._activate()
        chosen = {
            "p": 0,
            "s": 1,
            **{key: int(value) for key, value in re.findall(r"([ps])(\d+)", options)},
        }
        padding, stride = chosen["p"], chosen["s"]
        if len(re.findall("[ps]", options)) > len(set(re.findall("[ps]", options))):
            raise UsageError(f"'{token}' in '{self._notation}' gives p or s twice.")
        if not 1 <= filters <= LARGEST_NUMBER or kernel < 1 or stride < 1:
            raise UsageError(
                f"'{token}' in '{self._notation}': filters, kernel and stride must be "
                "1 or more."
            )
        if kernel > self._side + 2 * padding:
            self._no_pixel(
                token, f"a border (p{-(-(kernel - self._side) // 2)}), a smaller kernel"
            )
        self._layers.append(
            _Layer("conv", self._units, filters, kernel, stride, padding)
        )
        self._units, self._side = (
            filters,
            (self._side + 2 * padding - kernel) // stride + 1,
        )
        if self._units * self._side**2 > MOST_VALUES:
            raise UsageError(
                f"'{token}' in '{self._notation}' makes "
                f"{self._units * self._side**2:,} values of one image; at most "
                f"{MOST_VALUES:,} fit. Take fewer filters, a narrower border, a stride "
                "(s2) or smaller images."
            )
        self._waits = True

    def _pool(self, token: str, kind: Literal["pool", "average"], window: int) -> None:
        self._need_pixels(token)
        if window < 1:
            raise UsageError(
                f"'{token}' in '{self._notation}': the window must be 1 or more."
            )
        if window > self._side:
            self._no_pixel(token, "fewer poolings, padded convolutions")
        self._layers.append(_Layer(kind, kernel=window))
        self._side //= window

    def _dense(self, token: str, units: int) -> None:
        if not 1 <= units <= LARGEST_NUMBER:
            raise UsageError(
                f"'{token}' in '{self._notation}': a layer has from 1 to "
                f"{LARGEST_NUMBER:,} units."
            )
        self._activate()
        self._flatten()
        self._layers.append(_Layer("dense", self._units, units))
        self._units, self._waits = units, True

    def _drop(self, token: str, rate: float) -> None:
        if not 0 < rate < 1:
            raise UsageError(
                f"'{token}' in '{self._notation}': a dropout rate is "
                "above 0 and below 1."
            )
        self._layers.append(_Layer("drop", rate=rate))

    def _norm(self) -> None:
        if not self._waits or self._layers[-1].kind not in ("conv", "dense"):
            raise UsageError(
                f"'bn' in '{self._notation}' must stand right after the convolution or "
                "width that it normalizes, as in conv16k3-bn-pool."
            )
        self._layers.append(
            _Layer("bn2d" if self._side else "bn1d", self._units, self._units)
        )

    def _activate(self) -> None:
        if self._waits:
            self._layers.append(_Layer("activation"))
        self._waits = False

    def _flatten(self) -> None:
        if self._side:
            self._layers.append(_Layer("flatten"))
            self._units, self._side = self._units * self._side**2, 0

    def _need_pixels(self, token: str) -> None:
        if not self._side:
            raise UsageError(
                f"'{token}' in '{self._notation}' needs an image, but a width or "
                "flatten comes before it: convolutions and poolings come first, dense "
                "layers last."
            )

    def _no_pixel(self, token: str, remedy: str) -> NoReturn:
        raise UsageError(
            f"'{token}' in '{self._notation}' leaves no pixel: only {self._side} x "
            f"{self._side} of the image's {self._size} x {self._size} arrive there. "
            f"Take {remedy} or larger images."
        )

    def _refuse(self, token: str) -> NoReturn:
        words = ("pool", "mean", "mean2", "flatten", "bn", "conv16k3", "drop0.5")
        near = difflib.get_close_matches(token, words, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(
            f"'{token}' in '{self._notation}' is not a layer.{hint} Layers: {LAYERS}."
        )
