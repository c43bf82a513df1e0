"""Which networks the fused engine for images serves.

Chains of layers, read from nested `nn.Sequential`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from nablab.training.engine import Unsupported

# as in image_layers.h
CONVOLUTION, DENSE, POOLING, AVERAGING = range(4)
LINEAR, RELU, ELU = range(3)

_SERVED = (
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.Linear,
    nn.ReLU,
    nn.ELU,
    nn.Flatten,
)

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class ImageLayer:
    """A convolution, a dense layer or a pooling, with the activation that follows it.

    Attributes:
        kind: `CONVOLUTION`, `DENSE`, `POOLING` (maxima) or `AVERAGING`.
        name: The prefix of its parameters' names.
        inputs: Shape of what it takes.
        outputs: Shape of what it gives; a dense layer's units are channels of one
            pixel.
        kernel: Pixels of a side of its window; 1 for a dense layer.
        padding: Pixels of zeros at each border.
        bias: Whether it has one.
        activation: What follows: `LINEAR`, `RELU` or `ELU`.
    """

    kind: int
    name: str
    inputs: Shape
    outputs: Shape
    kernel: int = 1
    padding: int = 0
    bias: bool = False
    activation: int = LINEAR

    @property
    def relu(self) -> bool:
        """Whether a ReLU follows."""
        return self.activation == RELU

    @property
    def pools(self) -> bool:
        """Whether it has no weights."""
        return self.kind in (POOLING, AVERAGING)

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        if self.pools:
            return 0
        taps = (
            self.kernel**2 if self.kind == CONVOLUTION else math.prod(self.inputs[1:])
        )
        return self.outputs[0] * self.inputs[0] * taps

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + self.bias * self.outputs[0]


def read_image_layers(module: nn.Module, shape: Sequence[int]) -> list[ImageLayer]:
    """Read the layers of a network for samples of a shape.

    The shape is (channels, height, width) or (features,).

    Raises:
        Unsupported: The module holds something else.

    >>> first = nn.Conv2d(1, 6, 5, padding=2)
    >>> network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(4704, 10))
    >>> [(layer.outputs, layer.relu) for layer in read_image_layers(network, (1, 28, 28))]
    [((6, 28, 28), True), ((10, 1, 1), False)]
    """
    if len(shape) not in (1, 3):
        raise Unsupported(f"samples of shape {tuple(shape)} are not images")
    now: Shape = (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
    flat, layers = len(shape) == 1, list[ImageLayer]()
    for name, part in _parts("", module):
        if isinstance(part, nn.ReLU | nn.ELU):
            name = type(part).__name__
            if not layers or layers[-1].activation or layers[-1].pools:
                raise Unsupported(
                    f"a {name} does not follow a convolution or a linear layer"
                )
            if isinstance(part, nn.ELU) and part.alpha != 1:
                raise Unsupported("it has ELU with alpha 1 only")
            layers[-1] = dataclasses.replace(
                layers[-1], activation=RELU if name == "ReLU" else ELU
            )
            continue
        if isinstance(part, nn.Flatten):
            if (part.start_dim, part.end_dim) != (1, -1):
                raise Unsupported("a Flatten leaves some axes")
            flat = True
            continue
        if isinstance(part, nn.Linear) != flat:
            raise Unsupported("a linear layer does not follow a Flatten")
        layers.append(_layer(name, part, now))
        now = layers[-1].outputs
    if not layers or layers[-1].kind != DENSE or layers[-1].activation:
        raise Unsupported("the network does not end with a linear layer")
    return layers


def _parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the leaves of nested `nn.Sequential` with their prefixes, no identities."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise Unsupported(f"the module '{prefix or type(module).__name__}' has hooks")
    if (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
    ):
        for name, child in module._modules.items():
            if child is not None:
                yield from _parts(f"{prefix}{name}.", child)
    elif type(module) in _SERVED:
        yield prefix, module
    elif type(module) is not nn.Identity:
        raise Unsupported(f"the fused kernel for images has no {type(module).__name__}")


def _layer(name: str, part: nn.Module, shape: Shape) -> ImageLayer:
    if isinstance(part, nn.Conv2d):
        return _convolution(name, part, shape)
    if isinstance(part, nn.MaxPool2d):
        plain = part.dilation == 1 and not part.return_indices
        return _pooling(POOLING, name, part, shape, plain=plain)
    if isinstance(part, nn.AvgPool2d):
        plain = part.divisor_override is None
        return _pooling(AVERAGING, name, part, shape, plain=plain)
    assert isinstance(part, nn.Linear)
    if part.in_features != math.prod(shape):
        raise Unsupported(
            f"a linear layer takes {part.in_features} inputs and gets "
            f"{math.prod(shape)}"
        )
    return ImageLayer(
        DENSE, name, shape, (part.out_features, 1, 1), bias=part.bias is not None
    )


def _convolution(name: str, part: nn.Conv2d, shape: Shape) -> ImageLayer:
    kernel, padding = part.kernel_size[0], part.padding[0]
    plain = (
        part.stride == part.dilation == (1, 1)
        and part.groups == 1
        and part.padding_mode == "zeros"
    )
    square = part.kernel_size == (kernel, kernel) and part.padding == (padding, padding)
    if not (plain and square) or not isinstance(padding, int) or padding >= kernel:
        raise Unsupported(
            "it has square convolutions of stride 1 only, padded by less "
            "than the kernel"
        )
    if part.in_channels != shape[0]:
        raise Unsupported(
            f"a convolution takes {part.in_channels} channels and gets {shape[0]}"
        )
    height, width = (side + 2 * padding - kernel + 1 for side in shape[1:])
    outputs = (part.out_channels, height, width)
    if min(outputs) < 1:
        raise Unsupported("a convolution leaves no pixel")
    return ImageLayer(
        CONVOLUTION, name, shape, outputs, kernel, padding, part.bias is not None
    )


def _pooling(
    kind: int,
    name: str,
    part: nn.MaxPool2d | nn.AvgPool2d,
    shape: Shape,
    *,
    plain: bool,
) -> ImageLayer:
    kernel = part.kernel_size
    if (
        not isinstance(kernel, int)
        or not plain
        or part.stride != kernel
        or part.padding != 0
        or part.ceil_mode
        or min(shape[1:]) < kernel
    ):
        raise Unsupported("it has pooling of windows side by side only")
    outputs = (shape[0], shape[1] // kernel, shape[2] // kernel)
    return ImageLayer(kind, name, shape, outputs, kernel)
