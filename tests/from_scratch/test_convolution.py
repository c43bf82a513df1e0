"""The convolutional network: im2col against unfold, all gradients against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from nablab.from_scratch.convolution import (
    Convolution,
    MaxPool,
    col2im,
    convolutional_network,
    im2col,
    side_after,
)
from nablab.from_scratch.dense import ACTIVATIONS, Momentum, train_step
from tests.from_scratch.test_dense import (
    arrays_of,
    assert_gradients_are_those_of_autograd,
    batch,
    twin,
)

shapes = st.tuples(
    st.integers(1, 3), st.integers(4, 7), st.integers(4, 7), st.integers(1, 3)
)


@given(shape=shapes, kernel=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_im2col_is_unfold_and_col2im_is_fold(
    shape: tuple[int, ...], kernel: int
) -> None:
    images = np.random.default_rng(0).normal(size=shape)
    columns = im2col(images, kernel)
    first = torch.from_numpy(np.moveaxis(images, -1, 0).copy())
    unfolded = functional.unfold(first, kernel)
    rows, _, _, samples = columns.shape
    flat = columns.reshape(rows, -1, samples)
    np.testing.assert_array_equal(np.moveaxis(flat, -1, 0), unfolded.numpy())
    folded = functional.fold(unfolded, shape[1:3], kernel).numpy()
    again = col2im(columns, kernel, shape[0])
    np.testing.assert_allclose(np.moveaxis(again, -1, 0), folded, rtol=1e-12)


@given(shape=shapes, kernel=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_col2im_is_the_transpose_of_im2col(shape: tuple[int, ...], kernel: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(size=shape)
    columns = im2col(images, kernel)
    others = rng.normal(size=columns.shape)
    back = col2im(others, kernel, shape[0])
    assert (columns * others).sum() == pytest.approx((images * back).sum())


def test_a_convolution_is_torchs() -> None:
    layer = Convolution(2, 3, 3, np.random.default_rng(0), np.float64)
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 4))
    slope = np.random.default_rng(2).normal(size=(3, 4, 3, 4))
    first = torch.from_numpy(np.moveaxis(x, -1, 0).copy()).requires_grad_()
    weight, bias = (
        torch.from_numpy(layer.parameters[name].copy()).requires_grad_()
        for name in ("weight", "bias")
    )
    truth = functional.conv2d(first, weight, bias)
    truth.backward(torch.from_numpy(np.moveaxis(slope, -1, 0).copy()))
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(
        np.moveaxis(layer.forward(x), -1, 0), truth.detach().numpy(), **close
    )
    back = layer.backward(slope)
    for found, tensor in (
        (np.moveaxis(back, -1, 0), first),
        (layer.gradients["weight"], weight),
        (layer.gradients["bias"], bias),
    ):
        assert tensor.grad is not None
        np.testing.assert_allclose(found, tensor.grad.numpy(), **close)


@pytest.mark.parametrize("side", [6, 7])
def test_pooling_is_torchs_where_values_are_equal_too(side: int) -> None:
    # Of three values, most windows hold the largest twice.
    x = np.random.default_rng(3).integers(0, 3, (2, side, side, 5)).astype(np.float64)
    slope = np.random.default_rng(4).normal(size=(2, side // 2, side // 2, 5))
    first = torch.from_numpy(np.moveaxis(x, -1, 0).copy()).requires_grad_()
    truth = functional.max_pool2d(first, 2)
    truth.backward(torch.from_numpy(np.moveaxis(slope, -1, 0).copy()))
    layer = MaxPool()
    found = layer.forward(x)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0), truth.detach().numpy())
    assert first.grad is not None
    back = layer.backward(slope)
    np.testing.assert_array_equal(np.moveaxis(back, -1, 0), first.grad.numpy())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "hidden_units"), [(1, 16, 5, 6), (3, 11, 2, 0)]
)
def test_gradients_are_those_of_autograd(
    channels: int, size: int, kernel: int, hidden_units: int, activation: str
) -> None:
    network = convolutional_network(
        channels,
        size,
        (3, 4),
        hidden_units,
        10,
        np.random.default_rng(5),
        kernel=kernel,
        activation=activation,
        dtype=np.float64,
    )
    spec = f"conv3k{kernel}-pool-conv4k{kernel}-pool"
    spec += f"-{hidden_units}" if hidden_units else ""
    module = twin(network, spec, size, channels=channels, activation=activation)
    x, labels = batch(6, size, np.float64, channels=channels)
    assert_gradients_are_those_of_autograd(network, module, x, labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_array_of_a_step_leaves_its_type(dtype: Any) -> None:
    rng = np.random.default_rng(6)
    network = convolutional_network(1, 16, (3, 4), 6, 10, rng, dtype=dtype)
    optimizer = Momentum(network, 0.9)
    x, labels = batch(8, 16, dtype)
    train_step(network, optimizer, x, labels, 0.05)
    found = arrays_of(network, optimizer)
    assert len(found) > 30
    assert {name for name, value in found.items() if value.dtype != dtype} == set()


def test_batches_of_other_sizes_do_not_disturb_one_another() -> None:
    layer = Convolution(1, 2, 3, np.random.default_rng(7))
    large, _ = batch(8, 9, np.float32)
    whole = layer.forward(large).copy()
    ragged = layer.forward(large[..., :3])
    np.testing.assert_allclose(ragged, whole[..., :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.forward(large), whole)


def test_images_that_are_too_small_are_refused() -> None:
    assert side_after(28, 5) == 4
    with pytest.raises(ValueError, match="leave nothing of images of 8 x 8 pixels"):
        convolutional_network(1, 8, (2, 2), 0, 10, np.random.default_rng(0), kernel=3)
