"""Models whose curvature is known without any of the tools that are asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Floats = npt.NDArray[np.float64]
Data = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

# of central differences in float64: truncation and cancellation both near 1e-10
STEP = 1e-5


def regression(
    spectrum: Sequence[float] | Floats, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Data]:
    r"""Build a linear regression whose Hessian has the given eigenvalues.

    The Hessian of the mean squared error is :math:`\frac2N X^\top X`, whatever the
    weights and the targets; the inputs are :math:`X = U \sqrt{N \Lambda / 2}\, V^\top`
    with random orthogonal U and V.

    Args:
        spectrum: P eigenvalues, none below 0; there are as many samples as parameters.
        dtype: Of the weights and the data, which are made in float64.
    """
    values = torch.as_tensor(np.asarray(spectrum, dtype=np.float64))
    count = len(values)
    generator = torch.Generator().manual_seed(0)
    left, right, target = (
        torch.randn(count, columns, generator=generator, dtype=torch.float64)
        for columns in (count, count, 1)
    )
    u, v = torch.linalg.qr(left)[0], torch.linalg.qr(right)[0]
    inputs = (u * (values * count / 2).sqrt()) @ v.T
    torch.manual_seed(0)
    model = nn.Linear(count, 1, bias=False).to(dtype)
    return model.eval(), (inputs.to(dtype), target.to(dtype))


def softmax_regression(
    samples: int = 129, inputs: int = 20, classes: int = 5
) -> tuple[nn.Module, Data]:
    """Build a softmax regression on Gaussian inputs of unequal length, float32."""
    torch.manual_seed(0)
    model = nn.Linear(inputs, classes)
    x = (
        torch.randn(samples, inputs)
        * torch.linspace(0.5, 2, samples)[torch.randperm(samples), None]
    )
    return model.eval(), (x, torch.randint(classes, (samples,)))


def softmax_trace(model: nn.Module, inputs: Tensor) -> float:
    r"""Compute the trace of the Hessian of softmax regression, in float64.

    With probabilities p, it is :math:`\frac1N \sum_n (1 + \lVert x_n \rVert^2) (1 -
    \lVert p_n \rVert^2)`, from the Kronecker product of :math:`\mathrm{diag}(p) - p
    p^\top` and the inputs with their 1 for the bias.
    """
    weight, bias = (parameter.detach().double() for parameter in model.parameters())
    probabilities = (inputs.double() @ weight.T + bias).softmax(1)
    lengths = 1 + inputs.double().square().sum(1)
    return float((lengths * (1 - probabilities.square().sum(1))).mean())


def cut(data: Data, size: int) -> list[Data]:
    """Cut data into batches of ``size`` samples; the last one has what is left."""
    return list(zip(*(part.split(size) for part in data), strict=True))


def tanh_network(inputs: int = 10, hidden: int = 100) -> tuple[nn.Module, Data]:
    """Build a tanh network with one hidden layer, and 100 samples, float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    return model.eval(), (torch.randn(100, inputs), torch.randn(100, 1))


def dropout_network() -> tuple[nn.Module, Data]:
    """Build a tanh network with dropout, left in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 1)
    )
    return model.train(), (torch.randn(100, 10), torch.randn(100, 1))


def layer_norm_network() -> tuple[nn.Module, Data]:
    """Build linear, layer norm, linear, float64, with random weights everywhere."""
    torch.manual_seed(0)
    return _randomized(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)))


class Cube(torch.autograd.Function):
    """The third power with a gradient written by hand.

    It is marked as differentiable once only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Compute the third power."""
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        """Compute its first derivative."""
        (x,) = ctx.saved_tensors
        return 3 * x.square() * slope


class Cubes(nn.Module):
    """`Cube` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the third power of every entry."""
        return Cube.apply(x)


def hand_written_network() -> tuple[nn.Module, Data]:
    """Build linear, `Cube`, linear, float64."""
    torch.manual_seed(0)
    return _randomized(nn.Sequential(nn.Linear(3, 4), Cubes(), nn.Linear(4, 1)))


def _randomized(model: nn.Module) -> tuple[nn.Module, Data]:
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, (
        torch.randn(8, 3, dtype=torch.float64),
        torch.randn(8, 1, dtype=torch.float64),
    )


def differences(model: nn.Module, loss: Loss, data: Data) -> Tensor:
    """Compute the Hessian (P, P) by central differences of the gradient.

    Nothing is differentiated twice.
    """
    x, y = data
    parameters = dict(model.named_parameters())
    point = nn.utils.parameters_to_vector(parameters.values()).detach()

    def gradient(at: Tensor) -> Tensor:
        parts = at.split([value.numel() for value in parameters.values()])
        leaves = {
            name: part.reshape(value.shape).clone().requires_grad_()
            for part, (name, value) in zip(parts, parameters.items(), strict=True)
        }
        value = loss(torch.func.functional_call(model, leaves, (x,)), y)
        found = torch.autograd.grad(value, list(leaves.values()))
        return torch.cat([part.flatten() for part in found])

    steps = STEP * torch.eye(len(point), dtype=point.dtype)
    return torch.stack(
        [
            (gradient(point + step) - gradient(point - step)) / (2 * STEP)
            for step in steps
        ]
    )
