"""A convolutional network: a convolution is one matrix product, too.

A filter looks at each window of k x k pixels and computes a weighted sum. Put every
window into a column of one large matrix (im2col), and the filters, each written as a
row, give all sums at once: one product that the machine's linear algebra computes at
full speed. The price is memory: every pixel stands in up to k * k columns.

Batches are (channels, height, width, N): the samples come *last*. Then a shifted image
is, for each row of it, one stretch of memory, and all of what follows (copying windows,
taking maxima, adding up) runs over long stretches. With the samples first, as PyTorch
has them, NumPy's loops would be a few pixels long.

Source: Chellapilla, Puri, Simard, High performance convolutional neural networks for
document processing, 2006.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nablab.from_scratch.dense import (
    ACTIVATIONS,
    Array,
    Dense,
    DType,
    Flatten,
    Layer,
    Network,
    first_parameters,
)


def im2col(images: Array, kernel: int, *, out: Array | None = None) -> Array:
    """Write every window of k x k pixels into a column.

    Args:
        images: (C, H, W, N).
        kernel: Pixels of a side of the window, k.
        out: An earlier result to be written over, where it has the shape of this one.

    Returns:
        (C * k * k, H - k + 1, W - k + 1, N), the rows in the order of
        `torch.nn.functional.unfold`.

    >>> image = np.arange(9).reshape(1, 3, 3, 1)
    >>> im2col(image, 2).reshape(4, 4)[:, 0].tolist()  # the window at the upper left
    [0, 1, 3, 4]
    """
    channels, height, width, samples = images.shape
    down, right = height - kernel + 1, width - kernel + 1
    shape = (channels * kernel * kernel, down, right, samples)
    # So much new memory in every step would have to come from the operating system.
    if out is None or out.shape != shape:
        out = np.empty(shape, images.dtype)
    places = out.reshape(channels, kernel, kernel, down, right, samples)
    for i in range(kernel):
        for j in range(kernel):
            places[:, i, j] = images[:, i : i + down, j : j + right]
    return out


def col2im(columns: Array, kernel: int, channels: int) -> Array:
    """Add up what the windows say of each pixel: the transpose of `im2col`.

    Args:
        columns: (C * k * k, H - k + 1, W - k + 1, N).
        kernel: Pixels of a side of the window, k.
        channels: C.

    Returns:
        (C, H, W, N).
    """
    _, down, right, samples = columns.shape
    places = columns.reshape(channels, kernel, kernel, down, right, samples)
    shape = (channels, down + kernel - 1, right + kernel - 1, samples)
    images = np.zeros(shape, columns.dtype)
    for i in range(kernel):
        for j in range(kernel):
            images[:, i : i + down, j : j + right] += places[:, i, j]
    return images


class Convolution(Layer):
    """Filters of k x k pixels that move pixel by pixel, without a border.

    Its parameters are ``weight`` (filters, C, k, k) and ``bias`` (filters,).
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int,
        rng: np.random.Generator,
        dtype: DType = np.float32,
    ) -> None:
        super().__init__()
        shape = (filters, channels, kernel, kernel)
        self.parameters = first_parameters(shape, rng, dtype)
        self._columns = np.empty(0, dtype)

    def forward(self, x: Array) -> Array:
        """Map (C, H, W, N) to (filters, H - k + 1, W - k + 1, N)."""
        weight = self.parameters["weight"]
        filters, _, kernel, _ = weight.shape
        # Images that come sample by sample are turned once here, not in every window.
        x = np.ascontiguousarray(x)
        self._columns = im2col(x, kernel, out=self._columns)
        z: Array = weight.reshape(filters, -1) @ _rows(self._columns)
        z += self.parameters["bias"][:, None]
        return z.reshape(filters, *self._columns.shape[1:])

    def backward(self, slope: Array) -> Array:
        """Map the slope by the outputs to that by the inputs (C, H, W, N)."""
        weight = self.parameters["weight"]
        filters, channels, kernel, _ = weight.shape
        slope = _rows(slope)
        self.gradients = {
            "weight": (slope @ _rows(self._columns).T).reshape(weight.shape),
            "bias": slope.sum(axis=1),
        }
        if self.is_first:
            return slope
        back = weight.reshape(filters, -1).T @ slope
        return col2im(back.reshape(self._columns.shape), kernel, channels)


def _rows(array: Array) -> Array:
    """View an array as a matrix with its first axis as rows."""
    return array.reshape(len(array), -1)


class MaxPool(Layer):
    """The largest of each 2 x 2 values; an odd last row or column is left out."""

    def forward(self, x: Array) -> Array:
        """Map (C, H, W, N) to (C, H // 2, W // 2, N)."""
        windows = _windows(x)
        rows = np.maximum(windows[:, :, 0], windows[:, :, 1])
        self._x, self._y = x, np.maximum(rows[:, :, :, 0], rows[:, :, :, 1])
        return self._y

    def backward(self, slope: Array) -> Array:
        """Give the slope to the value that was the largest, the first of equal ones."""
        windows = _windows(self._x)
        back = np.zeros_like(self._x)
        left = slope.copy()
        for i in range(2):
            for j in range(2):
                here = left * (windows[:, :, i, :, j] == self._y)
                _windows(back)[:, :, i, :, j] = here
                # What one value took is gone: on a black background all four of a
                # window are equal, and each of them would take it.
                left -= here
        return back


def _windows(x: Array) -> Array:
    """View (C, H, W, N) as (C, H // 2, 2, W // 2, 2, N)."""
    channels, height, width, samples = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(channels, height // 2, 2, width // 2, 2, samples)


def side_after(size: int, kernel: int) -> int:
    """Compute the pixels of a side that two convolutions and poolings leave.

    >>> side_after(28, 5), side_after(8, 3)
    (4, 0)
    """
    for _ in range(2):
        size = max(0, (size - kernel + 1) // 2)
    return size


def convolutional_network(
    channels: int,
    size: int,
    filters: Sequence[int],
    hidden_units: int,
    classes: int,
    rng: np.random.Generator,
    *,
    kernel: int = 5,
    activation: str = "relu",
    dtype: DType = np.float32,
) -> Network:
    """Build convolution, pooling, convolution, pooling, and dense layers.

    Args:
        channels: 1 for gray images, 3 for color.
        size: Pixels of a side.
        filters: Filters of the two convolutions.
        hidden_units: Units of a dense layer before the output; 0 leaves it out.
        classes: Outputs.
        rng: Draws the first weights.
        kernel: Pixels of a side of a filter.
        activation: A name of `dense.ACTIVATIONS`.
        dtype: Of all arrays.

    Raises:
        ValueError: The layers leave no pixel.
    """
    if not (side := side_after(size, kernel)):
        raise ValueError(
            f"Two convolutions of {kernel} x {kernel} and two poolings leave nothing "
            f"of images of {size} x {size} pixels."
        )
    first, second = filters
    activate = ACTIVATIONS[activation]
    # The largest value stays the largest under a function that rises: pooling before
    # the activation gives the same, with a quarter of the values to activate.
    layers: list[Layer] = [
        Convolution(channels, first, kernel, rng, dtype),
        MaxPool(),
        activate(),
        Convolution(first, second, kernel, rng, dtype),
        MaxPool(),
        activate(),
        Flatten(),
    ]
    features = second * side * side
    if hidden_units:
        layers += [Dense(features, hidden_units, rng, dtype), activate()]
    layers.append(Dense(hidden_units or features, classes, rng, dtype))
    return Network(layers)
