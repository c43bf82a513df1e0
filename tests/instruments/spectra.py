"""Matrices, models and data with known spectra, for the iterative instruments."""

import gc

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, hessian

from nablab.instruments.base.losses import Closure


def matrix(spectrum, *, seed=0, dtype=torch.float64):
    """A dense symmetric matrix with the given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(spectrum, dtype=float))
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    turn = torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    ).Q
    found = turn * values @ turn.T
    return ((found + found.T) / 2).to(dtype)


class Point(nn.Module):
    """A model that is one vector of parameters, with a matrix that moves along."""

    def __init__(self, curvature):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(len(curvature), dtype=curvature.dtype))
        self.register_buffer("curvature", curvature)


def quadratic(spectrum, **options):
    """Model, loss and data whose Hessian has the given eigenvalues."""
    loss = Closure(lambda model, batch: model.theta @ model.curvature @ model.theta / 2)
    return Point(matrix(spectrum, **options)), loss, torch.zeros(3, 1)


def network(*, outputs=3, dtype=torch.float64):
    """A small classifier with data of 50 samples, away from any critical point."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(4, 8),
            nn.Tanh(),
            nn.Linear(8, 6),
            nn.Tanh(),
            nn.Linear(6, outputs),
        )
        inputs = torch.randn(50, 4, dtype=torch.float64)
        target = torch.randint(0, outputs, (50,))
    return model.to(dtype), inputs.to(dtype), target


def dense_hessian(model, loss, inputs, target):
    """Return the Hessian in float64 by torch.func, a symmetric NumPy matrix."""
    model = model.double()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def value(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        tensors = {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return loss(functional_call(model, tensors, (inputs.double(),)), target)

    vector = torch.cat(
        [parameter.detach().flatten() for parameter in model.parameters()]
    )
    found = hessian(value)(vector).numpy()
    return (found + found.T) / 2


def tensors_alive():
    """How many tensors the garbage collector knows."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
