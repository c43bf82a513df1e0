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

CONVOLUTION, DENSE, POOLING = range(3)  # as in images.c

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class ImageLayer:
    """A convolution, a dense layer or a max pooling, with the ReLU that follows it.

    Attributes:
        kind: `CONVOLUTION`, `DENSE` or `POOLING`.
        name: The prefix of its parameters' names.
        inputs: Shape of what it takes.
        outputs: Shape of what it gives; a dense layer's units are channels of one
            pixel.
        kernel: Pixels of a side of its window; 1 for a dense layer.
        padding: Pixels of zeros at each border.
        bias: Whether it has one.
        relu: Whether a ReLU follows.
    """

    kind: int
    name: str
    inputs: Shape
    outputs: Shape
    kernel: int = 1
    padding: int = 0
    bias: bool = False
    relu: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        if self.kind == POOLING:
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
        if isinstance(part, nn.ReLU):
            if not layers or layers[-1].relu or layers[-1].kind == POOLING:
                raise Unsupported(
                    "a ReLU does not follow a convolution or a linear layer"
                )
            layers[-1] = dataclasses.replace(layers[-1], relu=True)
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
    if not layers or layers[-1].kind != DENSE or layers[-1].relu:
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
    elif type(module) in (nn.Conv2d, nn.MaxPool2d, nn.Linear, nn.ReLU, nn.Flatten):
        yield prefix, module
    elif type(module) is not nn.Identity:
        raise Unsupported(f"the fused kernel for images has no {type(module).__name__}")


def _layer(name: str, part: nn.Module, shape: Shape) -> ImageLayer:
    if isinstance(part, nn.Conv2d):
        return _convolution(name, part, shape)
    if isinstance(part, nn.MaxPool2d):
        return _pooling(name, part, shape)
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


def _pooling(name: str, part: nn.MaxPool2d, shape: Shape) -> ImageLayer:
    kernel = part.kernel_size
    known = part.stride == kernel and part.padding == 0 and part.dilation == 1
    gives_more = part.ceil_mode or part.return_indices
    if (
        not isinstance(kernel, int)
        or not known
        or gives_more
        or min(shape[1:]) < kernel
    ):
        raise Unsupported("it has max pooling of windows side by side only")
    outputs = (shape[0], shape[1] // kernel, shape[2] // kernel)
    return ImageLayer(POOLING, name, shape, outputs, kernel)
